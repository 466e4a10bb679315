"""What executes the steps of a run: this process, or workers (`runner/ray_pool.py`); and the
`Session` that the runs of one `apply` share. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

from glitchrun.errors import ExitCode
from glitchrun.events import Batch, Event, Sampled, Stage, Verified
from glitchrun.ledger import RunRecord
from glitchrun.ledger.record import ModelRecord
from glitchrun.plan.build import PlannedRun
from glitchrun.runner.models import Models
from glitchrun.runner.progress import Display
from glitchrun.runner.signals import Interrupt
from glitchrun.spec.types import Experiment, Step


@dataclass(frozen=True, slots=True)
class StepTask:
    """A step to execute, and what it may read."""

    step: Step
    path: str
    """The step's path in the spec, such as `steps[0]`."""
    earlier: Mapping[str, Sequence[Batch]]
    """The batches of the steps that it reads, by step id."""
    known: Mapping[int, Sampled]
    """By token id, the attempts that other steps have sampled."""
    history: Callable[[], Sequence[Batch]]
    """Returns the batches of the step that are stored when it is called."""


class Watch(Protocol):
    """Shows a step to the user while it is executed."""

    def begin(self, stage: Stage) -> None:
        """Shows that a stage begins or continues."""

    def staff(self, workers: int) -> None:
        """Shows how many workers share the step from now on."""


class Executor(Protocol):
    """Executes the steps of one run on its model."""

    def events(self, task: StepTask, watch: Watch) -> Iterator[Event]:
        """Yields the new facts of a step. The caller stores each before it asks for the next.

        Raises:
            GlitchrunError: the step failed.
        """

    def measured(self, *, with_categories: bool) -> ModelRecord:
        """The record of the model, see `runner.preparation.Prepared.measured`."""

    def indicators(self, verified: Sequence[Verified]) -> Mapping[str, Any] | None:
        """The indicators of verified tokens, as `report.indicators` stores them; None for a model
        that has none."""

    def check(self) -> None:
        """Checks that the model's files are still those that were loaded.

        Raises:
            ModelUnavailable: one was overwritten.
        """


class Engine(Protocol):
    """Makes the executors of the runs of one `apply`."""

    def executor(
        self, planned: PlannedRun, say: Callable[[str], None], interrupt: Interrupt
    ) -> Executor:
        """Loads the model of a run.

        Raises:
            GlitchrunError: the model or its workers cannot be used.
        """


class InThisProcess:
    """The engine that uses no workers."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def executor(
        self, planned: PlannedRun, say: Callable[[str], None], interrupt: Interrupt
    ) -> Executor:
        """See `Engine`. Imports torch and transformers."""
        from glitchrun.runner.preparation import prepare

        return prepare(planned, self._models, say)


@dataclass(frozen=True)
class Session:
    """State shared by the runs of one `apply`."""

    experiment: Experiment
    root: Path
    """Tracking root."""
    tracking_uri: str
    """The MLflow store, with credentials."""
    parent: str | None
    """Key of the parent run; None for a single run."""
    engine: Engine
    """Executes the steps."""
    display: Display
    interrupt: Interrupt
    fresh: bool
    """Whether to start a new attempt instead of resuming one, and to reuse no step."""
    redo: frozenset[str] = frozenset()
    """Ids of the steps to measure again."""
    redone: dict[str, int] = field(default_factory=dict)
    """The attempts at steps that this `apply` has started anew, by step key."""
    serial: RLock = field(default_factory=RLock)
    """Held by what runs side by side must not do at the same time: figures, and new MLflow runs."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    record: RunRecord
    exit_code: ExitCode
    undelivered: str | None = None
    """Why MLflow does not have all of the run; None if it does."""
