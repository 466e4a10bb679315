"""Upper bounds on what each step will do, from its parameters and the vocabulary's size."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from glitchrun.plan.passes import Workload
from glitchrun.spec.defaults import ITERATIONS, step_with_defaults
from glitchrun.spec.probes import PROBES, STRICT, probe_names
from glitchrun.spec.schema import strategies
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.types import Spec, Step

_BYTES_PER_TOKEN = 2
"""Text is rarely cut finer than this."""
_SCREENS_A_PROMPT = 8
"""Tokens screened in the time of one prompt: two of its some 17 positions are run."""
_CONTROLS = 2
"""Controls at most for each one asked for: those of doubtful scripts have one beside them."""
_MOST_QUESTIONS = 8
"""Questions of `classify` that its tests share."""
_SCENARIOS = 16
"""Questions of the further scenarios of `classify`, one each."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """At most so much in one step; None where no bound is known."""

    step: str
    strategy: str
    tokens: int | None
    """Vocabulary entries looked at."""
    prompts: int
    """Prompts whose next-token distribution is taken: one for each token and probe."""
    gradients: int
    continuations: int
    """Sampled continuations: one for each token, attempt and probe."""
    new_tokens: int
    """Tokens generated in all continuations."""
    repeats: int
    """Prompts and continuations that come within rounding and are done once more; by experience
    a few per cent of this bound."""
    caveat: str | None = None
    """When the step comes near these bounds though it usually stays far below them."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


Bound = Callable[[Mapping[str, Any], Mapping[str, int | None], int], dict[str, Any]]
"""From parameters, the tokens of earlier steps and the vocabulary's size to fields of StepWork."""


def step_work(spec: Spec, vocab: int) -> tuple[StepWork, ...]:
    """The bounds for each step of a spec, for a vocabulary of `vocab` entries.

    A strategy that has no entry in `BOUNDS` gets a StepWork whose `tokens` is None.
    """
    done: dict[str, int | None] = {}
    found = []
    for step in spec.steps:
        bound = BOUNDS.get(step.strategy, _unknown)
        work = StepWork(step.id, step.strategy, **bound(parameters(step), done, vocab))
        done[step.id] = work.tokens
        found.append(work)
    return tuple(found)


def workloads(spec: Spec) -> tuple[Workload, ...]:
    """The most demanding passes of each step."""
    system = len((spec.system or "").encode()) // _BYTES_PER_TOKEN
    return tuple(load for step in spec.steps for load in _workloads(step, system))


def parameters(step: Step) -> dict[str, Any]:
    """A step's parameters with the schema's defaults for those that it leaves out."""
    return step_with_defaults({"id": step.id, "strategy": step.strategy, **step.params})


def _workloads(step: Step, system: int) -> Iterator[Workload]:
    params = parameters(step)
    if step.strategy == "predict":
        yield Workload(step.id, batch=1, positions=_longest_prompt(params) + system)
    elif step.strategy == "genetic":
        text = len((params["base_text"] + params["prefill"]).encode()) // _BYTES_PER_TOKEN
        positions = PROBES["repeat"].positions + text + params["max_tokens"] + system
        yield Workload(step.id, batch=None, positions=positions, kind="score")
    elif step.strategy == "profile":
        load = profile_workload(params)
        positions = load["prompt_tokens"] + load["new_tokens"]
        yield Workload(step.id, batch=load["batch_size"], positions=positions)
    else:
        yield from _of_probes(step, params, system)


def _of_probes(step: Step, params: Mapping[str, Any], system: int) -> Iterator[Workload]:
    """The passes of a step that presents tokens in the prompts of probes."""
    asked, search = params.get("batch_size"), SEARCHES.get(params.get("search", ""))
    batch = asked if isinstance(asked, int) and not (search and search.ends_itself) else None
    longest = max(PROBES[name].positions for name in _probes(params))
    positions = longest + system
    controls = bool(params.get("controls"))
    if search and search.screened:
        yield Workload(step.id, batch=None, positions=positions, kind="screen")
    if "max_new_tokens" not in params:
        yield Workload(
            step.id,
            batch,
            positions,
            gradient=bool(search and search.gradients),
            search=params.get("search"),
            verified=_limit(params) if search else None,
            controls=controls,
        )
        return
    yield Workload(
        step=step.id,
        batch=batch,
        positions=positions + params["max_new_tokens"],
        kind="answer" if step.strategy == "classify" else "sample",
        together=_beginning_as_one(step, params),
        controls=controls,
    )


def _beginning_as_one(step: Step, params: Mapping[str, Any]) -> int:
    """Attempts on one token that are always sampled side by side."""
    every = step.strategy == "validate" and not params["sequential"]
    return params["attempts"] if every else 1


def _longest_prompt(params: Mapping[str, Any]) -> int:
    """Positions of the longest prompt with what is expected of it, in any template tried."""
    texts = [
        max(prompt["text"], prompt.get("chat", ""), key=len) + prompt.get("expected", "")
        for prompt in params["prompts"]
    ]
    longest = max(len(text.encode()) for text in texts)
    return PROBES["repeat"].positions + longest // _BYTES_PER_TOKEN


def _probes(params: Mapping[str, Any]) -> Sequence[str]:
    return probe_names(params.get("probes", "strict"))


def _mined(params: Mapping[str, Any], vocab: int) -> int:
    """Tokens that a search verifies at most."""
    limit = _limit(params)
    return vocab if limit is None else min(vocab, limit)


def _limit(params: Mapping[str, Any]) -> int | None:
    """The same by its parameters alone; None where only the vocabulary bounds it."""
    rounds, budget = params.get("iterations"), params.get("budget")
    if SEARCHES[params["search"]].ends_itself or (rounds is None and budget is not None):
        return None if budget is None else int(budget)
    most = int(rounds or ITERATIONS) * int(params["batch_size"])
    return most if budget is None else min(most, int(budget))


def _mine(params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int) -> dict[str, Any]:
    limit = _mined(params, vocab)
    tokens, search = min(limit + _CONTROLS * params["controls"], vocab), SEARCHES[params["search"]]
    if search.screened:
        ends_by_recall = search.ends_itself and params.get("budget") is None
        caveat = _few_found(params["recall"]) if ends_by_recall else None
        screens = vocab // _SCREENS_A_PROMPT
        return _verified(tokens, params, screens=screens) | {"caveat": caveat}
    if not search.gradients:
        return _verified(tokens, params)
    # A round verifies no more than the neighbours it looked at.
    each = min(params["batch_size"], params["k"])
    return _verified(tokens, params, gradients=-(-limit // each))


def _few_found(recall: float) -> str:
    """What a cascade costs where there is little to find: no token may have been missed then."""
    exact = Fraction(str(recall))
    fewest = math.ceil(exact / (1 - exact))
    return (
        f"recall {recall:g} allows none to be missed unless {fewest} or more are found: with "
        "fewer, nearly every token is verified; a budget or a lower recall ends it sooner"
    )


def _scan(params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int) -> dict[str, Any]:
    return _verified(vocab, params)


def _test(params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int) -> dict[str, Any]:
    tokens = _named(params["tokens"], done, vocab) + _CONTROLS * params["controls"]
    return _verified(min(tokens, vocab), params)


def _validate(
    params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int
) -> dict[str, Any]:
    tokens = min(_named(params["tokens"], done, vocab) + _CONTROLS * params["controls"], vocab)
    attempts = params["attempts"] if params["temperature"] else 1
    continuations = tokens * attempts * len(_probes(params))
    return {
        "tokens": tokens,
        "prompts": 0,
        "gradients": 0,
        "continuations": continuations,
        "new_tokens": continuations * params["max_new_tokens"],
        "repeats": continuations,
    }


def _classify(
    params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int
) -> dict[str, Any]:
    named = _named(params["tokens"], done, vocab)
    attempts = params["attempts"] if params["temperature"] else 1
    asked = min(named * (1 + params["controls"]), named + vocab) * attempts
    tests, more = params["tests"], params.get("scenarios") or ()
    questions = _MOST_QUESTIONS if tests == "all" else min(len(tests), _MOST_QUESTIONS)
    questions += _SCENARIOS if more == "all" else len(more)
    continuations = asked * questions
    return {
        "tokens": named,
        "prompts": 0,
        "gradients": 0,
        "continuations": continuations,
        "new_tokens": continuations * params["max_new_tokens"],
        "repeats": continuations,
    }


def _genetic(
    params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int
) -> dict[str, Any]:
    pool = vocab if params.get("pool") is None else _named(params["pool"], done, vocab)
    asked = params["impact_tokens"]
    singles = pool if asked == "all" else min(asked, pool)
    bred = params["population"] * (params["generations"] + 1)
    # And the prompt without a sequence, twice, and once more with the best one.
    counts = {"tokens": singles, "prompts": singles + bred + 3}
    return _nothing() | counts


def _predict(
    params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int
) -> dict[str, Any]:
    # One pass for the distribution; of each spelling of what is expected one for each further
    # token, of which there are no more than bytes, and one for a space.
    each = [1 + 2 * len(prompt.get("expected", "").encode()) for prompt in params["prompts"]]
    each = [one + (params.get("max_new_tokens") or 0) for one in each]
    return _nothing() | {"tokens": 0, "prompts": len(params["formats"]) * sum(each)}


def _profile(
    params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int
) -> dict[str, Any]:
    load = profile_workload(params)
    # Each pass once more to warm up; generating starts from a pass over the prompts.
    passes = load["batch_size"] * (load["repeats"] + 1)
    new_tokens = passes * load["new_tokens"]
    return _nothing() | {"tokens": 0, "prompts": 2 * passes, "new_tokens": new_tokens}


def profile_workload(params: Mapping[str, Any]) -> dict[str, int]:
    """A profile's `workload` with the schema's defaults for what it leaves out."""
    parts = strategies()["profile"]["properties"]["workload"]["properties"]
    given = params.get("workload") or {}
    return {name: given.get(name, part["default"]) for name, part in parts.items()}


def _check(params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int) -> dict[str, Any]:
    glitch, controls = params["glitch"], params["controls"]
    tokens = len(glitch) + (controls if isinstance(controls, int) else len(controls))
    expected = sum(1 + 2 * len(prompt["expected"].encode()) for prompt in params["prompts"])
    continuations = 2 * len(glitch) * params["attempts"] * len(STRICT)
    prompts = 1 + 4 * expected + tokens * len(STRICT)
    return _nothing() | {
        "tokens": tokens,
        "prompts": prompts,
        "continuations": continuations,
        "new_tokens": continuations * params["max_new_tokens"],
        "repeats": prompts + continuations,
    }


def _nothing() -> dict[str, Any]:
    return dict.fromkeys(("prompts", "gradients", "continuations", "new_tokens", "repeats"), 0)


def _unknown(
    params: Mapping[str, Any], done: Mapping[str, int | None], vocab: int
) -> dict[str, Any]:
    return _nothing() | {"tokens": None}


BOUNDS: Mapping[str, Bound] = {
    "check": _check,
    "classify": _classify,
    "genetic": _genetic,
    "mine": _mine,
    "predict": _predict,
    "profile": _profile,
    "scan": _scan,
    "test": _test,
    "validate": _validate,
}


def _verified(
    tokens: int, params: Mapping[str, Any], gradients: int = 0, screens: int = 0
) -> dict[str, Any]:
    prompts = tokens * len(_probes(params)) + screens
    return {
        "tokens": tokens,
        "prompts": prompts,
        "gradients": gradients,
        "continuations": 0,
        "new_tokens": 0,
        "repeats": prompts,
    }


def _named(source: Mapping[str, Any], done: Mapping[str, int | None], vocab: int) -> int:
    """How many tokens a `tokens:` names at most: never more than there are."""
    if "file" in source:
        # An id takes two bytes with what parts it from the next, unless they are packed. A file
        # that is not there yet is for the run to complain of.
        path = Path(source["file"])
        if path.suffix == ".gz" or not os.path.isfile(path):  # noqa: PTH113 - Path may raise
            return vocab
        return min(vocab, path.stat().st_size // 2 + 1)
    if "from" in source:
        steps = [source["from"]] if isinstance(source["from"], str) else source["from"]
        earlier = [done.get(step) for step in steps]
        return vocab if None in earlier else min(vocab, sum(filter(None, earlier)))
    return min(vocab, len(set(source.get("ids") or source.get("texts") or ())))
