"""What a run's numbers add up to: the headline, the verdicts by category, what was counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Sampled, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.numbers import counted, figure, percent, share
from glitchrun.report.table import Row, facts_by_token
from glitchrun.spec.schema import strategies
from glitchrun.spec.types import Thresholds

DIGITS = 3
"""Significant digits of a metric in the headline."""

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
    "resampled": "continuations within rounding of another token, sampled again alone",
    "walk_ties": "steps of the search at which several tokens were equally good",
    "batch_halvings": "times the batch was halved because memory ran out",
    "dropped_system": "prompts whose own system text the template cannot carry",
    "forwards": "forward passes",
    "gradients": "gradients taken",
    "continuations": "continuations sampled",
}
"""What the counters of a run mean; counters not named here are shown under their own name."""

_STOPPED = {
    "RUNNING": "The run is not over: the numbers are those of the moment this page was written.",
    "KILLED": "The run was stopped before its end: the numbers cover what was finished until then. "
    "Resume it with glitchrun apply.",
    "FAILED": "The run failed: the numbers cover what was finished until then.",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """The number a run comes down to, and what it means."""

    number: float | None
    unit: str
    sentences: tuple[str, ...]


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


def headline(record: RunRecord) -> Headline:
    """The number to read first: confirmed tokens, else glitch tokens, else the one that a step's
    strategy declares as `x-headline`, the last step's first, else that there is none."""
    warning = _STOPPED.get(record.status)
    reason = f"Reason on record: {record.error}" if record.error else None
    number, unit, sentences = _result(record)
    return Headline(number, unit, tuple(filter(None, (warning, reason, *sentences))))


def _result(record: RunRecord) -> tuple[float | None, str, list[str]]:
    found, unit, sentences = _verdict(record)
    told = [told for step in reversed(record.steps) if (told := _told(step))]
    several = len(record.steps) > 1
    also = [f"{step}: {said}" if several else said for step, _, _, said in told]
    if told and found is None:
        return told[0][1], told[0][2], also
    return found, unit, [*sentences, *also]


def _told(step: StepRecord) -> tuple[str, float | None, str, str] | None:
    """Id, number, unit and sentence of a step by its strategy's `x-headline`; None where there is
    no such thing, or the step has not come to it yet."""
    declared = declared_headline(step)
    metric = step.metrics.get(declared["metric"]) if declared else None
    if not declared or not metric:
        return None
    numbers = {name: figure(found.value, DIGITS) for name, found in step.metrics.items()}
    return step.id, metric.value, declared["unit"], declared["sentence"].format(**numbers)


def declared_headline(step: StepRecord) -> Mapping[str, Any] | None:
    """What the step's strategy declares as `x-headline`: metric, unit, sentence, cards."""
    found: Mapping[str, Any] | None = strategies().get(step.strategy, {}).get("x-headline")
    return found


def is_about_tokens(record: RunRecord) -> bool:
    """Whether verdicts on tokens are what the run is for, or are there."""
    if any(timed.batch.token_facts for step in record.steps for timed in step.batches):
        return True
    kinds = [strategies().get(step.strategy, {}) for step in record.steps]
    return not kinds or not all("x-tables" in kind for kind in kinds)


def _verdict(record: RunRecord) -> tuple[int | None, str, list[str]]:
    verified, sampled = verdicts(record), samples(record)
    if sampled:
        confirmed = sum(fact.confirmed for fact in sampled)
        unit = "confirmed glitch token" if confirmed == 1 else "confirmed glitch tokens"
        return confirmed, unit, [_about_samples(record, sampled), _about_verdicts(record, verified)]
    if verified:
        glitch = sum(fact.glitch for fact in verified)
        if not glitch:
            return 0, "glitch tokens", [_about_verdicts(record, verified)]
        unit = "glitch token, not sampled" if glitch == 1 else "glitch tokens, not sampled"
        return glitch, unit, [_about_verdicts(record, verified), _why_unsampled(record)]
    if is_about_tokens(record):
        return None, "no verdict", ["No token was verified or sampled."]
    return None, "no result", []


def _about_samples(record: RunRecord, sampled: list[Sampled]) -> str:
    attempts = sorted({fact.attempts for fact in sampled})
    number = f"{attempts[0]}" if len(attempts) == 1 else f"{attempts[0]} to {attempts[-1]}"
    tokens = counted(len(sampled), "sampled token")
    level = thresholds(record).asr
    return (
        f"Of {tokens}, {sum(fact.confirmed for fact in sampled):,} failed in at least "
        f"{percent(level)} of {number} sampled {'attempt' if attempts == [1] else 'attempts'} "
        f"(thresholds.asr = {level:g})."
    )


def _about_verdicts(record: RunRecord, verified: list[Verified]) -> str:
    if not verified:
        return ""
    probes = sorted({name for fact in verified for name in fact.probes})
    level = thresholds(record).probability
    limit = "" if level >= 1 else f" and had a probability below {level:g} in each"
    prompts = (
        f"the probe {probes[0]}" if len(probes) == 1 else f"each of the probes {', '.join(probes)}"
    )
    size = record.model.vocabulary_size if record.model else 0
    whole = f" ({share(len(verified), size)} of the vocabulary's {size:,})" if size else ""
    return (
        f"Of {counted(len(verified), 'verified token')}{whole}, "
        f"{sum(fact.glitch for fact in verified):,} failed {prompts}{limit}."
    )


def _why_unsampled(record: RunRecord) -> str:
    if any(step.strategy == "validate" for step in record.steps):
        return "No sampled attempt is on record, so none of them is confirmed."
    return "The experiment has no step that samples attempts, so none of them is confirmed."


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
    by_category: dict[str, list[Row]] = {}
    for verified, sampled in facts_by_token(step).values():
        row = Row((verified or sampled).token, (step.id,), verified, sampled)  # type: ignore[union-attr]
        by_category.setdefault(row.token.category, []).append(row)
    found = [_tally(step.id, category, rows) for category, rows in by_category.items()]
    return sorted(found, key=lambda tally: (-tally.verified - tally.sampled, tally.category))


def _tally(step: str, category: str, rows: list[Row]) -> Tally:
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


def emitted(verified: Iterable[Verified]) -> list[tuple[str, int]]:
    """How often each kind of text came in a glitch token's place, the most frequent first."""
    return Counter(fact.emitted or "unknown" for fact in verified if fact.glitch).most_common()


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
