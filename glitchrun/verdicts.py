"""Verdicts: what the thresholds of a spec make of the facts that a step measured.

The ledger keeps facts without verdicts. They are judged here, whenever a run is read, so a run with
other thresholds needs no new measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from glitchrun.events import Batch, Control, Entry, ProbeResult, Sampled, Screened, Verified
from glitchrun.spec.types import Thresholds

_Fact = TypeVar("_Fact", bound=Verified | Sampled | Control | Screened | Entry)


def is_glitch(probes: Mapping[str, ProbeResult], limit: float) -> bool:
    """Whether no probe passed and each probability is below `limit`, `thresholds.probability`."""
    return all(not result.passed and result.p < limit for result in probes.values())


def is_confirmed(outcomes: Sequence[bool], limit: float) -> bool:
    """Whether the share of failed attempts reaches `limit`, which is `thresholds.asr`.

    At least one attempt must have failed: every share reaches a threshold of 0.
    """
    return any(outcomes) and sum(outcomes) / len(outcomes) >= limit


def judged(batch: Batch, thresholds: Thresholds) -> Batch:
    """The batch with the verdicts that the thresholds give."""
    facts = tuple(_judged(fact, thresholds) for fact in batch.facts)
    same = all(new is old for new, old in zip(facts, batch.facts, strict=True))
    return batch if same else replace(batch, facts=facts)


def _judged(fact: _Fact, thresholds: Thresholds) -> _Fact:
    match fact:
        case Verified():
            glitch = is_glitch(fact.probes, thresholds.probability)
            return fact if fact.glitch == glitch else replace(fact, glitch=glitch)
        case Sampled():
            confirmed = is_confirmed(fact.outcomes, thresholds.asr)
            return fact if fact.confirmed == confirmed else replace(fact, confirmed=confirmed)
        case Control():
            inner = _judged(fact.fact, thresholds)
            return fact if inner is fact.fact else replace(fact, fact=inner)
        case _:
            return fact
