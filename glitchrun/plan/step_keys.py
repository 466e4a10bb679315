"""Step keys: a digest of everything that can change what a step measures, and of nothing else.

Steps with the same key measure the same, whatever their id, their run, their place in it and the
other steps. So a finished step is measured once for all runs under a tracking root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from glitchrun.spec.digest import (
    definitions_of,
    digest,
    limit_setting,
    packages_of,
    prompt_settings,
    scope_setting,
    step_setting,
)
from glitchrun.spec.probes import any_of, probe_names
from glitchrun.spec.schema import TOKEN_SOURCES
from glitchrun.spec.strategy import STRATEGIES, Strategy
from glitchrun.spec.types import Spec, Step

KEY_LENGTH = 16
"""Hex digits of a step key, and of a run's key."""
_FOUND = "glitch"
"""The default of `select`."""


@dataclass(frozen=True, slots=True)
class StepKey:
    """The key of one step of a spec."""

    id: str
    key: str
    extent: int | None
    """Verifications after which the run ends the step; None where its parameters decide that."""
    facts: str
    """Digest of the key and the extent: steps that read from this one depend on it."""
    reads: tuple[str, ...]
    """Ids of the steps whose results it reads, and of those that these read, in their order."""
    document: Mapping[str, Any]
    """`key`, `strategy`, `version` and `made_of`: what the step's ledger begins with."""


def step_keys(
    spec: Spec, fingerprint: str, resolved: Mapping[str, Any], machine: Mapping[str, Any]
) -> tuple[StepKey, ...]:
    """The keys of a spec's steps, in their order.

    Args:
        spec: The spec.
        fingerprint: Fingerprint of the model's contents.
        resolved: What the spec resolves to on the model, see `plan.build.Resolved`.
        machine: Device and memory limits, for steps that measure the machine.

    Raises:
        PreflightError: a file of tokens cannot be read.
    """
    made: dict[str, StepKey] = {}
    for step in spec.steps:
        made[step.id] = _step_key(step, spec, fingerprint, resolved, machine, made)
    return tuple(made.values())


def _step_key(
    step: Step,
    spec: Spec,
    fingerprint: str,
    resolved: Mapping[str, Any],
    machine: Mapping[str, Any],
    earlier: Mapping[str, StepKey],
) -> StepKey:
    strategy = STRATEGIES[step.strategy]
    config = strategy.config_of(step)
    extent, limits = strategy.limits(config)
    params = {
        name: value
        for name, value in step_setting(step).items()
        if name not in ("id", "strategy", *limits)
    }
    if "probes" in params:
        groups = any_of(params["probes"])
        params["probes"] = list(probe_names(params["probes"]))
        params |= {"any_of": groups} if groups else {}
    sources = _sources(params)
    draws = bool(getattr(config, "controls", 0))
    measures = strategy.measures_machine
    scoped = strategy.takes_scope(config) or draws or measures
    thresholds = strategy.steering(config) | _selecting(params, spec, draws and bool(sources))
    made_of = {
        "model": fingerprint,
        **prompt_settings(spec),
        **({"seed": spec.seed} if strategy.uses_seed(config) else {}),
        **({"tokens": scope_setting(spec.tokens)} if scoped else _reference(spec, strategy)),
        "thresholds": {n: v for n, v in asdict(spec.thresholds).items() if n in thresholds},
        "params": _with_facts(params, earlier),
        "resolved": {n: fact for n, fact in resolved.items() if scoped or n != "scope"},
        # Such steps also report the revision, and draw their workload from the scope.
        **({"machine": {**machine, "revision": spec.model.revision}} if measures else {}),
        **limit_setting(spec),
        **definitions_of([step]),
        "packages": packages_of(spec, [step]),
    }
    document = {"strategy": step.strategy, "version": strategy.version, "made_of": made_of}
    key = digest(document)[:KEY_LENGTH]
    reads = dict.fromkeys(i for name in sources for i in (*earlier[name].reads, name))
    return StepKey(
        id=step.id,
        key=key,
        extent=extent,
        facts=digest([key, extent] if limits else [key])[:KEY_LENGTH],
        reads=tuple(reads),
        document={"key": key, **document},
    )


def question(document: Mapping[str, Any]) -> str | None:
    """Digest of what can change what the model says in one attempt of a step; None where the facts
    of its strategy are not attempts. Steps of the same question share their attempts.

    Args:
        document: What the step key was made of, `StepKey.document`.
    """
    strategy = STRATEGIES.get(document["strategy"])
    if strategy is None or not strategy.asks:
        return None
    made_of = dict(document["made_of"])
    for selecting in ("tokens", "thresholds", "limit"):
        made_of.pop(selecting, None)
    made_of["params"] = {n: v for n, v in made_of["params"].items() if n not in strategy.asks}
    made_of["resolved"] = {n: v for n, v in made_of["resolved"].items() if n != "scope"}
    return digest({**document, "made_of": made_of, "key": None})


def _reference(spec: Spec, strategy: Strategy) -> dict[str, Any]:
    """The named reference rows of the indicators, which a step that verifies tokens keeps."""
    named = spec.tokens.unused is not None and "severe" in strategy.fragment["x-metrics"]
    return {"unused": sorted(spec.tokens.unused or ())} if named else {}


def _sources(params: Mapping[str, Any]) -> list[str]:
    """The steps from which a step takes tokens."""
    found: list[str] = []
    for name in TOKEN_SOURCES:
        source = params.get(name, {}).get("from", [])
        found += [source] if isinstance(source, str) else source
    return found


def _with_facts(params: Mapping[str, Any], earlier: Mapping[str, StepKey]) -> dict[str, Any]:
    """The parameters with the facts of earlier steps in place of their ids."""
    made = dict(params)
    for name in TOKEN_SOURCES:
        source = params.get(name, {}).get("from", [])
        if source:
            steps = [source] if isinstance(source, str) else source
            select = params[name].get("select", _FOUND)
            made[name] = {
                **params[name],
                "select": select,
                "from": [earlier[step].facts for step in steps],
            }
    return made


def _selecting(params: Mapping[str, Any], spec: Spec, draws: bool) -> frozenset[str]:
    """The thresholds that decide which tokens of earlier steps a step takes.

    Args:
        params: The step's parameters.
        spec: The spec.
        draws: Whether the step draws controls, which are never tokens that a step it reads found.
    """
    selects = [
        strategy_of(spec, step).verdict
        for name in TOKEN_SOURCES
        if params.get(name, {}).get("select", _FOUND) != "all"
        for step in _sources({name: params.get(name, {})})
    ]
    if draws or None in selects:
        return frozenset(("asr", "probability"))
    return frozenset(name for name in selects if name)


def strategy_of(spec: Spec, step_id: str) -> Strategy:
    """The strategy of the step with this id."""
    return STRATEGIES[next(step.strategy for step in spec.steps if step.id == step_id)]
