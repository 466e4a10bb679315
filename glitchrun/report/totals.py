"""Totals over the facts of a run: verdicts, severity, counters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from itertools import pairwise
from typing import Any

from glitchrun.events import SEVERE, Sampled, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.token_rows import TokenRow, facts_by_token, remembered
from glitchrun.spec.probes import PROBES, TOKEN
from glitchrun.spec.schema import fragments
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Thresholds

MILD = 1e-2
"""Probability below which a failure is no near miss any more, though it may not be severe."""
DECADES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Bounds of the bands of probability in which failures are counted."""
EMITTED = {
    "prefix": "a shorter piece of the right text",
    "case_space": "the right text in other case or spacing",
    "whitespace": "white space only",
    "other": "something else",
}
"""Kinds of answer that a model gives instead of a token (`emitted` in tokens.jsonl), in words."""

NOTES = {
    "not_intact": "presented by ids that encoding the prompt as text would change",
    "rechecked": "near-ties of verdicts, re-evaluated in float32",
    "near_threshold": "near-ties at thresholds.probability that were not re-evaluated",
    "resampled": "near-ties in sampling, drawn again in a separate forward pass",
    "walk_ties": "search steps with several equally good tokens",
    "batch_halvings": "times the batch was halved because memory ran out",
    "dropped_system": "prompts whose own system text the template cannot include",
    "screens": "screened tokens",
    "screen_forwards": "forward passes of the screen",
    "forwards": "forward passes of verification",
    "positions": "positions of the prompts of verification, after their shared prefix",
    "gradients": "gradient computations",
    "evaluations": "evaluated sequences",
    "continuations": "sampled continuations",
    "distinct": "distinct continuations of a prompt with its token or phrase",
    "drawn": "sampled tokens of text, in all attempts",
    "sampling_forwards": "forward passes of sampling",
    "rows": "rows of these passes",
    "reused_attempts": "attempts that other steps had sampled before",
    "reused_tokens": "tokens of which all attempts had been sampled before",
    "controls": "control tokens",
    "refits": "fits of the surrogate",
}
"""Counters in words, in the order shown; other counters are shown under their own name."""
KINDS = (*EMITTED, "unknown")
"""Kinds of answer; `unknown` in records that do not state it."""


@remembered
def is_about_tokens(record: RunRecord) -> bool:
    """Whether the run has verdicts on tokens, or steps that would give them."""
    if any(timed.batch.token_facts for step in record.steps for timed in step.batches):
        return True
    return not record.steps or not all(map(_has_tables_only, record.steps))


def _has_tables_only(step: StepRecord) -> bool:
    """Whether the results of a step are tables, not verdicts on tokens."""
    strategy = STRATEGIES.get(step.strategy)
    if strategy is not None and strategy.takes_phrases:
        return "phrases" in (step.params.get("tokens") or {}) or any(
            timed.batch.entries for timed in step.batches
        )
    return "x-tables" in fragments().get(step.strategy, {})


def thresholds(record: RunRecord) -> Thresholds:
    """The thresholds in force."""
    return Thresholds(**(record.spec.get("thresholds") or {}))


SHOWN = frozenset(name for name, probe in PROBES.built_in.items() if probe.raw)
"""The built-in probes that show the token in examples, as raw text."""


@remembered
def verdicts(record: RunRecord) -> list[Verified]:
    """The run's verdicts, one for each token: that of the last step that verified it.

    A step that shows the token in examples is a second definition: its verdict counts only where
    there is no other.
    """
    found: dict[int, Verified] = {}
    for step in record.steps:
        for token_id, (verified, _) in facts_by_token(step).items():
            if verified and not (token_id in found and is_shown(record, verified)):
                found[token_id] = verified
    return list(found.values())


def is_shown(record: RunRecord, fact: Verified) -> bool:
    """Whether every probe of a verdict is raw text with examples that contain the token, such as
    those of `magikarp`, instead of a question in chat."""
    own = record.spec.get("probes") or {}
    return not fact.answers and all(
        name in SHOWN or _shows(own.get(name, {})) for name in fact.probes
    )


def _shows(probe: Mapping[str, Any]) -> bool:
    """Whether a spec's own probe is raw text with the token in an example."""
    shots = probe.get("shots") or ()
    return bool(probe.get("raw")) and any(TOKEN in text for one in shots for text in one.values())


@remembered
def samples(record: RunRecord) -> list[Sampled]:
    """The run's samples, one for each token: those of the last step that sampled it."""
    found = {
        token_id: sampled
        for step in record.steps
        for token_id, (_, sampled) in facts_by_token(step).items()
        if sampled
    }
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdict counts of one step for one category of tokens."""

    step: str
    category: str
    verified: int = 0
    passed: int = 0
    near_miss: int = 0
    glitch: int = 0
    sampled: int = 0
    confirmed: int = 0


def tallies(record: RunRecord) -> list[Tally]:
    """Verdict counts by step and category, the largest category of each step first."""
    return [tally for step in record.steps for tally in _tallies_of(step)]


def _tallies_of(step: StepRecord) -> list[Tally]:
    verified: dict[str, list[Verified]] = {}
    sampled: dict[str, list[Sampled]] = {}
    for verdict, samples in facts_by_token(step).values():
        if verdict:
            verified.setdefault(verdict.token.category, []).append(verdict)
        if samples:
            sampled.setdefault(samples.token.category, []).append(samples)
    found = [
        _tally(step.id, category, verified.get(category, []), sampled.get(category, []))
        for category in dict.fromkeys((*verified, *sampled))
    ]
    return sorted(found, key=lambda tally: (-tally.verified - tally.sampled, tally.category))


def _tally(step: str, category: str, verified: list[Verified], sampled: list[Sampled]) -> Tally:
    glitch = sum(fact.glitch for fact in verified)
    passed = sum(not fact.failed for fact in verified)
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


@dataclass(frozen=True, slots=True)
class Severity:
    """Counts of a run's verdicts."""

    verified: int
    glitch: int
    severe: int
    mild: int
    """Glitch tokens with a probability below `MILD`, severe ones included."""
    near_miss: int
    """Failed every probe, but not with a probability below thresholds.probability."""
    emitted: Mapping[str, int]
    """Kinds of answer to the glitch tokens, counted."""


@remembered
def severity(record: RunRecord) -> Severity:
    """Counts of the run's verdicts."""
    found = verdicts(record)
    glitch = [fact for fact in found if fact.glitch]
    probabilities = [fact.p for fact in glitch]
    return Severity(
        verified=len(found),
        glitch=len(glitch),
        severe=sum(p < SEVERE for p in probabilities),
        mild=sum(p < MILD for p in probabilities),
        near_miss=sum(fact.failed and not fact.glitch for fact in found),
        emitted=_by_kind(glitch),
    )


@dataclass(frozen=True, slots=True)
class Band:
    """Tokens that failed every probe, with a probability in [low, high)."""

    low: float
    high: float
    failed: int
    glitch: int
    """Those with a probability below thresholds.probability."""
    emitted: Mapping[str, int]
    """Kinds of answer, counted."""
    sampled: int
    confirmed: int

    @property
    def severe(self) -> bool:
        """Whether all its tokens are severe, if they are glitch tokens."""
        return self.high <= SEVERE


@remembered
def bands(record: RunRecord) -> list[Band]:
    """Failures by decade of probability, the most severe first; empty without failures.

    The probability of a token is the largest over its probes. Answers compared as text have none.
    """
    failed = [(fact.p, fact) for fact in verdicts(record) if fact.failed and fact.probes]
    tried = {fact.token.id: fact for fact in samples(record)}
    pairs = pairwise(DECADES)
    return [_band(low, high, failed, tried) for low, high in pairs] if failed else []


def _band(
    low: float, high: float, failed: list[tuple[float, Verified]], tried: Mapping[int, Sampled]
) -> Band:
    inside = [fact for p, fact in failed if low <= p < high or p == high == 1]
    sampled = [tried[fact.token.id] for fact in inside if fact.token.id in tried]
    return Band(
        low=low,
        high=high,
        failed=len(inside),
        glitch=sum(fact.glitch for fact in inside),
        emitted=_by_kind(inside),
        sampled=len(sampled),
        confirmed=sum(fact.confirmed for fact in sampled),
    )


def _by_kind(facts: Iterable[Verified]) -> dict[str, int]:
    counts = Counter(fact.emitted or "unknown" for fact in facts)
    return {kind: counts[kind] for kind in KINDS if kind != "unknown" or counts[kind]}


@dataclass(frozen=True, slots=True)
class Pattern:
    """The tokens of a step that passed exactly these of its probes."""

    step: str
    passed: Mapping[str, bool]
    """By probe, in the step's order."""
    tokens: int
    severe: int


def patterns(record: RunRecord) -> list[Pattern]:
    """Which probes the tokens passed, the most frequent pattern first, for every step with more
    than one probe."""
    return [pattern for step in record.steps for pattern in _patterns_of(step)]


def _patterns_of(step: StepRecord) -> list[Pattern]:
    found = [verified for verified, _ in facts_by_token(step).values() if verified]
    if all(len(fact.probes) + len(fact.answers) < 2 for fact in found):
        return []
    groups: dict[tuple[tuple[str, bool], ...], list[Verified]] = {}
    for fact in found:
        passed = {name: result.passed for name, result in fact.probes.items()}
        passed |= {name: answer.passed for name, answer in fact.answers.items()}
        key = tuple(passed.items())
        groups.setdefault(key, []).append(fact)
    made = [
        Pattern(step.id, dict(key), len(facts), sum(fact.severe for fact in facts))
        for key, facts in groups.items()
    ]
    return sorted(made, key=lambda one: (-one.tokens, *one.passed.values()))


def most_severe(record: RunRecord, count: int) -> list[TokenRow]:
    """The `count` glitch tokens with the lowest probabilities below `MILD`, with their samples."""
    tried = {fact.token.id: fact for fact in samples(record)}
    found = ((fact.p, fact.token.id, fact) for fact in verdicts(record) if fact.glitch)
    least = nsmallest(count, (one for one in found if one[0] < MILD))
    return [TokenRow(fact.token, (), fact, tried.get(key)) for _, key, fact in least]


def not_finite(record: RunRecord) -> int:
    """Number of probes with a NaN or infinite result."""
    return sum(
        not math.isfinite(result.p + result.entropy + result.gap)
        for fact in verdicts(record)
        for result in fact.probes.values()
    )


def counters(record: RunRecord) -> dict[str, dict[str | None, int]]:
    """Counts by counter, then by step; None is the key of counts that belong to no step."""
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
