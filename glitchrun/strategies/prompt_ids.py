"""The token ids that the steps of a run give to the model, known before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from glitchrun.prompts.rows import check_rows
from glitchrun.prompts.template import stop_ids
from glitchrun.spec.types import Step
from glitchrun.strategies import Strategy, configure, load
from glitchrun.strategies.context import Context

PromptIds = tuple[str, Sequence[int]]
"""A description of the ids for messages, and the ids."""


def check_embedding_rows(context: Context, steps: Iterable[Step]) -> None:
    """Raises PreflightError where a step's prompts or the ids that end its texts have no row of
    the embedding."""
    model = context.backend.model
    for step in steps:
        strategy = load(step.strategy)
        config = configure(strategy, step.params)
        for what, ids in prompt_ids(strategy, config, context):
            check_rows(ids, model.vocab_size, model.tokenizer, f"step {step.id}: {what}")


def prompt_ids(strategy: Strategy, config: Any, context: Context) -> Iterator[PromptIds]:
    """The ids of a step's prompts, and the ids that end its answers if it samples any.

    A strategy whose prompts are not just its `probes` defines its own function `prompt_ids`.
    """
    own = getattr(strategy, "prompt_ids", None)
    if own is not None:
        yield from own(config, context)
    elif getattr(config, "probes", None):
        yield from probed(config.probes, context)
    if getattr(config, "max_new_tokens", None):
        model = context.backend.model
        ends = stop_ids(context.template, model.tokenizer) | model.end_ids
        yield "the set of stop ids", sorted(ends)


def probed(probes: str | Sequence[str], context: Context) -> Iterator[PromptIds]:
    """The prompts of probes, without the token."""
    for name, prompt in context.prompts(probes).items():
        what = f"the prompt of probe {name} in template {context.template.name}"
        yield what, (*prompt.prefix_ids, *prompt.suffix_ids)
