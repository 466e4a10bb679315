"""False alarms: how often a check flags its controls, which are ordinary tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from glitchrun.behaviour.rates import wilson
from glitchrun.events import Control, TokenFact
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.token_rows import controls_elsewhere, controls_of, facts_by_token
from glitchrun.vocabulary.groups import KINDS, doubtful_groups, group_of, kind_of, script_name


@dataclass(frozen=True, slots=True)
class KindAlarms:
    """Flagged candidates and controls of one kind (`vocabulary.groups.KINDS`)."""

    kind: str
    flagged: int
    """Of `tokens`."""
    tokens: int
    alarms: int
    """Of `controls`."""
    controls: int


@dataclass(frozen=True, slots=True)
class Alarms:
    """How many of its controls a step flagged, beside its candidates."""

    step: str
    flagged: int
    """Of `tokens`, found or confirmed."""
    tokens: int
    alarms: int
    """Of `controls`, found or confirmed."""
    controls: int
    alike: int
    """Controls that match their token in script and leading space."""
    low: float
    high: float
    """Bounds of Wilson's 95 % interval of alarms / controls."""
    kinds: tuple[KindAlarms, ...]
    """The same by kind of token; only kinds with a candidate or a control."""
    doubtful: tuple[str, ...]
    """Scripts in which most controls were flagged (`doubtful_groups`): there the controls cannot
    distinguish a wrong check from a script that the model hardly knows."""
    elsewhere: int
    """Additional controls, drawn from other scripts."""
    elsewhere_alarms: int


def alarms(record: RunRecord) -> list[Alarms]:
    """The false alarms of every step with controls."""
    return [found for step in record.steps if (found := _alarms_of(step))]


def _alarms_of(step: StepRecord) -> Alarms | None:
    controls = controls_of(step)
    if not controls:
        return None
    raised = sum(control.alarm for control in controls)
    interval = wilson(raised, len(controls))
    elsewhere = controls_elsewhere(step)
    own = [verified or sampled for verified, sampled in facts_by_token(step).values()]
    return Alarms(
        step=step.id,
        flagged=sum(bool(fact and fact.flagged) for fact in own),
        tokens=len(own),
        alarms=raised,
        controls=len(controls),
        alike=sum(control.alike for control in controls),
        low=interval.low,
        high=interval.high,
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
        for kind in KINDS
        if counts[kind, "own"] or counts[kind, "control"]
    )


def _doubtful(controls: Iterable[Control]) -> tuple[str, ...]:
    """Names of the doubtful scripts, the one with the most alarms first."""
    controls = list(controls)
    groups = doubtful_groups((one.token.text, one.alarm) for one in controls)
    texts = [one.token.text for one in controls if one.alarm]
    names = Counter(script_name(text) for text in texts if group_of(text) in groups)
    return tuple(name for name, _ in names.most_common())
