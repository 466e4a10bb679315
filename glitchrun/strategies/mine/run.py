"""Runs `mine`: a search proposes tokens and the step verifies them, until the budget is spent."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from glitchrun.events import Batch, Event, Measured, Screened, Stage, Verified
from glitchrun.plan.passes import CHUNK_ROWS
from glitchrun.probing.frozen_suffix import Screener
from glitchrun.probing.logit_statistics import entropy
from glitchrun.prompts.render import Prompt
from glitchrun.search import Cascade, Ordered, Search, Space, build_search, foreseen
from glitchrun.search.base import Scores
from glitchrun.spec.probes import Probes
from glitchrun.spec.searches import SEARCHES
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import (
    controls_done,
    judged_controls,
)
from glitchrun.strategies.judging import Judge, Recipe, batch_of, verified
from glitchrun.strategies.mine import Config

_PASSES_PER_WRITE = 8
"""Forward passes of the screen between two entries of the ledger."""


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch per round, until the budget is spent or the search ends."""
    entry = SEARCHES[config.search]
    together = entry.ends_itself or (entry.ordered and context.backend.pass_rows)
    rows = "auto" if together else config.batch_size
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
    search.counters.clear()  # the batches in `history` already contain these counts
    for batch in _go_on(config, context, judge, search, batches, time.perf_counter() - start):
        batches.append(batch)
        yield batch
    for batch in judged_controls(context, judge, config.controls, batches):
        batches.append(batch)
        yield batch
    yield _left(search, config, context, batches)
    if isinstance(search, Cascade):
        yield from _recall(search, batches)


def _search(space: Space, config: Config) -> Search:
    """The search that the step names; an empty one if no token is in scope."""
    return build_search(config.search, space, config) if len(space.ids) else Ordered(())


def _screened(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Batch]:
    if SEARCHES[config.search].screened:
        yield from _screen(context, config, history)


def _go_on(
    config: Config,
    context: Context,
    judge: Judge,
    search: Search,
    history: Sequence[Batch],
    prepared: float,
) -> Iterator[Batch]:
    """Yields the batches after `history`. The first includes `prepared`, the seconds of set-up."""
    done = Counter[str]()
    for batch in history:
        done[batch.stage] += len(batch.token_facts)
    size = search.size if isinstance(search, Ordered) else len(_scope(config, context))
    limit = size if config.limit is None else min(size, config.limit)
    rounds = _Rounds(context, judge, search)
    while (left := limit - done.total()) > 0 and not controls_done(history):
        start = time.perf_counter()
        context.announce(_stage(config, search, done, left))
        ids = search.propose(min(judge.rows, left))
        seconds, prepared = prepared + time.perf_counter() - start, 0.0
        if not ids:
            return
        stage = _stage(config, search, done, left)  # a cascade may have begun the next one
        context.announce(stage)
        verdicts, batch = rounds.verify(ids, left, done[stage.name], stage)
        search.update(verdicts)
        counters = dict(batch.counters) | search.counters
        search.counters.clear()
        yield replace(batch, counters=counters, search_seconds=seconds)
        done[stage.name] += len(ids)


class _Rounds:
    """Verifies the rounds of a search. Several workers also verify those that will probably follow:
    a wrong guess costs work, and changes no result."""

    def __init__(self, context: Context, judge: Judge, search: Search) -> None:
        self._context = context
        self._judge = judge
        self._search = search
        self._done = 0
        """Tokens that were verified, or verified ahead."""
        self._guesses: deque[list[int]] = deque()
        """The rounds that are being verified, in order."""
        self._answers: Iterator[tuple[list[Verified], Counter[str]]] = iter(())

    def verify(
        self, ids: list[int], left: int, done: int, stage: Stage
    ) -> tuple[list[Verified], Batch]:
        """The verdicts on a round of at most `left` more tokens, and its batch; `done` items of the
        stage precede it."""
        start = time.perf_counter()
        self._verify_ahead(ids, left)
        if not self._guesses or self._guesses[0] != ids:
            self._guesses.clear()
            self._answers = self._context.spread(verified, self._asked(ids, left))
        verdicts, counters = next(self._answers)
        self._guesses.popleft()
        seconds = time.perf_counter() - start
        prompts = {} if done else self._judge.prompts_as_sent()
        return verdicts, batch_of(verdicts, counters, seconds, done + len(ids), stage, prompts)

    def _verify_ahead(self, ids: list[int], left: int) -> None:
        """Fills a pass over a streamed model with the rounds that probably follow, up to as many
        tokens as before: n tokens take about log n passes."""
        if not self._context.backend.pass_rows or self._context.workers.size > 1:
            return
        if self._judge.knows(ids):
            return
        most = min(self._judge.rows, max(CHUNK_ROWS, self._done))
        rounds = foreseen(self._search, ids, self._judge.rows, min(left, most))
        tokens = [token_id for one in rounds for token_id in one]
        self._done += len(tokens)
        if len(tokens) > len(ids):
            self._judge.verify_ahead(tokens)

    def _asked(self, ids: list[int], left: int) -> Iterator[tuple[Recipe, list[int]]]:
        """This round; with several workers also those that probably follow."""
        guessed = self._guesses
        rounds = foreseen(self._search, ids, self._judge.rows, left)
        for one in rounds if self._context.workers.size > 1 else (ids,):
            guessed.append(one)
            yield self._judge.recipe, one


def _stage(config: Config, search: Search, done: Mapping[str, int], left: int) -> Stage:
    """The stage of the search, which may verify `left` more tokens.

    `done` is the number of tokens verified in each stage.
    """
    name, known = search.stage if isinstance(search, Cascade) else ("verification", None)
    most = done[name] + (left if known is None else min(left, known))
    is_known = known is not None or not SEARCHES[config.search].ends_itself
    return Stage(name, most) if is_known else Stage(name, None, most=most)


def _left(search: Search, config: Config, context: Context, batches: Sequence[Batch]) -> Measured:
    """The number of tokens that the search did not reach within its budget."""
    done = sum(len(batch.token_facts) for batch in batches)
    size = search.size if isinstance(search, Ordered) else len(_scope(config, context))
    return Measured("left", size - done, size)


def _recall(search: Cascade, batches: Sequence[Batch]) -> Iterator[Measured]:
    """Recall over the scope's glitch tokens, with its interval; None if no audit began."""
    n = sum(len(batch.token_facts) for batch in batches)
    reached = search.reached
    yield Measured("recall", reached.estimate if reached else None, n)
    yield Measured("recall_low", reached.low if reached else None, n)
    yield Measured("recall_high", reached.high if reached else None, n)


def _prompt(config: Config, context: Context) -> Prompt:
    """The first probe's prompt, which guides the search."""
    return next(iter(context.prompts(config.probes).values()))


def space(config: Config, context: Context, batches: Sequence[Batch]) -> Space:
    """The input of a search. `batches` contain the scores of the screen, if there is one."""
    model, prompt = context.backend.model, _prompt(config, context)
    return Space(
        ids=torch.tensor(_scope(config, context), dtype=torch.long),
        embeddings=model.output_embeddings,
        input_embeddings=model.input_embeddings,
        vocabulary=context.vocabulary,
        seed=context.spec.seed,
        gradient=lambda token_id: _entropy_gradient(context, prompt, token_id),
        limit=context.spec.thresholds.probability,
        scores=_scores(batches) if SEARCHES[config.search].screened else None,
        indicators=context.indicators,
    )


def _scope(config: Config, context: Context) -> list[int]:
    """The tokens that the search may choose from. In a smoke run, `budget` limits the tokens
    verified, and a screen scores no more than those."""
    return context.scope(whole=not SEARCHES[config.search].screened)


def _entropy_gradient(context: Context, prompt: Prompt, token_id: int) -> tuple[float, Tensor]:
    return context.backend.gradient(prompt.ids(token_id), prompt.position, entropy)


def _screen(context: Context, config: Config, history: Sequence[Batch]) -> Iterator[Batch]:
    """Screens the scope by ascending id, from the end of `history`."""
    scope = context.scope()
    done = sum(len(fact.token_ids) for batch in history for fact in batch.screened)
    if done == len(scope):
        return
    start = time.perf_counter()
    stage = Stage("screen", len(scope))
    context.announce(stage)
    screener = _screener(context, config.probes, None)
    rows = screener.rows
    context.tools["screener", config.probes, rows] = screener
    size = rows * (1 if context.backend.screen_rows else _PASSES_PER_WRITE)
    chunks = (scope[place : place + size] for place in range(done, len(scope), size))
    for fact in context.spread(screened, ((config.probes, rows, ids) for ids in chunks)):
        count = len(fact.token_ids)
        done += count
        seconds, start = time.perf_counter() - start, time.perf_counter()
        yield Batch(
            (fact,),
            done,
            stage.total,
            counters={"screens": count, "screen_forwards": -(-count // rows)},
            search_seconds=seconds,
            stage=stage.name,
        )


def screened(context: Context, asked: tuple[Probes, int, Sequence[int]]) -> Screened:
    """The scores of some token ids, by a screen with the first probe in passes of some rows. Any
    worker can compute them."""
    probes, rows, token_ids = asked
    log_p, gap = _screener(context, probes, rows).screen(token_ids)
    return Screened(tuple(token_ids), tuple(log_p), tuple(gap))


def _screener(context: Context, probes: Probes, rows: int | None) -> Screener:
    """A screener with the first probe; `rows` of a pass, or None for what fits."""

    def make() -> Screener:
        prompt = next(iter(context.prompts(probes).values()))
        return Screener(
            context.backend, prompt, context.scope(), context.spec.seed, context.free_bytes, rows
        )

    return context.tool(("screener", probes, rows), make)


def _scores(batches: Sequence[Batch]) -> Scores:
    """The scores of all screened tokens, in order."""
    facts = [fact for batch in batches for fact in batch.screened]
    return Scores(
        np.array([value for fact in facts for value in fact.log_p]),
        np.array([value for fact in facts for value in fact.gap]),
    )
