"""The state that the runs of one `apply` share, and the outcome of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

from glitchrun.errors import ExitCode
from glitchrun.ledger import RunRecord
from glitchrun.runner.engine import Engine
from glitchrun.runner.progress import Display
from glitchrun.runner.signals import Interrupt
from glitchrun.spec.types import Experiment


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
