"""Verdicts: derived from the facts that a step measured and the thresholds of a spec.

The ledger keeps facts without verdicts. They are judged here, whenever a run is read, so a run with
other thresholds needs no new measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from glitchrun.events import Batch, Control, Entry, ProbeResult, Sampled, Screened, Verified
from glitchrun.spec.probes import PROTOCOLS
from glitchrun.spec.types import Thresholds

_ROUNDING = {"bfloat16": 0.4, "float16": 0.05}
"""How far rounding may move a log-probability, in nats: the margins of `probing.logit_statistics`
for logits of up to 20."""
_Fact = TypeVar("_Fact", bound=Verified | Sampled | Control | Screened | Entry)


def classes(fact: Verified) -> dict[str, str]:
    """The class that a protocol's authors give the token, by protocol; empty for none.

    Land and Bartolo's classes (arXiv 2405.05417, github cohere-ai/magikarp) go by the largest
    probability over three prompts and three positions.
    """
    asked = PROTOCOLS["magikarp"].probes
    found = [fact.probes[name] for name in asked if name in fact.probes]
    if len(found) < len(asked):
        return {}
    largest = max(result.p for result in found)
    if largest > 0.9:
        name = "strong_rejected"
    elif largest > 0.1:
        name = "weak_rejected"
    elif not any(result.encodable for result in found):
        name = "verification_encoding_failed"
    else:
        name = "strong_verified" if largest < 1e-3 else "weak_verified"
    return {"magikarp": name}


def is_confirmed(outcomes: Sequence[bool], limit: float) -> bool:
    """Whether the share of failed attempts reaches `limit`, which is `thresholds.asr`.

    At least one attempt must have failed: every share reaches a threshold of 0.
    """
    return any(outcomes) and sum(outcomes) / len(outcomes) >= limit


def near_limit(batches: Iterable[Batch], limit: float) -> int:
    """How many tokens a rounding error of narrow arithmetic could move across `limit`.

    A step re-evaluates them in float32 while it runs, so this is 0 for the limit that was in force
    then. Facts of a finished step that are judged by another limit may contain some.

    Args:
        batches: Verdicts on tokens.
        limit: `thresholds.probability`.
    """
    facts = (fact for batch in batches for fact in batch.token_facts)
    return sum(
        any(_is_near(result, limit) for result in fact.probes.values())
        for fact in facts
        if isinstance(fact, Verified) and fact.failed
    )


def _is_near(result: ProbeResult, limit: float) -> bool:
    within = _ROUNDING.get(result.decided_in)
    if within is None or result.least is not None or not result.p > 0:
        return False
    return abs(math.log(result.p) - math.log(limit)) < within


def judged(batch: Batch, thresholds: Thresholds) -> Batch:
    """The batch with the verdicts that the thresholds give."""
    facts = tuple(_judged(fact, thresholds) for fact in batch.facts)
    same = all(new is old for new, old in zip(facts, batch.facts, strict=True))
    return batch if same else replace(batch, facts=facts)


def _judged(fact: _Fact, thresholds: Thresholds) -> _Fact:
    match fact:
        case Verified():
            glitch = fact.fails(thresholds.probability)
            return fact if fact.glitch == glitch else replace(fact, glitch=glitch)
        case Sampled():
            confirmed = is_confirmed(fact.outcomes, thresholds.asr)
            return fact if fact.confirmed == confirmed else replace(fact, confirmed=confirmed)
        case Control():
            inner = _judged(fact.fact, thresholds)
            return fact if inner is fact.fact else replace(fact, fact=inner)
        case _:
            return fact
