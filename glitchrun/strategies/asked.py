"""What the steps of a run put in front of the model, known before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from glitchrun.prompts.rows import hold
from glitchrun.prompts.template import stop_ids
from glitchrun.spec.types import Step
from glitchrun.strategies import Strategy, configure, load
from glitchrun.strategies.context import Context

Asked = tuple[str, Sequence[int]]
"""What the ids are, as a message names it, and the ids."""


def hold_against_rows(context: Context, steps: Iterable[Step]) -> None:
    """Raises PreflightError where a step's prompts or the ids that end its texts have no row of
    the embedding."""
    model = context.backend.model
    for step in steps:
        strategy = load(step.strategy)
        config = configure(strategy, step.params)
        for what, ids in asked(strategy, config, context):
            hold(ids, model.vocab_size, model.tokenizer, f"step {step.id}: {what}")


def asked(strategy: Strategy, config: Any, context: Context) -> Iterator[Asked]:
    """What a step asks: its prompts, and the ids at which its texts end where it samples any.

    A strategy that asks more than its `probes` says so itself, in a function `asked`.
    """
    own = getattr(strategy, "asked", None)
    if own is not None:
        yield from own(config, context)
    elif getattr(config, "probes", None):
        yield from probed(config.probes, context)
    if getattr(config, "max_new_tokens", None):
        model = context.backend.model
        ends = stop_ids(context.template, model.tokenizer) | model.end_ids
        yield "what ends an answer", sorted(ends)


def probed(probes: str | Sequence[str], context: Context) -> Iterator[Asked]:
    """The prompts of probes, without the token."""
    for name, prompt in context.prompts(probes).items():
        what = f"the prompt of probe {name}, written as template {context.template.name} has it,"
        yield what, (*prompt.prefix_ids, *prompt.suffix_ids)
