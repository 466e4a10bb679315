"""What a run's numbers add up to: the verdicts by category, what was counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glitchrun.events import Sampled, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.token_rows import TokenRow, facts_by_token
from glitchrun.spec.schema import strategies
from glitchrun.spec.types import Thresholds

EMITTED = {
    "prefix": "a piece of the right text",
    "case_space": "the same text but for case or space",
    "whitespace": "white space only",
    "other": "something else",
}
"""What a model can put in a token's place (contract of tokens.jsonl), in words."""

NOTES = {
    "not_intact": "tokens presented by id that would not survive encoding the prompt as text",
    "rechecked": "verdicts within rounding, decided again in float32",
    "resampled": "sampled tokens within rounding of another, drawn again from a pass of their own",
    "walk_ties": "steps of the search at which several tokens were equally good",
    "batch_halvings": "times the batch was halved because memory ran out",
    "dropped_system": "prompts whose own system text the template cannot carry",
    "forwards": "forward passes",
    "gradients": "gradients taken",
    "continuations": "continuations sampled",
}
"""What the counters of a run mean; counters not named here are shown under their own name."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The verdicts of one step on one category of tokens."""

    step: str
    category: str
    verified: int = 0
    passed: int = 0
    near_miss: int = 0
    glitch: int = 0
    sampled: int = 0
    confirmed: int = 0


def is_about_tokens(record: RunRecord) -> bool:
    """Whether verdicts on tokens are what the run is for, or are there."""
    if any(timed.batch.token_facts for step in record.steps for timed in step.batches):
        return True
    kinds = [strategies().get(step.strategy, {}) for step in record.steps]
    return not kinds or not all("x-tables" in kind for kind in kinds)


def thresholds(record: RunRecord) -> Thresholds:
    """The thresholds in force."""
    return Thresholds(**(record.spec.get("thresholds") or {}))


def verdicts(record: RunRecord) -> list[Verified]:
    """The run's verdicts, one for each token: the last step's where several verified it."""
    found = {
        token_id: verified
        for step in record.steps
        for token_id, (verified, _) in facts_by_token(step).items()
        if verified
    }
    return list(found.values())


def samples(record: RunRecord) -> list[Sampled]:
    """The run's samplings, one for each token: the last step's where several sampled it."""
    found = {
        token_id: sampled
        for step in record.steps
        for token_id, (_, sampled) in facts_by_token(step).items()
        if sampled
    }
    return list(found.values())


def tallies(record: RunRecord) -> list[Tally]:
    """Verdict counts by step and category, the largest category of each step first."""
    return [tally for step in record.steps for tally in _tallies_of(step)]


def _tallies_of(step: StepRecord) -> list[Tally]:
    by_category: dict[str, list[TokenRow]] = {}
    for verified, sampled in facts_by_token(step).values():
        row = TokenRow((verified or sampled).token, (step.id,), verified, sampled)  # type: ignore[union-attr]
        by_category.setdefault(row.token.category, []).append(row)
    found = [_tally(step.id, category, rows) for category, rows in by_category.items()]
    return sorted(found, key=lambda tally: (-tally.verified - tally.sampled, tally.category))


def _tally(step: str, category: str, rows: list[TokenRow]) -> Tally:
    verified = [row for row in rows if row.verified]
    glitch = sum(row.verified.glitch for row in verified if row.verified)
    passed = sum(row.passed for row in verified)
    sampled = [row.sampled for row in rows if row.sampled]
    return Tally(
        step=step,
        category=category,
        verified=len(verified),
        passed=passed,
        near_miss=len(verified) - passed - glitch,
        glitch=glitch,
        sampled=len(sampled),
        confirmed=sum(fact.confirmed for fact in sampled),
    )


def unfinished(record: RunRecord) -> list[StepRecord]:
    """The steps that did not come to their end."""
    return [step for step in record.steps if not step.finished]


def not_finite(record: RunRecord) -> int:
    """Probes in which the model gave something that is no number (NaN, infinite)."""
    return sum(
        not all(math.isfinite(value) for value in (result.p, result.entropy, result.gap))
        for fact in verdicts(record)
        for result in fact.probes.values()
    )


def counters(record: RunRecord) -> dict[str, dict[str | None, int]]:
    """What was counted: by counter, then by step; under None what belongs to no step."""
    found: dict[str, dict[str | None, int]] = {}
    for step in record.steps:
        for timed in step.batches:
            for name, number in timed.batch.counters.items():
                by_step = found.setdefault(name, {})
                by_step[step.id] = by_step.get(step.id, 0) + number
    for name, number in record.notes.items():
        if rest := number - sum(found.get(name, {}).values()):
            found.setdefault(name, {})[None] = rest
    order = [*NOTES, *sorted(found.keys() - NOTES.keys())]
    return {name: found[name] for name in order if name in found}
