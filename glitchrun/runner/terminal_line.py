"""The progress of a step as one live line of a terminal."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from glitchrun.runner.step_progress import StepProgress
from glitchrun.terminal import visible

_MOST_NAME = 24
_LEAST_BAR, _MOST_BAR = 8, 40
_STYLES = {
    "percent": "progress.percentage",
    "rate": "progress.data.speed",
    "left": "progress.remaining",
    "elapsed": "progress.elapsed",
}
_EXPENDABLE = ("unit", "rate", "found", "elapsed", "count")
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
        "left": f"{bound}{left}",
        "elapsed": f"{_clock(progress.elapsed)} elapsed",
    }


def _clock(seconds: float) -> str:
    """Seconds as `2:05` or `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
