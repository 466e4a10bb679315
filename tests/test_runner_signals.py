"""Signal handlers of a run."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

from glitchrun.runner.signals import Interrupt, listening


def test_a_run_in_another_thread_leaves_the_signal_handlers_alone() -> None:
    def inside() -> object:
        with listening(Interrupt()):
            return signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(inside).result() == before
