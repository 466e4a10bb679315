"""Checks that the longest text of each step fits into the model's positions."""

from __future__ import annotations

from collections.abc import Iterator

from glitchrun.checkpoint.headers import Header
from glitchrun.errors import PreflightError
from glitchrun.plan.positions import Positions, positions
from glitchrun.prompts.detect import detect
from glitchrun.prompts.tokenizer import Tokenizer
from glitchrun.spec.strategy import STRATEGIES, TextLength
from glitchrun.spec.types import Spec
from glitchrun.strategies.prompt_lengths import PromptLengths


def too_long(prompts: PromptLengths, limit: Positions) -> str | None:
    """Why a step of the spec cannot run with these positions, by place; None where all can."""
    over = [(place, length) for place, length in lengths(prompts) if length.total > limit.count]
    return "\n".join(_refusal(place, length, limit) for place, length in over) or None


def refusal(spec: Spec, tokenizer: Tokenizer, header: Header) -> str | None:
    """Why a step of the spec cannot be run on a checkpoint, told by its headers; None where all can
    be, or where it is for loading to say."""
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    limit = positions(header.config, shapes)
    if limit is None or not limit.fixed:
        return None
    config = dict(header.config)
    try:
        template = detect(
            spec.template, tokenizer, config, spec.model.path, spec.template_variables
        )
    except PreflightError:
        return None
    return too_long(PromptLengths(spec, template, tokenizer, config), limit)


def beyond_training(prompts: PromptLengths, limit: Positions) -> tuple[str, ...]:
    """A note for each step whose texts are longer than the model was trained for."""
    return tuple(
        f"{place}: {_positions_text(length)}, {length.total - limit.count} beyond the "
        f"{limit.count} that the model's configuration names; "
        "the model was not trained at these positions"
        for place, length in lengths(prompts)
        if length.total > limit.count
    )


def lengths(prompts: PromptLengths) -> Iterator[tuple[str, TextLength]]:
    """Where the spec sets it, and the longest text, of each step in order.

    A prompt that the template refuses is left to the step, which reports it.
    """
    for index, step in enumerate(prompts.spec.steps):
        strategy = STRATEGIES[step.strategy]
        try:
            found = list(strategy.text_lengths(strategy.configure(step.params), prompts))
        except PreflightError:
            continue
        if found:
            longest = max(found, key=lambda length: length.total)
            yield _place(prompts.spec, f"steps[{index}]", longest.parameter), longest


def _place(spec: Spec, step: str, name: str) -> str:
    origins = spec.origins or {}
    for path in (f"{step}.{name}", f"{step}.id", step, "steps"):
        if path in origins:
            return f"{origins[path]}: {step}.{name}"
    return f"{step}.{name}"


def _refusal(place: str, length: TextLength, limit: Positions) -> str:
    room = limit.count - length.prompt
    remedy = "a shorter prompt (template, system text, probes)"
    if length.new_tokens and room >= 0:
        remedy = f"{length.parameter} of {room + 1} at most, or {remedy}"
    return (
        f"{place}: {_positions_text(length)}, and the model has "
        f"only {limit.count}; use {remedy}, or another model"
    )


def _positions_text(length: TextLength) -> str:
    new = length.new_tokens
    behind = f" and {new} after it ({length.parameter})" if new else ""
    return f"its longest text needs {length.total} positions, {length.prompt} of the prompt{behind}"
