"""Checks that the longest text of each step fits into the model's positions. `refusal` works from
the checkpoint's headers, before the model is loaded; `too_long` and `beyond_training` check the
loaded model."""

from __future__ import annotations

from collections.abc import Iterator

from glitchrun.checkpoint.headers import Header
from glitchrun.errors import PreflightError
from glitchrun.plan.positions import Positions, positions
from glitchrun.plan.work import parameters
from glitchrun.prompts.detect import detect
from glitchrun.prompts.tokenizer import Tokenizer
from glitchrun.spec.probes import resolved
from glitchrun.spec.strategy import STRATEGIES, TextLength
from glitchrun.spec.types import Spec
from glitchrun.strategies.prompt_lengths import PromptLengths


def too_long(prompts: PromptLengths, limit: Positions) -> str | None:
    """Why steps of the spec do not fit into these positions, one line each; None if all fit."""
    over = [(place, length) for place, length in lengths(prompts) if length.total > limit.count]
    return "\n".join(_refusal(place, length, limit) for place, length in over) or None


def has_fixed_positions(header: Header) -> bool:
    """Whether texts beyond some length fail on a checkpoint."""
    limit = _positions(header)
    return limit is not None and limit.fixed


def _positions(header: Header) -> Positions | None:
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    return positions(header.config, shapes)


def refusal(spec: Spec, tokenizer: Tokenizer, header: Header) -> str | None:
    """Why steps of the spec do not fit into the positions of a checkpoint, by its headers.

    None if all fit, the limit is not fixed, or the template cannot be detected before loading.
    """
    limit = _positions(header)
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


def parts(spec: Spec, tokenizer: Tokenizer, header: Header) -> tuple[int, int] | None:
    """The largest number of positions of a probe's shared prefix, and of the rest of its prompt
    from the token on. Of a step without probes, the latter is its longest text.

    None if no step has a text, or the template cannot be detected before loading.
    """
    config = dict(header.config)
    try:
        template = detect(
            spec.template, tokenizer, config, spec.model.path, spec.template_variables
        )
        prompts = PromptLengths(spec, template, tokenizer, config)
        found: list[tuple[int, int]] = []
        for step in spec.steps:
            if probes := resolved(parameters(step).get("probes"), step.probes):
                found += prompts.parts_of(probes)
                continue
            strategy = STRATEGIES[step.strategy]
            texts = strategy.text_lengths(strategy.config_of(step), prompts)
            found += [(0, length.total) for length in texts]
    except PreflightError:
        return None
    return (max(p for p, _ in found), max(s for _, s in found)) if found else None


def beyond_training(prompts: PromptLengths, limit: Positions) -> tuple[str, ...]:
    """A note for each step with a text longer than the positions in the model's configuration."""
    return tuple(
        f"{place}: {_positions_text(length)}, {length.total - limit.count} beyond the "
        f"{limit.count} in the model's configuration; "
        "the model was not trained at these positions"
        for place, length in lengths(prompts)
        if length.total > limit.count
    )


def lengths(prompts: PromptLengths) -> Iterator[tuple[str, TextLength]]:
    """The longest text of each step in order, and the place in the spec that sets its length.

    A prompt that the template refuses is skipped; the step reports it.
    """
    for index, step in enumerate(prompts.spec.steps):
        strategy = STRATEGIES[step.strategy]
        try:
            found = list(strategy.text_lengths(strategy.config_of(step), prompts))
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
    if length.parameter.startswith("tokens."):
        remedy = "shorter phrases, or probes that contain them less often"
    if length.parameter == "max_new_tokens" and length.new_tokens and room >= 0:
        remedy = f"{length.parameter} of {room + 1} at most, or {remedy}"
    return (
        f"{place}: {_positions_text(length)}, and the model has "
        f"only {limit.count}; use {remedy}, or another model"
    )


def _positions_text(length: TextLength) -> str:
    new = length.new_tokens
    named = f" ({length.parameter})" if length.parameter == "max_new_tokens" else ""
    answer = f" and {new} after it{named}" if new else ""
    return f"its longest text needs {length.total} positions, {length.prompt} of the prompt{answer}"
