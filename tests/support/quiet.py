"""Runs in this process that show nothing, deliver nothing and write no report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glitchrun.ledger.record import RunRecord
from glitchrun.runner import apply as runner
from glitchrun.runner import execute
from glitchrun.runner.progress import Display


class Quiet(Display):
    """Shows nothing; calls `heard` with each line."""

    def __init__(self, heard: Callable[[str], None] = lambda line: None) -> None:
        super().__init__()
        self.console.quiet = True
        self.say = heard  # type: ignore[method-assign]


class NoTracker:
    """Delivers nothing."""

    failure = None
    deleted = False

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def open(self, record: RunRecord) -> None: ...
    def update(self, record: RunRecord) -> None: ...
    def close(self, record: RunRecord) -> None: ...


def without_store_and_report(patch: pytest.MonkeyPatch) -> None:
    """They take seconds per run, and other tests cover them."""
    patch.setattr(execute, "MlflowTracker", NoTracker)
    patch.setattr(execute, "write_report", lambda record: None)
    patch.setattr(runner, "ensure_store", lambda uri, root: None)
    patch.setattr(runner, "_undelivered", lambda record, session: None)
