"""Wrong config.json files: numbers, types and keys changed at random."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HUGE = (30_000, 10**6, 2**31, 2**31 - 1, 2**40, 2**63, 10**30)
OTHERS = (0, -1, 1, 3, 0.5, 1e308, float("nan"), True, None, "", "two", "8", [], [4], {}, {"a": 1})
NUMBERS = ("num_labels", "max_position_embeddings", "num_experts", "n_inner", "head_dim")
"""Keys that are added where a configuration lacks them."""


def mutated(config: dict[str, Any], seed: int) -> tuple[dict[str, Any], str]:
    """A copy of `config` with one or two keys changed or gone, and what was changed."""
    rng = random.Random(seed)
    changed, notes = copy.deepcopy(config), []
    for _ in range(rng.choice((1, 1, 1, 2))):
        holder = rng.choice([changed, *_inner(changed)])
        key = rng.choice([*holder, *NUMBERS])
        if rng.random() < 0.1 and key in holder:
            del holder[key]
            notes.append(f"{key} gone")
        else:
            holder[key] = copy.deepcopy(rng.choice((*HUGE, *OTHERS)))
            notes.append(f"{key}={holder[key]!r}")
    return changed, ", ".join(notes)


def _inner(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in config.values() if isinstance(value, dict) and value]


class Hang(BaseException):
    """One input took too much time. Not an Exception: nothing may suppress it."""


@contextmanager
def within(seconds: float, *, of_cpu: bool = False) -> Iterator[None]:
    """Raises Hang where the block takes longer on the clock, or more seconds of processor time: a
    guard, not a measurement."""
    timer, number = signal.ITIMER_REAL, signal.SIGALRM
    if of_cpu:
        timer, number = signal.ITIMER_PROF, signal.SIGPROF

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"longer than {seconds} s" + " of processor time" * of_cpu)

    before = signal.signal(number, late)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
