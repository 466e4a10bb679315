"""How bad the failures are: by probability, by what came instead, by probe, against controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from glitchrun.events import SEVERE, Control, Sampled, TokenFact, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.overview import EMITTED, samples, verdicts
from glitchrun.report.token_rows import TokenRow, controls_elsewhere, controls_of, facts_by_token
from glitchrun.vocabulary.groups import KINDS as TOKEN_KINDS
from glitchrun.vocabulary.groups import doubtful_groups, group_of, kind_of, script_name

MILD = 1e-2
"""Probability below which a failure is no near miss any more, though it need not be severe."""
DECADES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Bounds of the bands that failures are counted in, by probability."""
KINDS = (*EMITTED, "unknown")


@dataclass(frozen=True, slots=True)
class Band:
    """The tokens that failed every probe with a probability from `low` to below `high`."""

    low: float
    high: float
    failed: int
    glitch: int
    """Of these, below thresholds.probability."""
    emitted: Mapping[str, int]
    """How often each kind of text came instead."""
    sampled: int
    confirmed: int

    @property
    def severe(self) -> bool:
        return self.high <= SEVERE


@dataclass(frozen=True, slots=True)
class Pattern:
    """The tokens of a step that passed just these of its probes."""

    step: str
    passed: Mapping[str, bool]
    """By probe, in the step's order."""
    tokens: int
    severe: int


@dataclass(frozen=True, slots=True)
class KindAlarms:
    """Tokens of one kind (`vocabulary.groups.KINDS`) that were flagged, the step's own and
    controls."""

    kind: str
    flagged: int
    """Of `tokens`."""
    tokens: int
    alarms: int
    """Of `controls`."""
    controls: int


@dataclass(frozen=True, slots=True)
class Alarms:
    """What a step made of matched ordinary tokens, beside what it made of its own."""

    step: str
    flagged: int
    """Of `tokens`, found or confirmed."""
    tokens: int
    alarms: int
    """Of `controls`, found or confirmed."""
    controls: int
    alike: int
    """Controls with their token's script and a space in front as it has."""
    low: float
    high: float
    """Bounds of Wilson's 95 % interval of alarms / controls."""
    kinds: tuple[KindAlarms, ...]
    """The same by what tokens are made of, kinds with any token of the step's own or control."""
    doubtful: tuple[str, ...]
    """Scripts in which most controls raised the alarm (`doubtful_groups`), so that they do not tell
    a check that is wrong from a script that the model hardly knows."""
    elsewhere: int
    """Further controls, drawn of other scripts than these."""
    elsewhere_alarms: int


@dataclass(frozen=True, slots=True)
class Severity:
    """The glitch tokens of a run in numbers."""

    verified: int
    glitch: int
    severe: int
    mild: int
    """Glitch tokens with a probability below `MILD`, severe ones too."""
    near_miss: int
    """Failed every probe, but not with a probability below thresholds.probability."""
    emitted: Mapping[str, int]
    """How often each kind of text came in a glitch token's place."""


def severity(record: RunRecord) -> Severity:
    """What the verdicts of a run add up to."""
    found = verdicts(record)
    glitch = [fact for fact in found if fact.glitch]
    return Severity(
        verified=len(found),
        glitch=len(glitch),
        severe=sum(fact.severe for fact in glitch),
        mild=sum(fact.p < MILD for fact in glitch),
        near_miss=sum(fact.failed and not fact.glitch for fact in found),
        emitted=_by_kind(glitch),
    )


def bands(record: RunRecord) -> list[Band]:
    """Failures by decade of probability, the most severe first; empty where nothing failed.

    Over several probes it is the largest probability that counts.
    """
    failed = [fact for fact in verdicts(record) if fact.failed]
    tried = {fact.token.id: fact for fact in samples(record)}
    pairs = pairwise(DECADES)
    return [_band(low, high, failed, tried) for low, high in pairs] if failed else []


def _band(low: float, high: float, failed: list[Verified], tried: Mapping[int, Sampled]) -> Band:
    inside = [fact for fact in failed if low <= fact.p < high or fact.p == high == 1]
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


def patterns(record: RunRecord) -> list[Pattern]:
    """Which probes the tokens of a step passed, the most frequent pattern first, for every step
    with more than one probe."""
    return [pattern for step in record.steps for pattern in _patterns_of(step)]


def _patterns_of(step: StepRecord) -> list[Pattern]:
    found = [verified for verified, _ in facts_by_token(step).values() if verified]
    if all(len(fact.probes) < 2 for fact in found):
        return []
    groups: dict[tuple[tuple[str, bool], ...], list[Verified]] = {}
    for fact in found:
        key = tuple((name, result.passed) for name, result in fact.probes.items())
        groups.setdefault(key, []).append(fact)
    made = [
        Pattern(step.id, dict(key), len(facts), sum(fact.severe for fact in facts))
        for key, facts in groups.items()
    ]
    return sorted(made, key=lambda one: (-one.tokens, *one.passed.values()))


def alarms(record: RunRecord) -> list[Alarms]:
    """The false alarms of every step that had controls."""
    return [found for step in record.steps if (found := _alarms_of(step))]


def _alarms_of(step: StepRecord) -> Alarms | None:
    from scipy.stats import binomtest

    controls = controls_of(step)
    if not controls:
        return None
    raised = sum(control.alarm for control in controls)
    interval = binomtest(raised, len(controls)).proportion_ci(method="wilson")
    elsewhere = controls_elsewhere(step)
    own = [verified or sampled for verified, sampled in facts_by_token(step).values()]
    return Alarms(
        step=step.id,
        flagged=sum(bool(fact and fact.flagged) for fact in own),
        tokens=len(own),
        alarms=raised,
        controls=len(controls),
        alike=sum(control.alike for control in controls),
        low=float(interval.low),
        high=float(interval.high),
        kinds=_alarms_by_kind([fact for fact in own if fact], controls),
        doubtful=_doubtful(controls),
        elsewhere=len(elsewhere),
        elsewhere_alarms=sum(control.alarm for control in elsewhere),
    )


def _alarms_by_kind(
    own: Iterable[TokenFact], controls: Iterable[Control]
) -> tuple[KindAlarms, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    for sort, facts in (("own", own), ("control", [control.fact for control in controls])):
        for fact in facts:
            kind = kind_of(fact.token.text, fact.token.category)
            counts[kind, sort] += 1
            counts[kind, f"{sort} flagged"] += fact.flagged
    return tuple(
        KindAlarms(
            kind,
            flagged=counts[kind, "own flagged"],
            tokens=counts[kind, "own"],
            alarms=counts[kind, "control flagged"],
            controls=counts[kind, "control"],
        )
        for kind in TOKEN_KINDS
        if counts[kind, "own"] or counts[kind, "control"]
    )


def _doubtful(controls: Iterable[Control]) -> tuple[str, ...]:
    """The names of the doubtful scripts, the one with the most alarms first."""
    controls = list(controls)
    groups = doubtful_groups((one.token.text, one.alarm) for one in controls)
    texts = [one.token.text for one in controls if one.alarm]
    names = Counter(script_name(text) for text in texts if group_of(text) in groups)
    return tuple(name for name, _ in names.most_common())


def most_severe(record: RunRecord, count: int) -> list[TokenRow]:
    """The glitch tokens of lowest probability, below `MILD`, with their samples."""
    tried = {fact.token.id: fact for fact in samples(record)}
    found = [fact for fact in verdicts(record) if fact.glitch and fact.p < MILD]
    found.sort(key=lambda fact: (fact.p, fact.token.id))
    return [TokenRow(fact.token, (), fact, tried.get(fact.token.id)) for fact in found[:count]]
