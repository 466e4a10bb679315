"""Runs `scan` and `test`: verification of a known list of tokens, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glitchrun.events import Batch, Event, Stage
from glitchrun.strategies import phrases
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import judged_controls, scanned_controls
from glitchrun.strategies.judging import Judge, chunked, judged
from glitchrun.strategies.scan import Config as ScanConfig
from glitchrun.strategies.test import Config as TestConfig


def scan(config: ScanConfig, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields verdicts by ascending token id."""
    judge = Judge(context, config.probes, config.batch_size)
    batches = list(history)
    for batch in in_order(context, judge, context.scope(), history):
        batches.append(batch)
        yield batch
    yield from scanned_controls(context, config.controls, batches)


def test(config: TestConfig, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields verdicts in the order in which the tokens are named, or results of phrases."""
    if phrases.takes_phrases(config, context):
        yield from phrases.tested(config, context, history)
        return
    judge = Judge(context, config.probes, config.batch_size, sequential=config.sequential)
    ids = [token.id for token in context.tokens(config.tokens)]
    batches = list(history)
    for batch in in_order(context, judge, ids, history):
        batches.append(batch)
        yield batch
    yield from judged_controls(context, judge, config.controls, batches)


def in_order(
    context: Context, judge: Judge, token_ids: Sequence[int], history: Sequence[Batch]
) -> Iterator[Batch]:
    """Verifies a list of tokens, continuing after the batches in `history`."""
    done = sum(len(batch.token_facts) for batch in history)
    stage = Stage("verification", len(token_ids))
    context.announce(stage)
    for _, batch in judged(context, judge, chunked(token_ids[done:], judge), done, stage):
        yield batch
