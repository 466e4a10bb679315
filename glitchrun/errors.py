"""The errors a user can cause, and the exit code each one ends a command with.

    GlitchrunError                  1   something a message can explain
    ├── RunError                    1   the run started and could not go on
    ├── Interrupted                 130 a second signal stopped everything at once (SIGTERM: 143)
    ├── UsageError                  2   the command line makes no sense
    ├── InvalidSpec                 3   the spec has problems; carries every one of them
    └── PreflightError              4   the spec is fine, the surroundings are not
        ├── MissingExtra                an optional package is not installed
        ├── ModelUnavailable            no such model, or one that may not be loaded
        ├── DoesNotFit                  the model's memory exceeds what is free, or the spec's
        │                               token ids its vocabulary
        ├── TrackingUnavailable         the MLflow store cannot be reached or written
        │   └── DeletedInMlflow         somebody deleted there what is to be delivered
        └── RunLocked                   another process is executing the same run

Messages name the file, the value and the remedy. Anything that is not a GlitchrunError is a defect
of glitchrun and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glitchrun.spec.problems import Problem


class ExitCode(IntEnum):
    """Exit codes of every command (see docs/commands.md)."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    SPEC_INVALID = 3
    PREFLIGHT = 4
    GATE_FAILED = 5
    GATE_INCONCLUSIVE = 6
    INCOMPLETE = 7
    CHANGES_PENDING = 10
    SIGINT = 130
    SIGTERM = 143


class GlitchrunError(Exception):
    """Base of every error that ends a command with a message instead of a traceback."""

    exit_code = ExitCode.ERROR


class RunError(GlitchrunError):
    """The run started and could not go on."""


class Interrupted(GlitchrunError):
    """A second signal stopped everything at once; what was finished is in the ledger."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__("stopped at once; apply again to go on where it was")
        self.exit_code = exit_code


class UsageError(GlitchrunError):
    """The command line makes no sense."""

    exit_code = ExitCode.USAGE


class InvalidSpec(GlitchrunError):
    """The spec has problems; `problems` holds every one of them, sorted by place."""

    exit_code = ExitCode.SPEC_INVALID

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class PreflightError(GlitchrunError):
    """The spec is fine, the surroundings are not."""

    exit_code = ExitCode.PREFLIGHT


class MissingExtra(PreflightError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str = "run") -> None:
        super().__init__(
            f"this command needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'glitchrun[{extra}]'"
        )


class ModelUnavailable(PreflightError):
    """No such model, or one that may not be loaded as the spec stands."""


class DoesNotFit(PreflightError):
    """The model's memory exceeds what is free, or the spec's token ids its vocabulary."""


class TrackingUnavailable(PreflightError):
    """The MLflow store cannot be reached or written."""


class DeletedInMlflow(TrackingUnavailable):
    """Somebody deleted in MLflow what is to be delivered, and it stays so unless asked for."""


class RunLocked(PreflightError):
    """Another process is executing the same run."""
