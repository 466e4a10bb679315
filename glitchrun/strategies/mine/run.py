"""Runs `mine`: the search proposes tokens, which are verified, until its budget is spent."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from glitchrun.events import Batch, Event, Measured, Verified
from glitchrun.probing.logit_statistics import entropy
from glitchrun.prompts.render import Prompt
from glitchrun.search import Cascade, Ordered, Search, Space, build_search
from glitchrun.spec.searches import SEARCHES
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import (
    control_metrics,
    controls_done,
    judged_controls,
)
from glitchrun.strategies.mine import Config
from glitchrun.strategies.mine.screening import agreement, scores, screen
from glitchrun.strategies.verdicts import Judge, judged, verdict_metrics


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch an iteration, until the budget is spent or the search is at its end."""
    rows = "auto" if SEARCHES[config.search].ends_itself else config.batch_size
    judge = Judge(context, config.probes, rows)
    batches = list(history)
    for batch in _screened(config, context, history):
        batches.append(batch)
        yield batch
    start = time.perf_counter()
    search = _search(space(config, context, batches), config)
    for batch in history:
        if not batch.is_of_controls:
            search.update([fact for fact in batch.token_facts if isinstance(fact, Verified)])
    search.counters.clear()  # what the past counted is in its batches
    for batch in _go_on(config, judge, search, batches, time.perf_counter() - start):
        batches.append(batch)
        yield batch
    for batch in judged_controls(context, judge, config.controls, batches):
        batches.append(batch)
        yield batch
    yield from verdict_metrics(batches)
    yield from control_metrics(config.controls, batches)
    yield from _costs(batches)
    yield _left(search, context, batches)
    if SEARCHES[config.search].screened:
        yield agreement(batches)
    if isinstance(search, Cascade):
        yield from _recall(search, batches)


def _search(space: Space, config: Config) -> Search:
    """The search that the step asks for; without a token in scope, one that is at its end."""
    return build_search(config.search, space, config) if len(space.ids) else Ordered(())


def _screened(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Batch]:
    if SEARCHES[config.search].screened:
        yield from screen(context, _prompt(config, context), history)


def _go_on(
    config: Config, judge: Judge, search: Search, history: Sequence[Batch], prepared: float
) -> Iterator[Batch]:
    """The batches after `history`; the first bears the seconds in which the search was prepared."""
    before = sum(len(fact.token_ids) for batch in history for fact in batch.screened)
    done = sum(len(batch.token_facts) for batch in history)
    total = None if config.limit is None else before + config.limit
    limit = sys.maxsize if config.limit is None else config.limit
    while done < limit and not controls_done(history):
        start = time.perf_counter()
        ids = search.propose(min(judge.rows, limit - done))
        seconds, prepared = prepared + time.perf_counter() - start, 0.0
        if not ids:
            return
        verdicts, batch = judged(judge, ids, before + done, total)
        search.update(verdicts)
        counters = dict(batch.counters) | search.counters
        search.counters.clear()
        yield replace(batch, counters=counters, search_seconds=seconds)
        done += len(ids)


def _costs(batches: Sequence[Batch]) -> Iterator[Measured]:
    """What choosing the tokens cost, beside the verifications."""
    n = batches[-1].done if batches else 0
    for name in ("gradients", "screens"):
        yield Measured(name, sum(batch.counters.get(name, 0) for batch in batches), n)
    yield Measured("search_seconds", sum(batch.search_seconds for batch in batches), n)


def _left(search: Search, context: Context, batches: Sequence[Batch]) -> Measured:
    """Tokens that the search would have gone on to: what its budget cut off."""
    done = sum(len(batch.token_facts) for batch in batches)
    size = search.size if isinstance(search, Ordered) else len(context.scope())
    return Measured("left", size - done, size)


def _recall(search: Cascade, batches: Sequence[Batch]) -> Iterator[Measured]:
    """What share of the scope's glitch tokens was found; None where no audit began."""
    n = sum(len(batch.token_facts) for batch in batches)
    reached = search.reached
    yield Measured("recall", reached.estimate if reached else None, n)
    yield Measured("recall_low", reached.low if reached else None, n)
    yield Measured("recall_high", reached.high if reached else None, n)


def _prompt(config: Config, context: Context) -> Prompt:
    """The first probe's prompt, by which a search chooses."""
    return next(iter(context.prompts(config.probes).values()))


def space(config: Config, context: Context, batches: Sequence[Batch]) -> Space:
    """What a search is told of the model; `batches` hold the scores of the screen, if asked for."""
    model, prompt = context.backend.model, _prompt(config, context)
    return Space(
        ids=torch.tensor(context.scope(), dtype=torch.long),
        embeddings=model.output_embeddings,
        input_embeddings=model.input_embeddings,
        vocabulary=context.vocabulary,
        seed=context.spec.seed,
        gradient=lambda token_id: _entropy_gradient(context, prompt, token_id),
        limit=context.spec.thresholds.probability,
        scores=scores(batches) if SEARCHES[config.search].screened else None,
    )


def _entropy_gradient(context: Context, prompt: Prompt, token_id: int) -> tuple[float, Tensor]:
    return context.backend.gradient(prompt.ids(token_id), prompt.position, entropy)
