"""From a run's folder to its RunRecord."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError
from glitchrun.events import batch_from_json
from glitchrun.ledger.files import DELIVERED, IDENTITY, damaged, entries
from glitchrun.ledger.record import (
    GateResult,
    Metric,
    ModelRecord,
    RunIdentity,
    RunRecord,
    StepRecord,
    TimedBatch,
)


def read_run(folder: Path) -> RunRecord:
    """The run that a folder holds.

    Raises:
        RunError: the folder holds no run, or files that something else has changed.
    """
    with _sound(folder):
        return read_fold(folder).record()


def read_fold(folder: Path) -> Fold:
    """The state of a run's ledger, which further entries can be added to."""
    with _sound(folder):
        data = _identity(folder)
        fold = Fold(
            folder,
            RunIdentity(**data["identity"]),
            data["spec"],
            data.get("origins", {}),
            data["created_at"],
        )
        for entry in entries(folder):
            fold.see(entry)
        return fold


@contextmanager
def _sound(folder: Path) -> Iterator[None]:
    """Takes a missing or odd field in a run's files for what it is: damage from outside."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        what = f"its files do not fit together ({type(exc).__name__}: {exc})"
        raise damaged(str(folder), what) from exc


def read_status(folder: Path) -> str:
    """The status a run's ledger ends with, without reading its batches into memory."""
    status = "RUNNING"
    for entry in entries(folder):
        if entry["kind"] == "ended":
            status = entry["status"]
        elif entry["kind"] == "session":
            status = "RUNNING"
    return status


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

    def record(self) -> RunRecord:
        return RunRecord(
            folder=self.folder,
            identity=self.identity,
            status=self.status,
            started_at=self.started_at or self.created_at,
            ended_at=self.ended_at,
            spec=self.spec,
            steps=tuple(_step(step, self) for step in self.spec["steps"]),
            model=self.model,
            plan=self.plan,
            environment=self.environment,
            gates=self.gates,
            notes=dict(self.notes),
            delivered_to=_delivered(self.folder),
            error=self.error,
            origins=self.origins,
        )

    def see(self, entry: Mapping[str, Any]) -> None:
        getattr(self, f"_see_{entry['kind']}")(entry)

    def _see_session(self, entry: Mapping[str, Any]) -> None:
        self.started_at = self.started_at or entry["at"]
        self.status, self.ended_at, self.error = "RUNNING", None, None
        self.plan, self.environment = entry["plan"], entry["environment"]

    def _see_model(self, entry: Mapping[str, Any]) -> None:
        fields = dict(entry["model"])
        fields["unquantized"] = tuple(fields["unquantized"])
        self.model = ModelRecord(**fields)

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
    )


def _identity(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITY
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise RunError(f"{folder} holds no run: {IDENTITY} is missing") from exc
    except ValueError as exc:
        raise RunError(f"{path} cannot be read: {exc}") from exc
    return data


def _delivered(folder: Path) -> dict[str, str]:
    path = folder / DELIVERED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
