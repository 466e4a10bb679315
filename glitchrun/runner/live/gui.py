"""The window of `apply --gui`, seen from the run: opened before it, told of every batch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from glitchrun.errors import PreflightError
from glitchrun.events import Batch, batch_to_json
from glitchrun.runner.progress import Display, StepDisplay

_PATIENCE = 60.0
"""Seconds in which a window has to open."""


class WindowDisplay(Display):
    """A display that also shows every batch in a window.

    The run does not depend on the window: once it is closed, the rest goes to `inner` alone.
    """

    def __init__(self, inner: Display) -> None:
        self.inner = inner
        self.console = inner.console
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> None:
        """Opens the window.

        Raises:
            PreflightError: none can be opened here.
        """
        self._process = _start()

    def release(self) -> None:
        """Says the run is over; the window stays until it is closed."""
        if self._process is not None:
            self.say("the window stays until you close it")
            self._let_go()

    def say(self, message: str) -> None:
        self.inner.say(message)

    @contextmanager
    def step(self, name: str) -> Iterator[StepDisplay]:
        with self.inner.step(name) as shown:
            yield _Shown(name, shown, self)

    def tell(self, step: str, batch: Batch) -> None:
        """Sends a batch to the window, where there still is one."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            document = json.dumps({"step": step, "batch": batch_to_json(batch)})
            self._process.stdin.write(document + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.say("the window was closed; the run goes on")
            self._let_go()

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()


class _Shown(StepDisplay):
    """A step's display that tells the window too."""

    def __init__(self, name: str, shown: StepDisplay, display: WindowDisplay) -> None:
        super().__init__()
        self._name = name
        self._shown = shown
        self._display = display

    def show(self, batch: Batch) -> None:
        self._shown.show(batch)
        self._display.tell(self._name, batch)


def _start() -> subprocess.Popen[str]:
    """The window's process, once its window is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "glitchrun.runner.live.window"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C stops the run, and leaves its picture
    )
    said = _first_line(process)
    if said != "ready":
        process.kill()
        process.wait()
        raise PreflightError(
            f"--gui: no window can be opened: {said or 'its process did not start'}. Nothing was "
            "started; --live draws the same in a terminal"
        )
    return process


def _first_line(process: subprocess.Popen[str]) -> str:
    """What the process says first; empty where it says nothing in time."""
    found: list[str] = []
    stream = process.stdout
    assert stream is not None
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(_PATIENCE)
    return found[0].strip() if found else ""
