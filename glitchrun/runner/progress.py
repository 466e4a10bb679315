"""Progress of a run on standard error: a live line per step in a terminal, else a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Event, RLock, Thread
from typing import TextIO, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from glitchrun.events import Batch, Stage
from glitchrun.runner.step_progress import StepProgress
from glitchrun.terminal import QuietStream, visible, visible_lines

_LEAST_SECONDS, _MOST_SECONDS = 10.0, 60.0
"""Seconds between two lines of a log: the least, and the most even if nothing has changed."""
_FIRST_SECONDS = 2.0
"""Seconds before the first line; a shorter step or loading has none."""
_TICK_SECONDS = 1.0
_REFRESHES_PER_SECOND = 4


class StepDisplay:
    """Shows the progress of one step."""

    def __init__(self, progress: StepProgress) -> None:
        self.progress = progress

    def resume(self, history: Sequence[Batch]) -> None:
        """Shows the batches of earlier sessions."""
        for batch in history:
            self.progress.resume(batch)

    def begin(self, stage: Stage) -> None:
        """Shows the stage that the step announces."""
        self.progress.begin(stage)

    def staff(self, workers: int) -> None:
        """Shows how many workers share the step."""
        self.progress.staff(workers)

    def show(self, batch: Batch) -> None:
        """Shows the progress after a batch that was written to the ledger."""
        self.progress.take(batch)

    def __rich__(self) -> RenderableType:
        return TerminalLine(self.progress)


class Display:
    """Shows messages, and the progress of each step and of loading."""

    def __init__(self) -> None:
        # A closed terminal must not stop the run.
        stream = cast("TextIO", QuietStream(sys.stderr))
        self.console = Console(file=stream, highlight=False)
        self._shown: list[StepDisplay] = []
        self._live: Live | None = None
        self._lock = RLock()

    def of_cell(self, name: str) -> Display:
        """The display of one of several runs side by side: its lines begin with the run's name."""
        return CellDisplay(self, name)

    def say(self, message: str) -> None:
        """Prints one line, above the progress line if there is one."""
        self.console.print(visible_lines(message), markup=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str) -> Iterator[StepDisplay]:
        """Shows the progress of a step inside a `with` block, and then the step's duration."""
        shown = self._step(name)
        try:
            with self._showing(shown):
                yield shown
        except BaseException:
            self.say(shown.progress.line)
            raise
        if self._is_live and (picture := self._left_behind(shown)):
            self.console.print(picture)
        self.say(shown.progress.finished())

    @contextmanager
    def activity(self, name: str) -> Iterator[Callable[[Stage, int], None]]:
        """Shows the progress of work that is no step, such as loading a model.

        Yields the function that takes the present stage and its finished items.
        """
        progress = StepProgress(name)
        with self._showing(StepDisplay(progress)):
            yield progress.count

    def _step(self, name: str) -> StepDisplay:
        return StepDisplay(StepProgress(name))

    def _left_behind(self, shown: StepDisplay) -> RenderableType | None:
        """The line that stays in the terminal after a step; None for no line."""
        return None

    @property
    def _is_live(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _showing(self, shown: StepDisplay) -> AbstractContextManager[object]:
        """Keeps the progress in view inside a `with` block."""
        if self._is_live:
            return self._together(shown)
        return logged(Log(shown.progress, self.say))

    @contextmanager
    def _together(self, shown: StepDisplay) -> Iterator[None]:
        """Keeps everything that is shown at the same time in one live picture."""
        with self._lock:
            self._shown.append(shown)
            if self._live is None:
                self._live = Live(
                    get_renderable=lambda: Group(*self._shown),
                    console=self.console,
                    refresh_per_second=_REFRESHES_PER_SECOND,
                    transient=True,
                )
                self._live.start(refresh=True)
        try:
            yield
        finally:
            with self._lock:
                self._shown.remove(shown)
                if not self._shown and self._live is not None:
                    self._live.stop()
                    self._live = None


class CellDisplay(Display):
    """The display of one of several runs side by side."""

    def __init__(self, inner: Display, cell: str) -> None:
        self._inner = inner
        self._cell = cell

    def say(self, message: str) -> None:
        own = f"{self._cell}: "
        self._inner.say(message if message.startswith(own) else own + message)

    @contextmanager
    def step(self, name: str) -> Iterator[StepDisplay]:
        with self._inner.step(f"{self._cell}: {name}") as shown:
            yield shown

    @contextmanager
    def activity(self, name: str) -> Iterator[Callable[[Stage, int], None]]:
        with self._inner.activity(f"{self._cell}: {name}") as count:
            yield count


class Log:
    """Writes the progress as lines: at most every 10 s, and every minute if nothing changes."""

    def __init__(
        self,
        progress: StepProgress,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._say = say
        self._clock = clock
        self._seen = 0
        self._written = clock() + _FIRST_SECONDS - _LEAST_SECONDS

    def tick(self) -> None:
        """Writes a line if it is time."""
        now = self._clock()
        since = now - self._written
        has_changed = self._progress.changes != self._seen
        if since >= (_LEAST_SECONDS if has_changed else _MOST_SECONDS):
            self._written, self._seen = now, self._progress.changes
            self._say(self._progress.line)


@contextmanager
def logged(log: Log) -> Iterator[None]:
    """Writes the lines of `log` from a thread inside a `with` block."""
    ended = Event()

    def write() -> None:
        while not ended.wait(_TICK_SECONDS):
            log.tick()

    writer = Thread(target=write, name="progress", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


_MOST_NAME = 24
_LEAST_BAR, _MOST_BAR = 8, 40
_STYLES = {
    "percent": "progress.percentage",
    "rate": "progress.data.speed",
    "left": "progress.remaining",
    "elapsed": "progress.elapsed",
}
_EXPENDABLE = ("unit", "workers", "rate", "found", "elapsed", "count")
"""Parts that a narrow terminal omits, in this order."""


class TerminalLine:
    """A rich renderable, as wide as the terminal at most."""

    def __init__(self, progress: StepProgress) -> None:
        self.progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self.progress.lock:
            parts, share = _parts(self.progress), self.progress.share
        gap = 2
        for name in ("", "", *_EXPENDABLE):
            parts.pop(name, None)
            texts = {name: text for name, text in parts.items() if name != "unit" and text}
            if parts.get("count") and parts.get("unit"):
                texts["count"] += f" {parts['unit']}"
            needed = sum(map(cell_len, texts.values())) + gap * (len(texts) - 1)
            if needed <= options.max_width:
                break
            gap = 1
        room = options.max_width - needed - gap
        line = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
        cells: list[Text | ProgressBar] = [
            Text(text, style=_STYLES.get(name, ""), no_wrap=True, overflow="crop")
            for name, text in texts.items()
        ]
        if room >= _LEAST_BAR:
            width = min(room, _MOST_BAR)
            total = None if share is None else 1.0
            cells.insert(1, ProgressBar(total, share or 0.0, width=width, pulse=share is None))
        line.add_row(*cells)
        yield line


def _parts(progress: StepProgress) -> dict[str, str]:
    """The parts of the line by name, in order; what is not known is empty."""
    stage, label = progress.stage, progress.label
    name = visible(progress.name)[:_MOST_NAME]
    total, count = "", ""
    if stage is not None and stage.unit:
        if stage.total is not None:
            total = f"/{stage.total:,}"
        elif stage.most is not None:
            total = f"/max {stage.most:,}"
        count = f"{progress.done:,}{total}"
    left = "" if progress.left is None or progress.share == 1 else f"{_clock(progress.left)} left"
    bound = "max " if left and stage and stage.total is None else ""
    return {
        "name": f"{name}: {label}" if label else name if stage else f"{name}: preparing",
        "percent": progress.percent,
        "count": count,
        "unit": stage.unit if stage else "",
        "found": "" if progress.found is None else f"{progress.found:,} found",
        "rate": progress.rate,
        "workers": progress.workers,
        "left": f"{bound}{left}",
        "elapsed": f"{_clock(progress.elapsed)} elapsed",
    }


def _clock(seconds: float) -> str:
    """Seconds as `2:05` or `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
