"""The screen of a whole scope, as durable batches and as the scores that they add up to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from glitchrun.events import Batch, Screened
from glitchrun.probing.screen import Screener
from glitchrun.prompts.render import Prompt
from glitchrun.search.base import Scores
from glitchrun.strategies.context import Context

_AT_ONCE = 8
"""Passes between two entries of the ledger."""


def screen(context: Context, prompt: Prompt, history: Sequence[Batch]) -> Iterator[Batch]:
    """Screens the scope by ascending id, going on after the batches in `history`."""
    scope = context.scope()
    done = sum(len(fact.token_ids) for batch in history for fact in batch.screened)
    if done == len(scope):
        return
    start = time.perf_counter()
    screener = Screener(context.backend, prompt, scope, context.spec.seed, context.free_bytes)
    at_once = _AT_ONCE * screener.rows
    while done < len(scope):
        ids = scope[done : done + at_once]
        log_p, gap = screener.screen(ids)
        done += len(ids)
        facts = (Screened(tuple(ids), tuple(log_p), tuple(gap)),)
        seconds, start = time.perf_counter() - start, time.perf_counter()
        yield Batch(facts, done, len(scope), counters={"screens": len(ids)}, search_seconds=seconds)


def scores(batches: Sequence[Batch]) -> Scores:
    """The columns of all screened batches, in order."""
    facts = [fact for batch in batches for fact in batch.screened]
    return Scores(
        np.array([value for fact in facts for value in fact.log_p]),
        np.array([value for fact in facts for value in fact.gap]),
    )
