"""Searches the vocabulary for glitch tokens under a budget of verifications."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glitchrun.events import Batch, Event, Measured, Verified
from glitchrun.probing.statistics import entropy
from glitchrun.prompts.render import Prompt
from glitchrun.search import BUILDERS, Search, Space
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import (
    control_metrics,
    controls_done,
    judged_controls,
)
from glitchrun.strategies.verdicts import Judge, judged, verdict_metrics


@dataclass(frozen=True, slots=True)
class Config:
    search: str = "gradient"
    iterations: int = 50
    batch_size: int = 8
    k: int = 32
    budget: int | None = None
    start: int | None = None
    ranges: tuple[tuple[int, int], ...] | None = None
    groups: tuple[str, ...] | None = None
    patterns: tuple[str, ...] | None = None
    probes: str | tuple[str, ...] = ("repeat",)
    controls: int = 0

    @property
    def limit(self) -> int:
        """Verifications the search may spend."""
        most = self.iterations * self.batch_size
        return most if self.budget is None else min(most, self.budget)


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch an iteration, until the budget is spent or the search is at its end."""
    judge = Judge(context, config.probes, config.batch_size)
    start = time.perf_counter()
    search = BUILDERS[config.search](_space(config, context), config)
    for batch in history:
        if not batch.controls:
            search.update([fact for fact in batch.token_facts if isinstance(fact, Verified)])
    search.counters.clear()  # what the past counted is in its batches
    batches = list(history)
    for batch in _go_on(config, judge, search, batches, time.perf_counter() - start):
        batches.append(batch)
        yield batch
    for batch in judged_controls(context, judge, config.controls, batches):
        batches.append(batch)
        yield batch
    yield from verdict_metrics(batches)
    yield from control_metrics(config.controls, batches)
    yield from _costs(batches)


def _go_on(
    config: Config, judge: Judge, search: Search, history: Sequence[Batch], prepared: float
) -> Iterator[Batch]:
    """The batches after `history`; the first bears the seconds in which the search was prepared."""
    done = history[-1].done if history else 0
    while done < config.limit and not controls_done(history):
        start = time.perf_counter()
        ids = search.propose(min(config.batch_size, config.limit - done))
        seconds, prepared = prepared + time.perf_counter() - start, 0.0
        if not ids:
            return
        verdicts, batch = judged(judge, ids, done, config.limit)
        search.update(verdicts)
        counters = dict(batch.counters) | search.counters
        search.counters.clear()
        yield replace(batch, counters=counters, search_seconds=seconds)
        done = batch.done


def _costs(batches: Sequence[Batch]) -> Iterator[Measured]:
    """What choosing the tokens cost, beside the verifications."""
    n = batches[-1].done if batches else 0
    yield Measured("gradients", sum(batch.counters.get("gradients", 0) for batch in batches), n)
    yield Measured("search_seconds", sum(batch.search_seconds for batch in batches), n)


def _space(config: Config, context: Context) -> Space:
    model = context.backend.model
    prompt = next(iter(context.prompts(config.probes).values()))
    return Space(
        ids=torch.tensor(context.scope(), dtype=torch.long),
        embeddings=model.output_embeddings,
        input_embeddings=model.input_embeddings,
        vocabulary=context.vocabulary,
        seed=context.spec.seed,
        gradient=lambda token_id: _entropy_gradient(context, prompt, token_id),
    )


def _entropy_gradient(context: Context, prompt: Prompt, token_id: int) -> tuple[float, Tensor]:
    return context.backend.gradient(prompt.ids(token_id), prompt.position, entropy)
