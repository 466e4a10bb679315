"""From a run's folder to its RunRecord."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_origin, get_type_hints

from glitchrun.errors import RunError, file_access
from glitchrun.events import batch_from_json
from glitchrun.ledger.checksums import (
    HEAD_LINE,
    VERSION,
    Chain,
    Damage,
    Inspection,
    NewerLedger,
    inspect,
)
from glitchrun.ledger.files import DELIVERED, IDENTITY, LEDGER, open_regular, read_text
from glitchrun.ledger.record import (
    GateResult,
    Metric,
    ModelRecord,
    RunIdentity,
    RunRecord,
    StepRecord,
    TimedBatch,
    ending,
)

DAMAGED = "DAMAGED"
"""Status of a run whose ledger was altered; the record contains its intact part."""
_LAST_MOMENT = 32_503_680_000_000
"""Milliseconds to the year 3000."""
_ODD = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What comes of reading an entry whose fields are missing or of another kind."""


class IdentityLost(RunError):
    """Neither run.json nor the ledger identifies the run in a folder."""


def read_run(folder: Path) -> RunRecord:
    """The run that a folder holds; of a damaged ledger, what its good part adds up to.

    Raises:
        RunError: the folder holds no run, files that cannot be read or that a newer glitchrun
            wrote, or a run.json that something else has changed.
    """
    reading = read_fold(folder)
    with _sound(folder):
        return reading.fold.record()


def read_identity(folder: Path) -> RunIdentity:
    """What names the run that a folder holds.

    Raises:
        RunError: its files do not say so, or cannot be read.
    """
    path = folder / LEDGER
    with _sound(folder):
        first = next((line for _, line in _lines(path, 1)), b"") if path.exists() else b""
        head = Chain(_is_known)
        if first.startswith(HEAD_LINE) and head.objection(first) is None:
            return _identified(json.loads(first)["run"]["identity"])
        return _identified(_identity(folder, None)["identity"])


@dataclass(frozen=True, slots=True)
class Reading:
    """A run's folder as read: the state of its ledger, and how sound the ledger is."""

    fold: Fold
    inspection: Inspection
    run: Mapping[str, Any]
    """What the run is: `identity`, `spec`, `origins`, `created_at`, and the ledger's `version`."""


def read_fold(folder: Path, otherwise: Mapping[str, Any] | None = None) -> Reading:
    """The state of a run's ledger, which further entries can be added to.

    Args:
        folder: An attempt's folder.
        otherwise: What the run is, in case its files do not say so any more.

    Raises:
        RunError: see `read_run`.
    """
    path = folder / LEDGER
    with file_access(path), _named(path):
        inspection = inspect(path, _is_known)
    head = inspection.chain.head
    run = head["run"] if head else _identity(folder, otherwise)
    if head is None and inspection.damage is None and run.get("version") == VERSION:
        gone = Damage(1, "the beginning of the ledger, or all of it, is missing")
        inspection = Inspection(inspection.chain, 0, gone)
    while True:
        with _sound(folder):
            fold = Fold(
                folder,
                _identified(run["identity"]),
                run["spec"],
                run.get("origins", {}),
                _moment(run["created_at"]),
            )
        odd = _fold_lines(fold, path, inspection)
        if odd is None:
            break
        inspection = inspect(path, _is_known, odd)
    damage = inspection.damage or _end_is_missing(folder, inspection, fold.endings)
    if damage is not None:
        inspection = Inspection(inspection.chain, inspection.good_bytes, damage)
        fold.damage = _described(path, inspection, damage)
    return Reading(fold, inspection, run)


def _fold_lines(fold: Fold, path: Path, inspection: Inspection) -> Damage | None:
    """Adds up the good lines. Returns the first one without a checksum that makes no sense.

    Raises:
        RunError: an entry with a sound checksum makes no sense to this version.
    """
    head = inspection.chain.head
    sealed_from = head["seq"] if head else inspection.chain.lines + 1
    for number, line in _lines(path, inspection.good_bytes):
        try:
            fold.see(json.loads(line))
        except _ODD as exc:
            what = f"({type(exc).__name__}: {exc})"
            if number >= sealed_from:
                raise RunError(
                    f"{path}:{number}: this version cannot read this entry {what}; a newer one has "
                    "written it: update glitchrun"
                ) from exc
            return Damage(number, f"not a ledger entry {what}")
    return None


def _lines(path: Path, upto: int) -> Iterator[tuple[int, bytes]]:
    """The lines in the first `upto` bytes of a ledger, numbered from 1."""
    if not upto:
        return
    with file_access(path), open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if upto <= 0:
                return
            upto -= len(line)
            yield number, line


def _is_known(kind: str) -> bool:
    return hasattr(Fold, f"_see_{kind}")


def _end_is_missing(folder: Path, inspection: Inspection, endings: set[str]) -> Damage | None:
    """Damage where MLflow has an end of the run that the ledger lacks."""
    told = read_delivered(folder).get("ending")
    if told is None or told in endings:
        return None
    what = f"lines are missing at its end: MLflow has the run as {told.partition(' ')[0]}"
    return Damage(inspection.chain.lines + 1, what)


def _described(path: Path, inspection: Inspection, damage: Damage) -> str:
    good = inspection.chain.lines
    before = f"the {good} line{'s' * (good != 1)} before it" if good else "nothing before it"
    return (
        f"{path}:{damage.line}: {damage.what}; {before} {'are' if good > 1 else 'is'} intact. "
        "`glitchrun apply` continues from there and keeps the damaged file; --fresh starts again"
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the path in front of the message about a newer format."""
    try:
        yield
    except NewerLedger as exc:
        raise RunError(f"{path}: {exc}") from exc


@contextmanager
def _sound(folder: Path) -> Iterator[None]:
    """Turns a missing or invalid field of run.json into a message about damaged files."""
    try:
        yield
    except _ODD as exc:
        raise RunError(
            f"{folder}: its files do not fit together ({type(exc).__name__}: {exc}); they were "
            "changed by something other than glitchrun: restore them or start anew with --fresh"
        ) from exc


def read_status(folder: Path) -> str:
    """The status a run's ledger ends with, without reading its batches into memory.

    Raises:
        RunError: see `read_run`.
    """
    path = folder / LEDGER
    with file_access(path), _named(path):
        inspection = inspect(path, _is_known)
    head = inspection.chain.head
    if inspection.damage is not None:
        return DAMAGED
    if head is None or head["seq"] != 1:  # lines without checksums are judged by their fields
        with _sound(folder):
            return read_fold(folder).fold.record().status
    status, endings = "RUNNING", set()
    for _, line in _lines(path, inspection.good_bytes):
        if line.startswith(b'{"kind":"session"'):
            status = "RUNNING"
        elif line.startswith(b'{"kind":"ended"'):
            entry = json.loads(line)
            status = entry["status"]
            endings.add(ending(entry["status"], entry["at"]))
    return DAMAGED if _end_is_missing(folder, inspection, endings) else status


@dataclass
class Fold:
    """The state that the entries of a ledger add up to."""

    folder: Path
    identity: RunIdentity
    spec: Mapping[str, Any]
    origins: Mapping[str, str]
    created_at: int
    status: str = "RUNNING"
    started_at: int | None = None
    ended_at: int | None = None
    model: ModelRecord | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    batches: dict[str, list[TimedBatch]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Metric]] = field(default_factory=dict)
    endings: set[str] = field(default_factory=set)
    """How and when each session ended, as `ending` writes it."""
    damage: str | None = None
    repairs: list[str] = field(default_factory=list)
    elapsed: dict[str, int] = field(default_factory=dict)
    """Milliseconds by step."""
    working: tuple[str, int] | None = None
    """The step that a session is in, and when its last entry was made."""
    loads: list[float] = field(default_factory=list)
    """Seconds of loading the model, by session."""

    def record(self) -> RunRecord:
        return RunRecord(
            folder=self.folder,
            identity=self.identity,
            status=DAMAGED if self.damage else self.status,
            started_at=self.started_at or self.created_at,
            ended_at=None if self.damage else self.ended_at,
            spec=self.spec,
            steps=tuple(_step(step, self) for step in self.spec["steps"]),
            model=self.model,
            plan=self.plan,
            environment=self.environment,
            gates=self.gates,
            notes=dict(self.notes),
            delivered_to=read_delivered(self.folder),
            error=self.damage or self.error,
            origins=self.origins,
            damage=self.damage,
            repairs=tuple(self.repairs),
            loaded_in=sum(self.loads),
        )

    def see(self, entry: Mapping[str, Any]) -> None:
        _moment(entry["at"])
        self._time(entry)
        getattr(self, f"_see_{entry['kind']}")(entry)

    def _see_ledger(self, entry: Mapping[str, Any]) -> None:
        """The chain of checksums begins here; that says nothing about the run."""

    def _see_damaged(self, entry: Mapping[str, Any]) -> None:
        kept = f"; all of it is kept in {entry['kept']}" if entry["kept"] else ""
        self.repairs.append(f"{entry['what']}{kept}")

    def _time(self, entry: Mapping[str, Any]) -> None:
        """Adds the time since the last entry of the step that the session is in."""
        if entry["kind"] == "step":
            self.elapsed.setdefault(entry["step"], 0)
            self.working = (entry["step"], entry["at"])
        elif self.working is None or entry.get("step") != self.working[0]:
            self.working = None  # a session began or ended: what lies between is a pause
        else:
            step, last = self.working
            self.elapsed[step] += max(0, entry["at"] - last)
            self.working = (step, entry["at"])

    def _see_session(self, entry: Mapping[str, Any]) -> None:
        self.loads.append(0.0)
        self.started_at = self.started_at or entry["at"]
        self.status, self.ended_at, self.error = "RUNNING", None, None
        self.plan, self.environment = entry["plan"], entry["environment"]

    def _see_model(self, entry: Mapping[str, Any]) -> None:
        fields = dict(entry["model"])
        fields["unquantized"] = tuple(fields["unquantized"])
        fields["beyond_training"] = tuple(fields.get("beyond_training", ()))
        self.model = ModelRecord(**fields)
        self.loads = [*self.loads[:-1], self.model.load_seconds]

    def _see_step(self, entry: Mapping[str, Any]) -> None:
        self.starts.setdefault(entry["step"], entry["at"])

    def _see_batch(self, entry: Mapping[str, Any]) -> None:
        batch = batch_from_json(entry)
        self.batches.setdefault(entry["step"], []).append(TimedBatch(entry["at"], batch))
        for name, count in batch.counters.items():
            self.notes[name] = self.notes.get(name, 0) + count

    def _see_measured(self, entry: Mapping[str, Any]) -> None:
        metric = Metric(entry["value"], entry["n"])
        self.metrics.setdefault(entry["step"], {})[entry["name"]] = metric

    def _see_step_done(self, entry: Mapping[str, Any]) -> None:
        self.ends[entry["step"]] = entry["at"]

    def _see_gates(self, entry: Mapping[str, Any]) -> None:
        self.gates = tuple(GateResult(**gate) for gate in entry["gates"])

    def _see_ended(self, entry: Mapping[str, Any]) -> None:
        self.status, self.ended_at, self.error = entry["status"], entry["at"], entry.get("error")
        self.endings.add(ending(entry["status"], entry["at"]))


def _step(step: Mapping[str, Any], fold: Fold) -> StepRecord:
    name = step["id"]
    return StepRecord(
        id=name,
        strategy=step["strategy"],
        params={key: value for key, value in step.items() if key not in ("id", "strategy")},
        started_at=fold.starts.get(name),
        ended_at=fold.ends.get(name),
        batches=tuple(fold.batches.get(name, ())),
        metrics=dict(fold.metrics.get(name, {})),
        elapsed=fold.elapsed[name] / 1000 if name in fold.elapsed else None,
    )


def _identity(folder: Path, otherwise: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What run.json says the run is, or else `otherwise`.

    Raises:
        IdentityLost: it says nothing, and neither does `otherwise`.
    """
    path = folder / IDENTITY
    try:
        with file_access(path):
            data = json.loads(read_text(path)) if path.exists() else None
        if not isinstance(data, dict):
            raise ValueError("it is missing" if data is None else "it holds no JSON object")
        if absent := {"identity", "spec", "created_at"} - data.keys():
            raise ValueError(f"it has no {min(absent)!r}")
    except (ValueError, RecursionError) as exc:
        if otherwise is not None:
            return _with_its_id(otherwise, folder)
        raise IdentityLost(
            f"{path}: it does not identify the run ({exc}); restore it, or apply the run's "
            "spec again, which rewrites it"
        ) from exc
    version = data.get("version", 1)
    if isinstance(version, int) and version > VERSION:
        raise RunError(f"{path}: {NewerLedger(version)}")
    return data


def _with_its_id(run: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """`run` with the ledger's id as the delivery noted it: MLflow finds its run again by that."""
    noted = read_delivered(folder).get("ledger")
    return {**run, "identity": {**run["identity"], "ledger": noted}} if noted else run


def _identified(fields: Mapping[str, Any]) -> RunIdentity:
    """Raises TypeError where a field is missing, unknown or of another type."""
    identity = RunIdentity(**fields)
    for name, kind in get_type_hints(RunIdentity).items():
        value = getattr(identity, name)
        if not isinstance(value, kind if isinstance(kind, UnionType) else get_origin(kind) or kind):
            raise TypeError(f"{name} is {value!r:.40}")
    return identity


def _moment(at: Any) -> int:
    """`at` where it is a time in milliseconds since the epoch that a calendar has.

    Raises:
        ValueError: it is not.
    """
    if type(at) is not int or not 0 <= at < _LAST_MOMENT:
        raise ValueError(f"no time: {at!r:.40}")
    return at


def read_delivered(folder: Path) -> dict[str, str]:
    """The MLflow ids of a run, as far as they are noted: a note that cannot be read says nothing,
    and the next delivery finds them again."""
    try:
        data = json.loads(read_text(folder / DELIVERED))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {name: text for name, text in data.items() if isinstance(text, str)}
