"""The number a run comes down to, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.events import SEVERE, Sampled
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.alarms import Alarms, alarms
from glitchrun.report.formatting import counted, figure, percent, share
from glitchrun.report.token_rows import facts_by_token
from glitchrun.report.totals import (
    MILD,
    Severity,
    is_about_tokens,
    samples,
    severity,
    thresholds,
    verdicts,
)
from glitchrun.spec.defaults import step_with_defaults
from glitchrun.spec.schema import strategies
from glitchrun.spec.searches import SEARCHES

DIGITS = 3
"""Significant digits of a metric in the headline."""

_STOPPED = {
    "RUNNING": "The run is not over: the numbers are those of the moment this page was written.",
    "KILLED": "The run was stopped before its end: the numbers cover what was finished until then. "
    "It can be resumed: run the same glitchrun apply again.",
    "DAMAGED": "The run's ledger is damaged: the numbers cover what is good of it.",
    "FAILED": "The run failed: the numbers cover what was finished until then.",
}

_READABLE = ("words", "digits")
"""Kinds of token that hold a letter or a digit."""
_NAMED = 3
"""Scripts named in a sentence."""
_GUIDED = 0.5
"""Share of verdicts below which a screen that foresaw them is called no guide."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The number a run comes down to, and what it means."""

    number: float | None
    unit: str
    sentences: tuple[str, ...]


def headline(record: RunRecord) -> Headline:
    """The number to read first: confirmed tokens, else severe glitch tokens, else the one that a
    step's strategy declares as `x-headline`, the last step's first, else that there is none."""
    warning = _STOPPED.get(record.status)
    reason = f"Reason on record: {record.error}" if record.error else None
    number, unit, sentences = _result(record)
    repairs = [
        "The ledger was found damaged when the run was resumed, and what was lost was computed "
        f"again: {repair}."
        for repair in record.repairs
    ]
    return Headline(number, unit, tuple(filter(None, (warning, reason, *repairs, *sentences))))


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
    unit = declared.get("one", declared["unit"]) if metric.value == 1 else declared["unit"]
    holds = [
        sentence
        for name, sentence in declared.get("when", {}).items()
        if (found := step.metrics.get(name)) and found.value
    ]
    said = " ".join([declared["sentence"], *holds]).format(**numbers)
    return step.id, metric.value, unit, said


def declared_headline(step: StepRecord) -> Mapping[str, Any] | None:
    """What the step's strategy declares as `x-headline`: metric, unit, sentence, when, cards."""
    found: Mapping[str, Any] | None = strategies().get(step.strategy, {}).get("x-headline")
    return found


def _verdict(record: RunRecord) -> tuple[int | None, str, list[str]]:
    found, sampled = severity(record), samples(record)
    about = [
        _about_verdicts(record, found),
        _about_severity(record, found),
        _about_emitted(found),
        _about_excluded(record),
        *map(_about_left, record.steps),
        *map(_about_recall, record.steps),
        *map(_about_screen, record.steps),
        *map(_about_controls, alarms(record)),
    ]
    if sampled:
        confirmed = sum(fact.confirmed for fact in sampled)
        unit = "confirmed glitch token" if confirmed == 1 else "confirmed glitch tokens"
        saved = map(_about_saved, record.steps)
        return confirmed, unit, [_about_samples(record, sampled), *saved, *about]
    if found.verified:
        if not found.glitch:
            return 0, "glitch tokens", about
        unit = "severe glitch token" if found.severe == 1 else "severe glitch tokens"
        return found.severe, f"{unit}, not sampled", [*about, _why_unsampled(record)]
    if is_about_tokens(record):
        return None, "no verdict", ["No token was verified or sampled."]
    return None, "no result", []


def _about_samples(record: RunRecord, sampled: list[Sampled]) -> str:
    attempts = sorted({fact.attempts for fact in sampled})
    number = f"{attempts[0]}" if len(attempts) == 1 else f"{attempts[0]} to {attempts[-1]}"
    level = thresholds(record).asr
    share = percent(level) if level else "one"
    return (
        f"{sum(fact.confirmed for fact in sampled):,} of {counted(len(sampled), 'sampled token')} "
        f"failed at least {share} of their attempts ({number} each; thresholds.asr = {level:g})."
    )


def _about_saved(step: StepRecord) -> str:
    """What `sequential` did without; empty where no attempt was saved."""
    names = ("attempts", "attempts_saved", "stopped_early")
    made, saved, stopped = (int(_value(step, name)) for name in names)
    if not saved:
        return ""
    return (
        f"Step {step.id} stopped early on {counted(stopped, 'token')}, as soon as the verdict was "
        f"settled, which saved {saved:,} of {counted(made + saved, 'attempt')}."
    )


def _value(step: StepRecord, name: str) -> float:
    metric = step.metrics.get(name)
    return (metric.value or 0) if metric else 0


def _about_verdicts(record: RunRecord, found: Severity) -> str:
    """What share of how many tokens failed, and by what measure."""
    if not found.verified:
        return ""
    level, prompts = thresholds(record).probability, _asked(record)
    limit = (
        ", whatever the probability it gave the token (thresholds.probability = 1)"
        if level >= 1
        else f" with a probability below {level:g} (thresholds.probability), and "
        f"{counted(found.near_miss, 'near miss', 'near misses')} failed with a higher one"
    )
    size = record.model.vocabulary_size if record.model else 0
    whole = f" ({share(found.verified, size)} of the vocabulary's {size:,})" if size else ""
    return (
        f"Of {counted(found.verified, 'verified token')}{whole}, {found.glitch:,} "
        f"({share(found.glitch, found.verified)}) failed {prompts}{limit}."
    )


def _asked(record: RunRecord) -> str:
    """What a token had to fail, in words."""
    asked = {tuple(fact.probes) for fact in verdicts(record)}
    names = sorted({name for probes in asked for name in probes})
    if len(names) == 1:
        return f"the probe {names[0]}"
    if len(asked) > 1:  # by steps that asked differently
        return f"every probe that they were asked in ({', '.join(names)})"
    return f"each of the probes {', '.join(names)}"


def _about_excluded(record: RunRecord) -> str:
    """What the spec kept out of the scope; empty where there is no such thing."""
    if not record.model or not (record.spec.get("tokens") or {}).get("exclude"):
        return ""
    return f"tokens.exclude left {counted(record.model.excluded, 'token')} out of the scope."


def _about_left(step: StepRecord) -> str:
    """What a search of named tokens did not come to; empty where nothing was left."""
    metric = step.metrics.get("left")
    search = SEARCHES.get(step.params.get("search", ""))
    if not metric or not search or not search.names_tokens:
        return ""
    if metric.n == 0:
        return f"Step {step.id} named no token that is in scope (`tokens` in the spec)."
    if not metric.value:
        return ""
    limits = [name for name in ("iterations", "budget") if step.params.get(name) is not None]
    raised = " and ".join(f"`{name}`" for name in limits or ["budget"])
    asked = f"{metric.value:,.0f} of the {counted(metric.n or 0, 'token')}"
    return (
        f"Step {step.id} left {asked} that it named unverified: its budget was spent. Raise "
        f"{raised}, or draw a sample of them with `sample_rate` or `sample_size`."
    )


def _about_recall(step: StepRecord) -> str:
    """What share of the glitch tokens that there are a cascade found."""
    metric = step.metrics.get("recall_low")
    if not metric:
        return ""
    screened = (fact for timed in step.batches for fact in timed.batch.screened)
    if len(facts_by_token(step)) == sum(len(fact.token_ids) for fact in screened):
        return f"Step {step.id} verified every token in scope, so that it missed none."
    if metric.value is None:
        return (
            f"How many glitch tokens step {step.id} missed is not known: it ended before an audit, "
            "or found nothing."
        )
    confidence = step_with_defaults({"strategy": step.strategy, **step.params})["confidence"]
    return (
        f"Step {step.id} found at least {percent(metric.value)} of the glitch tokens in scope, "
        f"with {percent(confidence)} confidence, by a random audit of the tokens it had left aside."
    )


def _about_screen(step: StepRecord) -> str:
    """That the screen was no guide to this model; empty where it was."""
    metric = step.metrics.get("screen_agreement")
    if not metric or metric.value is None or metric.value >= _GUIDED:
        return ""
    return (
        f"The screen of step {step.id} predicted {percent(metric.value)} of its "
        f"{counted(metric.n or 0, 'verdict')}: on this model its order says little. "
        "Use search: surrogate."
    )


def _about_severity(record: RunRecord, found: Severity) -> str:
    if not found.glitch:
        return ""
    each = " in every probe" if _has_several_probes(record) else ""
    return (
        f"Of these {counted(found.glitch, 'glitch token')}, {found.severe:,} "
        f"({share(found.severe, found.glitch)}) "
        f"{'is' if found.severe == 1 else 'are'} severe, with a probability below "
        f"{SEVERE:g}{each}; {found.mild:,} {'lies' if found.mild == 1 else 'lie'} below {MILD:g}."
    )


def _has_several_probes(record: RunRecord) -> bool:
    return any(len(fact.probes) > 1 for fact in verdicts(record))


def _about_emitted(found: Severity) -> str:
    if not found.glitch:
        return ""
    piece, same = found.emitted["prefix"], found.emitted["case_space"]
    if not piece and not same:
        return (
            "The model answered none of them with a shorter piece of the right text, or with the "
            "right text in other case or spacing."
        )
    return (
        f"For {piece:,} of them ({share(piece, found.glitch)}) the model began the right text with "
        f"a shorter piece, and for {same:,} ({share(same, found.glitch)}) its answer differed only "
        "in case or spacing; it may know these words, just not as single tokens."
    )


def _about_controls(found: Alarms) -> str:
    rate = share(found.alarms, found.controls)
    told = (
        f"{found.step}: {found.alarms:,} of {counted(found.controls, 'matched ordinary token')} "
        f"{'was' if found.alarms == 1 else 'were'} also flagged ({rate}, 95 % CI "
        f"{percent(found.low)} to {percent(found.high)}), "
        f"against {found.flagged:,} of {found.tokens:,} candidates "
        f"({share(found.flagged, found.tokens)})."
    )
    return " ".join([told, *_about_kinds(found), *_about_doubtful(found)])


def _about_kinds(found: Alarms) -> Iterator[str]:
    """Where the alarms lie, when there is more than one kind of token to tell apart."""
    kinds = [one for one in found.kinds if one.controls]
    if found.alarms and len(kinds) > 1:
        parts = [f"{one.kind} {one.alarms:,} of {one.controls:,}" for one in kinds]
        yield f"By kind: {', '.join(parts)}."
    others = sum(one.flagged for one in found.kinds if one.kind not in _READABLE)
    if others:
        yield (
            f"{others:,} of the {found.flagged:,} flagged candidates "
            f"{'contains' if others == 1 else 'contain'} no letter or digit."
        )


def _about_doubtful(found: Alarms) -> Iterator[str]:
    """That controls of a script do not tell what they are there to tell."""
    if not found.doubtful:
        return
    scripts = ", ".join(found.doubtful[:_NAMED])
    beside = (
        f" Of {counted(found.elsewhere, 'control')} of other scripts, {found.elsewhere_alarms:,} "
        f"{'was' if found.elsewhere_alarms == 1 else 'were'} flagged "
        f"({share(found.elsewhere_alarms, found.elsewhere)})."
        if found.elsewhere
        else ""
    )
    yield (
        f"At least half of the controls in {scripts} were flagged. Ordinary tokens there are as "
        "bad as those found: either the model hardly knows them, or the check does not suit them, "
        f"and the false-alarm rate cannot tell which.{beside}"
    )


def _why_unsampled(record: RunRecord) -> str:
    if any(step.strategy == "validate" for step in record.steps):
        return "No sampled attempt is on record, so none of them is confirmed."
    return "The experiment has no step that samples attempts, so none of them is confirmed."
