"""Signal handlers of a run."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from glitchrun.runner.signals import Interrupt, Stopped, listening


def test_a_run_in_another_thread_leaves_the_signal_handlers_alone() -> None:
    def inside() -> object:
        with listening(Interrupt()):
            return signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(inside).result() == before


def test_signals_and_their_exit_codes() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        _each_signal_is_heard_and_raised()
    finally:
        signal.signal(signal.SIGHUP, before)


def _each_signal_is_heard_and_raised() -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)):
        interrupt = Interrupt()
        with listening(interrupt):
            signal.raise_signal(number)
        assert interrupt.exit_code == code
        interrupt.check_second()
        with pytest.raises(Stopped):
            interrupt.receive(number, None)
        for check in (interrupt.check_second, interrupt.check):  # as another thread does
            with pytest.raises(Stopped) as stopped:
                check()
            assert stopped.value.at_once


def test_ignored_hangup_stays_ignored() -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        with listening(interrupt):
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.exit_code is None
    finally:
        signal.signal(signal.SIGHUP, before)
