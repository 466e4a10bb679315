"""From the entries of a ledger to a RunRecord: one method for each kind of entry."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from glitchrun.errors import RunError
from glitchrun.events import Batch
from glitchrun.events_json import batch_from_json
from glitchrun.ledger.identity import parse_time, read_delivered, read_tags, with_study
from glitchrun.ledger.record import (
    GateResult,
    Metric,
    ModelRecord,
    RunIdentity,
    RunRecord,
    StepRecord,
    TimedBatch,
    ending,
    model_from_json,
)
from glitchrun.ledger.step_fold import StepFold, StepView
from glitchrun.ledger.step_store import attempt_folder, read_step
from glitchrun.spec.types import Thresholds

DAMAGED = "DAMAGED"
"""Status of a run whose ledger was altered; the record contains its intact part."""


@dataclass
class Fold:
    """The state of a run after the entries seen so far."""

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
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    """Counters that the run adds for steps that it reuses, by step and name."""
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
    """The step in progress and the time of its last entry."""
    loads: list[float] = field(default_factory=list)
    """Seconds of loading the model, by session."""
    paused: int = 0
    """Milliseconds between the sessions."""
    last_at: int | None = None
    """Time of the last entry."""
    anew: set[str] = field(default_factory=set)
    """Steps of which nothing is reused."""
    views: dict[str, StepView] = field(default_factory=dict)
    """The steps in the store that the run uses, by step id."""

    def record(self) -> RunRecord:
        """The run as its entries describe it."""
        found = (view.damage(name, name in self.ends) for name, view in self.views.items())
        damage = self.damage or next(filter(None, found), None)
        return RunRecord(
            folder=self.folder,
            identity=with_study(self.identity, self.folder),
            status=DAMAGED if damage else self.status,
            started_at=self.started_at or self.created_at,
            ended_at=None if damage else self.ended_at,
            spec=self.spec,
            steps=tuple(self._step(step) for step in self.spec["steps"]),
            model=self.model or self._measured_on(),
            plan=self.plan,
            environment=self.environment,
            gates=self.gates,
            notes=self._counters(),
            delivered_to=read_delivered(self.folder),
            tagged=read_tags(self.folder),
            error=damage or self.error,
            origins=self.origins,
            damage=damage,
            repairs=(*self.repairs, *self._step_repairs()),
            loaded_in=sum(self.loads),
            anew=frozenset(self.anew),
            paused_for=self.paused / 1000,
        )

    def _measured_on(self) -> ModelRecord | None:
        """The model with which the reused steps were measured, where this run loaded none."""
        models = [view.facts.model for view in self.views.values() if view.facts]
        found = next((model for model in reversed(models) if model), None)
        return replace(found, load_seconds=0.0) if found else None

    def _counters(self) -> dict[str, int]:
        counted = Counter(self.notes)
        for (_, name), count in self.counted.items():
            counted[name] += count
        for view in self.views.values():
            counted.update(view.counted())
        return dict(counted)

    def _step_repairs(self) -> list[str]:
        return [line for view in self.views.values() if view.facts for line in view.facts.repairs]

    def _step(self, step: Mapping[str, Any]) -> StepRecord:
        name = step["id"]
        params = {key: value for key, value in step.items() if key not in ("id", "strategy")}
        view = self.views.get(name)
        if view is not None:
            return self._viewed(name, step["strategy"], params, view)
        return StepRecord(
            id=name,
            strategy=step["strategy"],
            params=params,
            started_at=self.starts.get(name),
            ended_at=self.ends.get(name),
            batches=tuple(self.batches.get(name, ())),
            metrics=dict(self.metrics.get(name, {})),
            elapsed=self.elapsed[name] / 1000 if name in self.elapsed else None,
        )

    def _viewed(
        self, name: str, strategy: str, params: Mapping[str, Any], view: StepView
    ) -> StepRecord:
        facts = view.facts
        done = (
            facts is not None
            and name in self.ends
            and facts.finished(view.extent)
            and not facts.damage
        )
        return StepRecord(
            id=name,
            strategy=strategy,
            params=params,
            started_at=facts.started_at if facts else None,
            ended_at=self.ends[name] if done else None,
            batches=view.later(),
            ended=view.progress if done else None,
            metrics=dict(self.metrics.get(name, {})) if done else {},
            elapsed=facts.elapsed_until(view.extent) / 1000 if facts else None,
            spent=facts.spent[self.identity.key, self.identity.attempt] / 1000 if facts else None,
            key=view.key,
            folder=facts.folder if facts else None,
            attempt=view.attempt,
            reused=view.reused,
            origin=facts.origin if facts else "",
        )

    def follow(self, step: str, facts: StepFold) -> None:
        """Reads a step from `facts`, to which a journal adds, and not from the disk."""
        view = self.views[step]
        view.facts, view.followed, view.missing = facts, True, None

    def see(self, entry: Mapping[str, Any], *, is_sealed: bool = True) -> None:
        """Adds one entry.

        Args:
            entry: An entry of a kind for which `is_known_kind` is true.
            is_sealed: Whether a checksum proves that glitchrun wrote the entry. The types of all
                fields of any other entry are checked.

        Raises:
            AttributeError: the kind of entry is unknown.
            KeyError: a field is missing.
            TypeError: a field has another type, or is unknown.
            ValueError: a field has an invalid value.
        """
        parse_time(entry["at"])
        if not is_sealed:
            _check_types(entry)
        self._time(entry)
        if entry["kind"] == "session" and self.loads and self.last_at is not None:
            self.paused += max(0, entry["at"] - self.last_at)
        self.last_at = entry["at"]
        getattr(self, f"_see_{entry['kind']}")(entry)

    def _see_ledger(self, entry: Mapping[str, Any]) -> None:
        """The chain of checksums begins here; the entry does not change the run."""

    def _see_damaged(self, entry: Mapping[str, Any]) -> None:
        kept = f"; all of it is kept in {entry['kept']}" if entry["kept"] else ""
        self.repairs.append(f"{entry['what']}{kept}")

    def _time(self, entry: Mapping[str, Any]) -> None:
        """Adds the time since the last entry to the step in progress."""
        if entry["kind"] == "step":
            self.elapsed.setdefault(entry["step"], 0)
            self.working = (entry["step"], entry["at"])
        elif self.working is None or entry.get("step") != self.working[0]:
            self.working = None  # a session began or ended: the time until the next step is a pause
        else:
            step, last = self.working
            self.elapsed[step] += max(0, entry["at"] - last)
            self.working = (step, entry["at"])

    def _see_session(self, entry: Mapping[str, Any]) -> None:
        self.loads.append(0.0)
        self.started_at = self.started_at or entry["at"]
        self.status, self.ended_at, self.error = "RUNNING", None, None
        self.plan, self.environment = entry["plan"], entry["environment"]
        self.anew.update(entry.get("anew", ()))

    def _see_model(self, entry: Mapping[str, Any]) -> None:
        self.model = model_from_json(entry["model"])
        self.loads = [*self.loads[:-1], self.model.load_seconds]

    def _see_uses(self, entry: Mapping[str, Any]) -> None:
        """The run uses a step in the store, from now on or again."""
        key, attempt = entry["key"], entry["attempt"]
        thresholds = Thresholds(**(self.spec.get("thresholds") or {}))
        view = StepView(key, attempt, entry["extent"], entry["reused"], thresholds)
        root = self.folder.parents[3]
        try:
            view.facts = read_step(attempt_folder(root, key, attempt))
        except RunError as error:
            view.missing = str(error)
        self.views[entry["step"]] = view
        self.ends.pop(entry["step"], None)

    def _see_counted(self, entry: Mapping[str, Any]) -> None:
        self.counted[entry["step"], entry["name"]] = entry["count"]

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
        view = self.views.get(entry["step"])
        if view is not None and "counters" in entry:
            view.counters = entry["counters"]
            view.progress = tuple(entry["progress"]) if entry["progress"] else None

    def _see_gates(self, entry: Mapping[str, Any]) -> None:
        self.gates = tuple(GateResult(**gate) for gate in entry["gates"])

    def _see_ended(self, entry: Mapping[str, Any]) -> None:
        self.status, self.ended_at, self.error = entry["status"], entry["at"], entry.get("error")
        self.endings.add(ending(entry["status"], entry["at"]))


def is_known_kind(kind: str) -> bool:
    """Whether this version can read entries of a kind."""
    return hasattr(Fold, f"_see_{kind}")


_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "session": {"plan": Mapping[str, Any], "environment": Mapping[str, Any]},
    "step": {"step": str},
    "batch": {"step": str},
    "measured": {"step": str, "name": str, "value": float | None, "n": int | None},
    "step_done": {"step": str},
    "ended": {"status": str},
}
"""Types of the plain fields by kind of entry."""


def _check_types(entry: Mapping[str, Any]) -> None:
    """Raises KeyError or TypeError for a field that is missing or of another type."""
    kind = entry["kind"]
    for name, hint in _FIELDS.get(kind, {}).items():
        _check(entry[name], hint, name)
    if kind == "ended":
        _check(entry.get("error"), str | None, "error")
    elif kind == "model":
        _check(model_from_json(entry["model"]), ModelRecord, "model")
    elif kind == "batch":
        _check(batch_from_json(entry), Batch, "batch")
    elif kind == "gates":
        for place, gate in enumerate(entry["gates"]):
            _check(GateResult(**gate), GateResult, f"gates[{place}]")


def _check(value: Any, hint: Any, path: str) -> None:
    """Raises TypeError where `value` or a part of it does not have the type of the annotation."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        fitting = next((one for one in arguments if _is_instance(value, one)), None)
        if fitting is None:
            raise TypeError(f"{path} is {value!r:.40}")
        _check(value, fitting, path)
        return
    if not _is_instance(value, kind):
        raise TypeError(f"{path} is {value!r:.40}")
    if isinstance(kind, type) and is_dataclass(kind):
        for name, inner in _hints(kind).items():
            _check(getattr(value, name), inner, f"{path}.{name}")
    elif kind is tuple:
        for place, item in enumerate(value):
            _check(item, arguments[0], f"{path}[{place}]")
    elif kind is Mapping:
        for key, item in value.items():
            _check(key, arguments[0], f"{path} key")
            _check(item, arguments[1], f"{path}.{key}")


def _is_instance(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Any:
        return True
    if kind is float:  # JSON writes 1.0 as 1 in some programs
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return type(value) is int
    return isinstance(value, kind)


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    known = get_type_hints(kind)
    return {one.name: known[one.name] for one in fields(kind)}
