"""Ctrl-C and SIGTERM as a flag that is read between batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from glitchrun.errors import ExitCode


class Stopped(BaseException):
    """The user asked to stop; everything finished so far is in the ledger.

    No Exception: it is raised anywhere, also in a library that passes over exceptions.
    """

    def __init__(self, exit_code: ExitCode, at_once: bool = False) -> None:
        super().__init__("stopped")
        self.exit_code = exit_code
        self.at_once = at_once
        """Asked twice: no report is to be waited for."""


class Interrupt:
    """Remembers the first signal; a second one stops at once."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def exit_code(self) -> ExitCode | None:
        """What to end with since a signal has come; None while none has."""
        return None if self._signal is None else _CODES[self._signal]

    def check(self) -> None:
        """Raises Stopped once a signal has come."""
        if self.exit_code is not None:
            raise Stopped(self.exit_code)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise Stopped(_CODES[number], at_once=True)
        self._signal = number
        _announce("stopping after what is in hand; once more to stop at once")


def _announce(message: str) -> None:
    """Writes to standard error from within a signal handler: past Python's streams, whose write may
    be the very call that was interrupted."""
    line = f"\n{message}\n" if os.isatty(2) else f"{message}\n"  # a terminal shows `^C` first
    with suppress(OSError):
        os.write(2, line.encode("ascii"))


_CODES = {int(signal.SIGINT): ExitCode.SIGINT, int(signal.SIGTERM): ExitCode.SIGTERM}


@contextmanager
def listening(interrupt: Interrupt) -> Iterator[None]:
    """Sends SIGINT and SIGTERM to `interrupt` for the length of a `with` block."""
    previous = {number: signal.signal(number, interrupt.receive) for number in _CODES}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
