"""Ctrl-C, SIGTERM and a closed terminal set a flag, which is checked between batches."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from glitchrun.errors import ExitCode


class Stopped(BaseException):
    """The user asked to stop; everything finished so far is in the ledger.

    A BaseException, because libraries in which it is raised may suppress an Exception.
    """

    def __init__(self, exit_code: ExitCode, at_once: bool = False) -> None:
        super().__init__("stopped")
        self.exit_code = exit_code
        self.at_once = at_once
        """Whether a second signal came: then no report is written."""


class Interrupt:
    """Records the first signal; a second one stops immediately."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._second = False

    @property
    def exit_code(self) -> ExitCode | None:
        """The exit code of the signal that came; None if none has."""
        return None if self._signal is None else _CODES[self._signal]

    def check(self) -> None:
        """Checks for a signal.

        Raises:
            Stopped: a signal has come.
        """
        self.check_second()
        if self.exit_code is not None:
            raise Stopped(self.exit_code)

    def check_second(self) -> None:
        """Checks for a second signal. The main thread needs no such check: the signal's handler
        raises there.

        Raises:
            Stopped: it has come.
        """
        if self._second and self.exit_code is not None:
            raise Stopped(self.exit_code, at_once=True)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal.

        Raises:
            Stopped: it is the second one.
        """
        if self._signal is not None:
            self._second = True
            raise Stopped(_CODES[number], at_once=True)
        self._signal = number
        _announce("stopping after the current batch; a second signal stops immediately")


def _announce(message: str) -> None:
    """Writes to standard error in a signal handler. Python's streams cannot be used there: the
    signal may have interrupted one of their writes."""
    line = f"\n{message}\n" if os.isatty(2) else f"{message}\n"  # a terminal shows `^C` first
    with suppress(OSError):
        os.write(2, line.encode("ascii"))


_CODES = {
    int(signal.SIGINT): ExitCode.SIGINT,
    int(signal.SIGTERM): ExitCode.SIGTERM,
    int(signal.SIGHUP): ExitCode.SIGTERM,
}


@contextmanager
def listening(interrupt: Interrupt) -> Iterator[None]:
    """Sends SIGINT, SIGTERM and SIGHUP to `interrupt` inside a `with` block.

    A signal that the process ignores stays ignored, such as SIGHUP under `nohup`. Python sets
    signal handlers in the main thread only. In another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _CODES if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt.receive) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
