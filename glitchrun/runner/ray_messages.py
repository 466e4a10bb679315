"""What workers and the process of `apply` send each other."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from glitchrun.boundary import OUT_OF_MEMORY
from glitchrun.errors import (
    DoesNotFit,
    ExitCode,
    GlitchrunError,
    ModelUnavailable,
    PreflightError,
    RunError,
    RunLocked,
    UsageError,
)

Answer = tuple[str, Any]
"""A kind and its value: `said` a text, `stage` a Stage, `staff` a number of workers, `event` an
event of the step, or `end` None."""
_SAME = ("glitchrun", "torch", "transformers")
"""Packages whose version must be the same in all workers."""


_KINDS: Mapping[str, type[GlitchrunError]] = {
    kind.__name__: kind
    for kind in (RunError, PreflightError, ModelUnavailable, DoesNotFit, RunLocked, UsageError)
}
"""Errors that are made of a message alone."""


class Unprepared(RunError):
    """A worker was lost, and Ray has started it again: it has no model."""

    def __init__(self) -> None:
        super().__init__("the worker was lost while it was not asked for anything")


class NoMemory(RunError):
    """Memory ran out in a worker."""

    def __init__(self) -> None:
        super().__init__(OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class Failed:
    """A GlitchrunError in a worker. The errors themselves cannot be pickled."""

    kind: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, error: GlitchrunError) -> Failed:
        """The message about an error."""
        return cls(type(error).__name__, str(error), int(error.exit_code))

    def error(self, where: str = "") -> GlitchrunError:
        """The error, with `where` before its message."""
        default = PreflightError if self.exit_code == ExitCode.PREFLIGHT else RunError
        kind = _KINDS.get(self.kind, default)
        return kind(where + self.message)


def mismatch(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """How the versions of another worker differ, and the remedy; empty if they agree.

    Args:
        here: What this process is: `host`, `python` and versions by package.
        there: The same of the other worker.
    """
    for name in _SAME:
        own, other = (_public(about.get(name, "")) for about in (here, there))
        if own != other:
            has = f"has {name} {other}" if other else f"has no {name}"
            return f"it {has}, not {own}; run there: pip install '{name}=={own}'"
    return ""


def _public(version: str) -> str:
    """A version without the build that follows a plus sign: `2.13.0+cpu` is `2.13.0`."""
    return version.partition("+")[0]


def about_here() -> dict[str, str]:
    """The versions of this process, as a worker says them."""
    found = {"host": socket.gethostname()}
    for name in _SAME:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
