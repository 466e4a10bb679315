"""False alarms: how often a step flags its controls, which are ordinary tokens. A token is
*flagged* if the step calls it a glitch token or, in a step that samples attempts, confirms it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from glitchrun.behaviour.significance import wilson
from glitchrun.events import Control, Sampled, TokenFact
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import counted, percent, share
from glitchrun.report.token_rows import controls_elsewhere, controls_of, facts_by_token
from glitchrun.vocabulary.character_groups import (
    KINDS,
    READABLE,
    doubtful_groups,
    group_of,
    kind_of,
    script_name,
)

_NAMED = 3
"""Scripts named in a sentence."""


@dataclass(frozen=True, slots=True)
class KindAlarms:
    """Flagged candidates and controls of one kind (`vocabulary.character_groups.KINDS`)."""

    kind: str
    flagged: int
    """Of `tokens`."""
    tokens: int
    alarms: int
    """Of `controls`."""
    controls: int
    low: float | None
    high: float | None
    """Bounds of Wilson's 95 % interval of alarms / controls; None without controls."""


@dataclass(frozen=True, slots=True)
class Alarms:
    """How many controls of a step are false alarms, and how many of its candidates were found."""

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
    sampled: bool
    """Whether the step samples attempts, so that flagged tokens are confirmed ones."""


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
        sampled=isinstance(controls[0].fact, Sampled),
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
    present = [kind for kind in KINDS if counts[kind, "own"] or counts[kind, "control"]]
    return tuple(_kind_alarms(kind, counts) for kind in present)


def _kind_alarms(kind: str, counts: Mapping[tuple[str, str], int]) -> KindAlarms:
    raised, controls = counts[kind, "control flagged"], counts[kind, "control"]
    interval = wilson(raised, controls) if controls else None
    return KindAlarms(
        kind,
        flagged=counts[kind, "own flagged"],
        tokens=counts[kind, "own"],
        alarms=raised,
        controls=controls,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
    )


def _doubtful(controls: Iterable[Control]) -> tuple[str, ...]:
    """Names of the doubtful scripts, the one with the most alarms first."""
    controls = list(controls)
    groups = doubtful_groups((one.token.text, one.alarm) for one in controls)
    texts = [one.token.text for one in controls if one.alarm]
    names = Counter(script_name(text) for text in texts if group_of(text) in groups)
    return tuple(name for name, _ in names.most_common())


def alarm_sentence(found: Alarms) -> str:
    """The false-alarm rate of a step in words, with what limits its meaning."""
    verb = "confirmed" if found.sampled else "flagged"
    rate = share(found.alarms, found.controls)
    first = (
        f"{found.step}: {found.alarms:,} of {counted(found.controls, 'matched ordinary token')} "
        f"{'was' if found.alarms == 1 else 'were'} also {verb} ({rate}, 95 % CI "
        f"{percent(found.low)} to {percent(found.high)}), "
        f"against {found.flagged:,} of {found.tokens:,} candidates "
        f"({share(found.flagged, found.tokens)})."
    )
    parts = (first, _by_kind(found, verb), _on_unreadable(found, verb), _on_doubtful(found, verb))
    return " ".join(filter(None, parts))


def _by_kind(found: Alarms, verb: str) -> str:
    """The alarms by kind of token; empty without alarms, or with one kind of control."""
    kinds = [one for one in found.kinds if one.controls]
    if not found.alarms or len(kinds) < 2:
        return ""
    parts = ", ".join(f"{one.kind} {one.alarms:,} of {one.controls:,}" for one in kinds)
    readable = [one for one in kinds if one.kind in READABLE]
    spared = readable and not any(one.alarms for one in readable)
    rest = f" No control with a letter or digit was {verb}." if spared else ""
    return f"By kind: {parts}.{rest}"


def _on_unreadable(found: Alarms, verb: str) -> str:
    """The candidates without letter or digit, which raise most false alarms; empty if none."""
    number = sum(one.flagged for one in found.kinds if one.kind not in READABLE)
    if not number:
        return ""
    return (
        f"{number:,} of the {found.flagged:,} {verb} candidates "
        f"{'contains' if number == 1 else 'contain'} no letter or digit."
    )


def _on_doubtful(found: Alarms, verb: str) -> str:
    """A warning if the controls of a script are not informative; else empty."""
    if not found.doubtful:
        return ""
    scripts = ", ".join(found.doubtful[:_NAMED])
    elsewhere = (
        f" Of {counted(found.elsewhere, 'control')} from other scripts, {found.elsewhere_alarms:,} "
        f"{'was' if found.elsewhere_alarms == 1 else 'were'} {verb} "
        f"({share(found.elsewhere_alarms, found.elsewhere)})."
        if found.elsewhere
        else ""
    )
    return (
        f"At least half of the controls in {scripts} were {verb}. Either the model hardly knows "
        "these scripts, or the check does not suit them; the false-alarm rate cannot tell "
        f"which.{elsewhere}"
    )
