"""Progress of a run on standard error: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glitchrun.events import Batch
from glitchrun.terminal import QuietStream, visible_lines

_EVERY_SECONDS = 10.0
"""Seconds between two lines where standard error is no terminal."""


class Display:
    """Shows messages and the progress of each step."""

    def __init__(self) -> None:
        # A closed terminal must not stop the run.
        stream = cast("TextIO", QuietStream(sys.stderr))
        self.console = Console(file=stream, highlight=False)

    def say(self, message: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        self.console.print(visible_lines(message), markup=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str) -> Iterator[StepDisplay]:
        """Shows the progress of a step inside a `with` block."""
        if not self.console.is_terminal:
            yield _Lines(name, self)
            return
        with bars(self.console) as progress:
            yield Bar(progress, name)


def bars(console: Console) -> Progress:
    """The columns of a progress bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]}"),
        TimeRemainingColumn(),
        console=console,
    )


class StepDisplay:
    """Shows the progress of one step."""

    def __init__(self) -> None:
        self._found = 0
        self._done = 0
        self._timed = 0
        """Items done in `_seconds`, without screened ones, whose time is not part of it."""
        self._seconds = 0.0
        self._about_tokens = False

    def show(self, batch: Batch) -> None:
        """Shows the progress after a batch that was written to the ledger."""
        self._seconds += batch.seconds
        self._timed += 0 if batch.screened else batch.done - self._done
        self._done = batch.done
        facts = batch.token_facts
        self._about_tokens |= bool(facts)
        self._found += sum(fact.flagged for fact in facts)
        rate = self._timed / self._seconds if self._seconds else 0.0
        digits = 1 if rate >= 1 else 3  # slow sampling must not show 0.0/s
        found = f"{self._found} found  " if self._about_tokens else ""
        self._draw(batch, f"{found}{rate:.{digits}f}/s" if rate else "")

    def _draw(self, batch: Batch, found: str) -> None:
        raise NotImplementedError


class Bar(StepDisplay):
    """A progress bar in a terminal."""

    def __init__(self, progress: Progress, name: str) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task(name, total=None, found="")

    def _draw(self, batch: Batch, found: str) -> None:
        self._progress.update(self._task, completed=batch.done, total=batch.total, found=found)


class _Lines(StepDisplay):
    def __init__(self, name: str, display: Display) -> None:
        super().__init__()
        self._name = name
        self._display = display
        self._next = time.monotonic() + _EVERY_SECONDS

    def _draw(self, batch: Batch, found: str) -> None:
        if time.monotonic() < self._next and batch.done != batch.total:
            return
        self._next = time.monotonic() + _EVERY_SECONDS
        total = "" if batch.total is None else f"/{batch.total}"
        self._display.say(f"{self._name}: {batch.done}{total}  {found}")
