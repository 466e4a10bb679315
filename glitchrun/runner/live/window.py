"""The window of `apply --gui`: a separate process, so that it reacts while the model works.

    python -m glitchrun.runner.live.window

Reads one JSON document per line from standard input, `{"step": ID, "batch": {...}}`, and draws the
step of the last one. Prints `ready` once the window is open; if none can be opened, prints why and
exits with 4. The end of the input is the end of the run; the window stays until the user closes it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any

from glitchrun.errors import ExitCode, PreflightError
from glitchrun.events_json import batch_from_json
from glitchrun.report.figures.generations import curve
from glitchrun.report.figures.style import LIGHT, label, style
from glitchrun.report.formatting import fitness
from glitchrun.runner.live.search_view import SearchView

_BACKENDS = ("TkAgg", "QtAgg", "GTK4Agg", "GTK3Agg", "WXAgg", "macosx")
_EVERY_MS = 200
_SHOWN = 8


def main() -> None:
    """Opens the window, and draws until it is closed.

    Raises:
        SystemExit: no window can be opened.
    """
    with style():
        try:
            plt = _toolkit()
        except PreflightError as error:
            print(str(error), flush=True)
            raise SystemExit(int(ExitCode.PREFLIGHT)) from None
        window = Window(plt.figure(figsize=(9, 6.5), layout="constrained"))
        lines = _incoming()
        animation = _animate(window, lines)
        window.figure.canvas.manager.set_window_title("glitchrun")
        plt.show(block=False)
        plt.pause(0.1)
        print("ready", flush=True)
        _leave_terminal()
        plt.show()
        del animation  # it draws as long as it is referenced


def _leave_terminal() -> None:
    """Closes the output inherited from the caller, whose reader must not wait for the window."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _toolkit() -> Any:
    """pyplot with the first toolkit that can open a window. Raises PreflightError if none can."""
    from matplotlib import pyplot

    own = os.environ.get("MPLBACKEND")
    headless = False
    for name in (own, *_BACKENDS) if own else _BACKENDS:
        try:
            pyplot.switch_backend(name)
        except (ImportError, ValueError) as error:
            headless |= "headless" in str(error)
            continue
        if pyplot.get_backend().lower() != "agg":  # MPLBACKEND may name one without windows
            return pyplot
    raise PreflightError(_reason(headless))


def _reason(headless: bool) -> str:
    """Why no window opens. `headless`: matplotlib found a toolkit, but no display."""
    if sys.platform.startswith("linux"):
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if not display:
            return "there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set"
        if headless:
            return f"the display {display} does not answer"
    return "Python finds no GUI toolkit (Tk, Qt, GTK or wx); Debian has Tk in python3-tk"


def _incoming() -> queue.SimpleQueue[str | None]:
    """A queue of the lines of standard input, with None at the end."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _animate(window: Window, lines: queue.SimpleQueue[str | None]) -> Any:
    from matplotlib.animation import FuncAnimation

    def draw(_: int) -> None:
        changed = False
        while not lines.empty():
            window.take(lines.get())
            changed = True
        if changed:
            window.draw()

    return FuncAnimation(window.figure, draw, interval=_EVERY_MS, cache_frame_data=False)


class Window:
    """The figure: fitness and diversity above, the best sequences below."""

    def __init__(self, figure: Any) -> None:
        """`figure` is a matplotlib figure."""
        self.figure = figure
        self.view: SearchView | None = None
        self.over = False
        panels = figure.subplots(3, 1, height_ratios=(4, 1.3, 3))
        self.above, self.below, self.listing = panels
        self.draw()

    def take(self, line: str | None) -> None:
        """Adds one line of the input; None at its end."""
        if line is None:
            self.over = True
            return
        message = json.loads(line)
        if self.view is None or self.view.step != message["step"]:
            self.view = SearchView(message["step"])
        self.view.take(batch_from_json(message["batch"]))

    def draw(self) -> None:
        """Draws the present state."""
        for axes in (self.above, self.below, self.listing):
            axes.clear()
        self.listing.axis("off")
        self.figure.suptitle(self._title(), x=0.01, ha="left", fontsize=11)
        if self.view and self.view.generations:
            curve(self.above, self.below, self.view.generations, LIGHT["glitch"])
        if self.view and self.view.best:
            self._list(self.view)

    def _title(self) -> str:
        if self.view is None:
            return "the run is over" if self.over else "waiting for the first batch"
        count = f"{self.view.stage} {self.view.done} of {self.view.total or '?'}"
        state = "over" if self.over else count.strip()
        rate = f"{self.view.evaluations:,} evaluations, {self.view.rate:.1f}/s"
        goals = self.view.goals(label)
        return f"{self.view.step} ({state}): {goals}\n{rate}" if goals else self.view.step

    def _list(self, view: SearchView) -> None:
        rows = [
            (
                fitness(row["fitness"]),
                f"{row['target_p']:.3g}",
                "" if row["wanted_p"] is None else f"{row['wanted_p']:.3g}",
                label(row["text"], 60),
            )
            for row in view.best[:_SHOWN]
        ]
        self.listing.table(
            rows,
            colLabels=("fitness", "P(target)", "P(wanted)", "sequence"),
            colWidths=(0.12, 0.12, 0.12, 0.64),
            cellLoc="left",
            loc="upper left",
            edges="horizontal",
        )


if __name__ == "__main__":
    main()
