"""Ctrl-C and SIGTERM as a flag that is read between batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
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
        self._announce("stopping after what is in hand; once more to stop at once")


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
