"""Runs a small model on the engine and compares it with plain forward passes on whole prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glitchrun.errors import GlitchrunError
from glitchrun.events import ProbeResult, Token
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.probing.frozen_suffix import why_not_screenable
from glitchrun.probing.logit_statistics import entropy
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.sequence_scoring import greedy_continuations, read_prompts
from glitchrun.probing.token_choice import SamplingParams, choose_tokens, rng_key
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.render import Prompt
from tools.families.small import Family, NotSmallError, build

VOCABULARY = 400
_PROMPT = Prompt("repeat", (0, 17, 211, 45, 98, 320), (77, 12, 250, 131, 9), "", "")
_TOKENS = (5, 123, 301, 399, 64)
_ATTEMPTS, _NEW_TOKENS = 2, 4
_SAMPLING = SamplingParams(temperature=1.0, top_p=0.95)
_SEED = 3
_CLOSE = 1e-3
"""Relative tolerance of probabilities."""
Plain = Callable[[Sequence[int]], Tensor]
"""A function from a whole prompt to next-token logits `(V,)`."""


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table of families."""

    kind: str
    """`model_type`"""
    name: str
    """The model's class."""
    outcome: str
    """runs | refused | not built | wrong"""
    engine: str = ""
    screen: bool = False
    gradient: bool = False
    reason: str = ""


def trial(family: Family) -> Result:
    """Build a small model of a family and test it."""
    try:
        module = build(family, VOCABULARY)
    except NotSmallError as why:
        return Result(family.kind, family.name, "not built", reason=str(why))
    model = loaded(module)
    try:
        backend, _ = best_backend(model)
        wrong = differences(backend, plain(module))
    except GlitchrunError as why:
        return Result(family.kind, family.name, "refused", reason=str(why))
    except Exception as crash:  # noqa: BLE001 - a crash is a result
        return Result(family.kind, family.name, "wrong", reason=f"crashes: {crash!r}")
    return Result(
        family.kind,
        family.name,
        "wrong" if wrong else "runs",
        engine="fast"
        if isinstance(backend, FastBackend)
        else f"generic, {backend.cache_mode.value}",
        screen=why_not_screenable(backend) is None,
        gradient=_differentiable(backend),
        reason="; ".join(wrong),
    )


def loaded(module: Any) -> LoadedModel:
    """A module as `glitchrun.model.load` returns it."""
    return LoadedModel(
        module=module,
        tokenizer=None,
        config=module.config,
        device=torch.device("cpu"),
        dtype="float32",
        quantization="none",
        load_seconds=0.0,
        peak_bytes=0,
        bytes_by_dtype={},
        unquantized=(),
        architecture=type(module).__name__,
    )


def plain(module: Any) -> Plain:
    """The module's own forward pass over one whole prompt, without a cache."""
    takes_cache = "use_cache" in inspect.signature(module.forward).parameters
    options = {"use_cache": False} if takes_cache else {}

    def logits(ids: Sequence[int]) -> Tensor:
        row = torch.tensor([list(ids)])
        with torch.no_grad():
            found: Tensor = module(input_ids=row, **options).logits[0, -1].float()
        return found

    return logits


def differences(backend: Backend, wanted: Plain) -> list[str]:
    """The results of verification, sampling and prediction that differ from plain passes."""
    found = []
    if not _verified(backend, wanted):
        found.append("verification differs")
    if _sampled(backend) != _sampled_plainly(wanted):
        found.append("sampling differs")
    ids = _PROMPT.ids(_TOKENS[0])
    (reading,) = read_prompts(backend, [(ids, ())], 1)
    if greedy_continuations(backend, [ids], [reading.argmax], 3, ()) != [
        _continued(wanted, ids, 3)
    ]:
        found.append("prediction differs")
    return found


def _verified(backend: Backend, wanted: Plain) -> bool:
    results = Verifier(backend, {"repeat": _PROMPT}, rows=4).verify(_TOKENS)
    return all(
        _agrees(result["repeat"], wanted(_PROMPT.ids(token)), token)
        for result, token in zip(results, _TOKENS, strict=True)
    )


def _agrees(result: ProbeResult, logits: Tensor, token: int) -> bool:
    p = float(logits.softmax(dim=-1)[token])
    return result.argmax == int(logits.argmax()) and abs(result.p - p) <= _CLOSE * p + 1e-12


def _sampled(backend: Backend) -> set[tuple[int, tuple[int, ...]]]:
    sampler = Sampler(
        backend,
        {"repeat": _PROMPT},
        params=_SAMPLING,
        max_new_tokens=_NEW_TOKENS,
        rows=16,
        seed=_SEED,
        decode=lambda ids: "",
        stop_ids=frozenset(),
    )
    made = sampler.attempt([_token(one) for one in _TOKENS], _ATTEMPTS)
    return {
        (token, one.ids) for token, (_, said) in zip(_TOKENS, made, strict=True) for one in said
    }


def _sampled_plainly(wanted: Plain) -> set[tuple[int, tuple[int, ...]]]:
    found = set()
    for token in _TOKENS:
        for attempt in range(_ATTEMPTS):
            key = rng_key(_SEED, token, "repeat", attempt)
            new_ids: tuple[int, ...] = ()
            while len(new_ids) < _NEW_TOKENS and token not in new_ids:
                logits = wanted((*_PROMPT.ids(token), *new_ids))[None]
                chosen, _ = choose_tokens(logits, [0], [key], [len(new_ids)], _SAMPLING, 0.0)
                new_ids = (*new_ids, *chosen)
            found.add((token, new_ids))
    return found


def _continued(wanted: Plain, ids: tuple[int, ...], most: int) -> tuple[int, ...]:
    new_ids: tuple[int, ...] = ()
    for _ in range(most):
        new_ids = (*new_ids, int(wanted((*ids, *new_ids)).argmax()))
    return new_ids


def _token(token_id: int) -> Token:
    return Token(token_id, f"token{token_id}", f"token{token_id}", "normal", 1.0)


def _differentiable(backend: Backend) -> bool:
    try:
        _, gradient = backend.gradient(_PROMPT.ids(_TOKENS[0]), _PROMPT.position, entropy)
    except GlitchrunError:
        return False
    return bool(gradient.abs().max() > 0)
