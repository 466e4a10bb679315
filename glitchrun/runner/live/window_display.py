"""Starts the window's process for `apply --gui`, and sends it every batch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from glitchrun.errors import PreflightError
from glitchrun.events import Batch, Stage
from glitchrun.events_json import batch_to_json
from glitchrun.runner.progress import Display, StepDisplay

_PATIENCE = 60.0
"""Seconds to wait for the window."""


class WindowDisplay(Display):
    """A display that also draws searches in a window.

    The run does not depend on the window: after it is closed, `inner` shows the rest alone.
    """

    def __init__(self, inner: Display) -> None:
        super().__init__()
        self.inner = inner
        self.console = inner.console
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> None:
        """Opens the window.

        Raises:
            PreflightError: no window can be opened.
        """
        self._process = _start()

    def release(self) -> None:
        """Ends the connection; the window stays open until the user closes it."""
        if self._process is not None:
            self.say("the window stays until you close it")
            self._disconnect()

    def say(self, message: str) -> None:
        self.inner.say(message)

    @contextmanager
    def step(self, name: str) -> Iterator[StepDisplay]:
        with self.inner.step(name) as shown:
            yield _WindowStep(name, shown, self)

    def send(self, step: str, batch: Batch) -> None:
        """Sends a batch to the window, if it is open."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            document = json.dumps({"step": step, "batch": batch_to_json(batch)})
            self._process.stdin.write(document + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.say("the window was closed; the run continues")
            self._disconnect()

    def _disconnect(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()


class _WindowStep(StepDisplay):
    """A step's display that also sends batches to the window."""

    def __init__(self, name: str, shown: StepDisplay, display: WindowDisplay) -> None:
        super().__init__(shown.progress)
        self._name = name
        self._shown = shown
        self._display = display

    def resume(self, history: Sequence[Batch]) -> None:
        self._shown.resume(history)
        for batch in history:
            self._display.send(self._name, batch)

    def begin(self, stage: Stage) -> None:
        self._shown.begin(stage)

    def show(self, batch: Batch) -> None:
        self._shown.show(batch)
        self._display.send(self._name, batch)


def _start() -> subprocess.Popen[str]:
    """Starts the window's process, and waits for its window."""
    process = subprocess.Popen(
        [sys.executable, "-m", "glitchrun.runner.live.window"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C stops the run and leaves the window
    )
    answer = _first_line(process)
    if answer != "ready":
        process.kill()
        process.wait()
        raise PreflightError(
            f"--gui: no window can be opened: {answer or 'its process did not start'}. Nothing was "
            "started; --live draws the same in a terminal"
        )
    return process


def _first_line(process: subprocess.Popen[str]) -> str:
    """The first line that the process prints; empty if it prints none in time."""
    found: list[str] = []
    stream = process.stdout
    assert stream is not None
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(_PATIENCE)
    return found[0].strip() if found else ""
