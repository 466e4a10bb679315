"""The screen of a whole scope, as durable batches and as the scores that they add up to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from glitchrun.events import Batch, Measured, Screened, Verified
from glitchrun.probing.frozen_suffix import Screener
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


def agreement(batches: Sequence[Batch]) -> Measured:
    """The share of the verdicts of the first probe that the screen foresaw.

    A model may carry the token to its answer by way of the positions in between, which the screen
    holds frozen: then it foresees nothing, and its order is worth little.
    """
    passing = {token_id: gap == 0 for token_id, gap in _gaps(batches).items()}
    verdicts = [
        (fact.token.id, next(iter(fact.probes.values())).passed)
        for batch in batches
        for fact in batch.token_facts
        if isinstance(fact, Verified)
    ]
    foreseen = sum(passing[token_id] == passed for token_id, passed in verdicts)
    n = len(verdicts)
    return Measured("screen_agreement", foreseen / n if n else None, n)


def _gaps(batches: Sequence[Batch]) -> Mapping[int, float]:
    facts = (fact for batch in batches for fact in batch.screened)
    return {i: gap for fact in facts for i, gap in zip(fact.token_ids, fact.gap, strict=True)}
