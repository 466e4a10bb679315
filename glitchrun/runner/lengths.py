"""Checks that the longest text of each step fits into the model's positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.behaviour.catalogue import QUESTIONS, TESTS
from glitchrun.behaviour.scenarios import SCENARIO_QUESTIONS, SCENARIOS
from glitchrun.checkpoint.headers import Header
from glitchrun.errors import PreflightError
from glitchrun.plan.positions import Positions, positions
from glitchrun.plan.work import parameters, profile_workload
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Prompt, render, whole
from glitchrun.prompts.slot import slot
from glitchrun.prompts.template import Template
from glitchrun.prompts.tokenizer import Tokenizer, encode_inside
from glitchrun.spec.probes import PROBES, Probe, probe_names
from glitchrun.spec.types import Spec


@dataclass(frozen=True, slots=True)
class Length:
    """The longest text of a step."""

    place: str
    """Where the spec sets it: file and line, and the parameter."""
    prompt: int
    """Tokens of the prompt."""
    more: int
    """New tokens after the prompt that are run."""
    because: str
    """The parameter that `more` comes from; empty where there is none."""

    @property
    def total(self) -> int:
        return self.prompt + self.more


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What prompts are made with."""

    spec: Spec
    template: Template
    tokenizer: Tokenizer
    config: Any
    """The model's configuration, for the raw format."""


def too_long(given: PromptSettings, limit: Positions) -> str | None:
    """Why a step of the spec cannot be run with these positions, by place; None where all can."""
    over = [length for length in lengths(given) if length.total > limit.count]
    return "\n".join(_refusal(length, limit) for length in over) or None


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
    return too_long(PromptSettings(spec, template, tokenizer, config), limit)


def beyond_training(given: PromptSettings, limit: Positions) -> tuple[str, ...]:
    """A note for each step whose texts are longer than the model was trained for."""
    return tuple(
        f"{length.place}: {_positions_text(length)}, {length.total - limit.count} beyond the "
        f"{limit.count} that the model's configuration names; "
        "the model was not trained at these positions"
        for length in lengths(given)
        if length.total > limit.count
    )


def lengths(given: PromptSettings) -> Iterator[Length]:
    """The longest text of each step, in order. A prompt that the template refuses is left to the
    step, which says so."""
    for place, step in enumerate(given.spec.steps):
        measure = _MEASURES.get(step.strategy)
        if measure is None:
            continue
        try:
            found = list(measure(given, parameters(step)))
        except PreflightError:
            continue
        if found:
            name, prompt, more = max(found, key=lambda one: one[1] + one[2])
            yield Length(_place(given.spec, f"steps[{place}]", name), prompt, more, name)


def _place(spec: Spec, step: str, name: str) -> str:
    origins = spec.origins or {}
    for path in (f"{step}.{name}", f"{step}.id", step, "steps"):
        if path in origins:
            return f"{origins[path]}: {step}.{name}"
    return f"{step}.{name}"


def _refusal(length: Length, limit: Positions) -> str:
    room = limit.count - length.prompt
    remedy = "a shorter prompt (template, system text, probes)"
    if length.more and room >= 0:
        remedy = f"{length.because} of {room + 1} at most, or {remedy}"
    return (
        f"{length.place}: {_positions_text(length)}, and the model has "
        f"only {limit.count}; use {remedy}, or another model"
    )


def _positions_text(length: Length) -> str:
    behind = f" and {length.more} after it ({length.because})" if length.more else ""
    return f"its longest text needs {length.total} positions, {length.prompt} of the prompt{behind}"


Measure = Callable[[PromptSettings, Mapping[str, Any]], Iterator[tuple[str, int, int]]]
"""The parameter that decides, tokens of the prompt, and tokens that are run behind it."""


def _probe(given: PromptSettings, probe: Probe) -> int:
    prompt: Prompt = render(given.template, probe, given.tokenizer, given.spec.system)
    return len(prompt.prefix_ids) + 1 + len(prompt.suffix_ids)


def _probes(given: PromptSettings, params: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    names = params.get("probes", "strict")
    for name in probe_names(names):
        # Of what is sampled, the last token is not run.
        more = max(0, int(params.get("max_new_tokens") or 1) - 1)
        yield "max_new_tokens" if more else "probes", _probe(given, PROBES[name]), more


def _classify(given: PromptSettings, params: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    tests = TESTS if params["tests"] == "all" else params["tests"]
    more = SCENARIOS if params.get("scenarios") == "all" else params.get("scenarios") or ()
    chosen = [TESTS[name] for name in tests]
    chosen += [SCENARIOS[name] for name in more if SCENARIOS[name].name in tests]
    asked = {**QUESTIONS, **SCENARIO_QUESTIONS}
    for name in dict.fromkeys(test.question for test in chosen if test.question):
        probe = Probe(f"classify/{name}", asked[name].user, prefill="")
        yield "max_new_tokens", _probe(given, probe), int(params["max_new_tokens"]) - 1


def _predict(given: PromptSettings, params: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    for place, prompt in enumerate(params["prompts"]):
        expected = _expected(given, prompt)
        said = max(0, int(params.get("max_new_tokens") or 1) - 1)
        name = "max_new_tokens" if said > expected else f"prompts[{place}]"
        for form in params.get("formats", ("raw", "chat")):
            yield name, _written(given, prompt, form), max(said, expected)


def _expected(given: PromptSettings, prompt: Mapping[str, Any]) -> int:
    """Tokens of the expected text that are run: all but its last."""
    text = prompt.get("expected")
    return max(0, len(encode_inside(given.tokenizer, f" {text}")) - 1) if text else 0


def _written(given: PromptSettings, prompt: Mapping[str, Any], form: str) -> int:
    kind, _, space = form.partition("-")
    prefill = " " if space else ""
    if kind == "chat":
        user, system = prompt.get("chat", prompt["text"]), given.spec.system
        return len(whole(given.template, user, given.tokenizer, system, prefill)[1])
    return len(whole(_raw(given), prompt["text"], given.tokenizer, prefill=prefill)[1])


def _raw(given: PromptSettings) -> Template:
    return detect("raw", given.tokenizer, given.config, given.spec.model.path)


def _genetic(given: PromptSettings, params: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    text, prefill = params["base_text"], params.get("prefill") or ""
    if params.get("format", "chat") == "chat":
        place = slot(given.template, text, given.tokenizer, given.spec.system, prefill)
    else:
        place = slot(_raw(given), text + prefill, given.tokenizer)
    yield "max_tokens", len(place.prefix_ids) + len(place.suffix_ids), int(params["max_tokens"])


def _check(given: PromptSettings, params: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    checks = params.get("checks") or ()
    if "verification" in checks:
        yield from _probes(given, {"max_new_tokens": params["max_new_tokens"]})
    if {"prediction", "chat"}.intersection(checks):
        yield from _predict(given, {"prompts": params["prompts"]})


def _profile(given: PromptSettings, params: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    load = profile_workload(params)
    yield "workload", load["prompt_tokens"], load["new_tokens"]


_MEASURES: Mapping[str, Measure] = {
    "check": _check,
    "classify": _classify,
    "genetic": _genetic,
    "mine": _probes,
    "predict": _predict,
    "profile": _profile,
    "scan": _probes,
    "test": _probes,
    "validate": _probes,
}
