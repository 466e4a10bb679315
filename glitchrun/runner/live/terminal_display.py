"""Draws a search in the terminal: fitness, diversity and the best sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from glitchrun.events import Batch
from glitchrun.report.formatting import fitness, spelled
from glitchrun.runner.live.search_view import Row, SearchView
from glitchrun.runner.progress import Display, StepDisplay
from glitchrun.runner.step_progress import StepProgress

_HEIGHT = 9
_SPARKS = "▁▂▃▄▅▆▇█"
_FULL, _ASCII = ("━", "╌"), ("*", "-")
"""Marks of the best and the mean fitness."""


class LiveDisplay(Display):
    """Draws genetic searches as they run; other steps get their progress line."""

    def _step(self, name: str) -> StepDisplay:
        return _LiveStep(StepProgress(name))

    def _left_behind(self, shown: StepDisplay) -> RenderableType | None:
        return shown.picture if isinstance(shown, _LiveStep) else None


class _LiveStep(StepDisplay):
    def __init__(self, progress: StepProgress) -> None:
        super().__init__(progress)
        self._view = SearchView(progress.name)

    @property
    def picture(self) -> Picture | None:
        """The picture of the search; None before its first batch, and for other steps."""
        return None if self._view.start is None else Picture(self._view)

    def resume(self, history: Sequence[Batch]) -> None:
        super().resume(history)
        for batch in history:
            self._view.take(batch)

    def show(self, batch: Batch) -> None:
        with self.progress.lock:
            self._view.take(batch)
        super().show(batch)

    def __rich__(self) -> RenderableType:
        line = super().__rich__()
        return line if self.picture is None else Group(line, self.picture)


class Picture:
    """A rich renderable of a search, as wide as the terminal."""

    def __init__(self, view: SearchView) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = max(20, options.max_width - 4)
        parts: list[RenderableType] = []
        if self.view.generations:
            parts += [*_curve(self.view.generations, inner, options.ascii_only), Text("")]
        if self.view.best:
            parts.append(_table(self.view.best, options.ascii_only))
        title = Text(f"{self.view.step}: {_plain(self.view.goals(spelled), options.ascii_only)}")
        rate = f"{self.view.evaluations:,} evaluations, {self.view.rate:.1f}/s"
        yield Panel(Group(*parts), title=title, title_align="left", subtitle=rate)


def _curve(rows: Sequence[Row], width: int, ascii_only: bool) -> Iterator[Text]:
    """Best and mean fitness over the generations, with a line of diversity below."""
    columns = _spread(rows, max(4, width - 16))
    series = {name: [row[name] for row in columns] for name in ("best", "mean")}
    low, high = min(series["mean"]), max(series["best"])
    marks = _ASCII if ascii_only else _FULL
    lines = [[(" ", "")] * len(columns) for _ in range(_HEIGHT)]
    for name, mark, look in (("mean", marks[1], "dim"), ("best", marks[0], "bold green")):
        for column, value in enumerate(series[name]):
            share = (value - low) / (high - low) if high > low else 1.0
            lines[round((1 - share) * (_HEIGHT - 1))][column] = (mark, look)
    ends = {0: f"{high:8.4f}", _HEIGHT - 1: f"{low:8.4f}"}
    for place, cells in enumerate(lines):
        yield Text.assemble((ends.get(place, " " * 8), "dim"), " ", *cells)
    last = rows[-1]
    yield Text(
        f"{'':8} generation {last['generation']}: {marks[0]} best {fitness(last['best'])}  "
        f"{marks[1]} mean {last['mean']:.4f}  mutation {last['mutation'] or 0:.2f}"
    )
    if not ascii_only:
        sparks = "".join(_SPARKS[min(7, int(8 * row["diversity"]))] for row in columns)
        yield Text.assemble(("diverse  ", "dim"), sparks, f" {last['diversity']:.2f}")
    else:
        yield Text(f"{'':8} diversity {last['diversity']:.2f}")


def _spread(rows: Sequence[Row], columns: int) -> list[Row]:
    """`columns` evenly spaced rows, the last one included; few rows are repeated."""
    return [rows[round(place * (len(rows) - 1) / (columns - 1))] for place in range(columns)]


def _table(best: Sequence[Row], ascii_only: bool) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("fitness", justify="right", no_wrap=True)
    table.add_column("P(target)", justify="right", no_wrap=True)
    wanted = any(row["wanted_p"] is not None for row in best)
    if wanted:
        table.add_column("P(wanted)", justify="right", no_wrap=True)
    table.add_column("sequence", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in best:
        numbers = [row["target_p"], *([row["wanted_p"]] if wanted else [])]
        text = Text(_plain(spelled(row["text"]), ascii_only))
        table.add_row(fitness(row["fitness"]), *(f"{p:.3g}" for p in numbers), text)
    return table


def _plain(text: str, ascii_only: bool) -> str:
    return text.encode("ascii", "backslashreplace").decode() if ascii_only else text
