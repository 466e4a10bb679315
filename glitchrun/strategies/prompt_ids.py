"""Checks that every token id that a run gives to the model has a row of the embedding."""

from __future__ import annotations

from collections.abc import Iterable

from glitchrun.prompts.template import stop_ids
from glitchrun.prompts.tokenizer import check_rows
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Step
from glitchrun.strategies.context import Context


def check_embedding_rows(context: Context, steps: Iterable[Step]) -> None:
    """Checks the ids of every step's prompts, and those that end its answers if it samples any.

    Raises:
        PreflightError: an id has no row of the embedding.
    """
    model = context.backend.model
    for step in steps:
        strategy = STRATEGIES[step.strategy]
        config = strategy.configure(step.params)
        found = [*strategy.prompt_ids(config, context)]
        if getattr(config, "max_new_tokens", None):
            ends = stop_ids(context.template, model.tokenizer) | model.end_ids
            found.append(("the set of stop ids", sorted(ends)))
        for what, ids in found:
            check_rows(ids, model.vocab_size, model.tokenizer, f"step {step.id}: {what}")
