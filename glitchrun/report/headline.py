"""The main result of a run: one number, and sentences that explain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.events import SEVERE, Sampled
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.alarms import alarm_sentence, alarms
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
from glitchrun.spec.schema import fragments
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES

DIGITS = 3
"""Significant digits of a metric in the headline."""

_STOPPED = {
    "RUNNING": "The run is not over: the numbers are those at the time of writing.",
    "KILLED": "The run was stopped before its end: the numbers cover what had finished by then. "
    "It can be resumed: run the same glitchrun apply again.",
    "DAMAGED": "The run's ledger is damaged: the numbers cover its intact part.",
    "FAILED": "The run failed: the numbers cover what had finished by then.",
}

_GUIDED = 0.5
"""Share of correctly predicted verdicts below which the screen is reported as unhelpful."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The main number of a run, its unit, and sentences that explain it."""

    number: float | None
    unit: str
    sentences: tuple[str, ...]


def headline(record: RunRecord) -> Headline:
    """The main result: confirmed tokens; else severe glitch tokens; else the metric that the last
    step with an `x-headline` declares; else no number."""
    warning = _STOPPED.get(record.status)
    reason = f"Reason: {record.error}" if record.error else None
    number, unit, sentences = _result(record)
    repairs = [
        "The ledger was damaged when the run was resumed. The lost part was computed again: "
        f"{repair}."
        for repair in record.repairs
    ]
    return Headline(number, unit, tuple(filter(None, (warning, reason, *repairs, *sentences))))


def _result(record: RunRecord) -> tuple[float | None, str, list[str]]:
    found, unit, sentences = _verdict(record)
    declared = [one for step in reversed(record.steps) if (one := _declared_result(step))]
    several = len(record.steps) > 1
    also = [f"{step}: {text}" if several else text for step, _, _, text in declared]
    if declared and found is None:
        return declared[0][1], declared[0][2], also
    return found, unit, [*sentences, *also]


def _declared_result(step: StepRecord) -> tuple[str, float | None, str, str] | None:
    """Step id, number, unit and sentence according to the strategy's `x-headline`; None without
    one, or before the step has measured it."""
    declared = declared_headline(step)
    metric = step.metrics.get(declared["metric"]) if declared else None
    if not declared or not metric:
        return None
    numbers = {name: figure(found.value, DIGITS) for name, found in step.metrics.items()}
    unit = declared.get("one", declared["unit"]) if metric.value == 1 else declared["unit"]
    conditional = [
        sentence
        for name, sentence in declared.get("when", {}).items()
        if (found := step.metrics.get(name)) and found.value
    ]
    text = " ".join([declared["sentence"], *conditional]).format(**numbers)
    return step.id, metric.value, unit, text


def declared_headline(step: StepRecord) -> Mapping[str, Any] | None:
    """The `x-headline` of the step's strategy: metric, unit, sentence, when, cards, answers."""
    found: Mapping[str, Any] | None = fragments().get(step.strategy, {}).get("x-headline")
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
        *map(alarm_sentence, alarms(record)),
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
    """The attempts that sequential testing saved; empty if none."""
    names = ("attempts", "attempts_saved", "stopped_early")
    made, saved, stopped = (int(_value(step, name)) for name in names)
    if not saved:
        return ""
    return (
        f"Step {step.id} stopped early on {counted(stopped, 'token')}, as soon as the verdict was "
        f"certain, which saved {saved:,} of {counted(made + saved, 'attempt')}."
    )


def _value(step: StepRecord, name: str) -> float:
    metric = step.metrics.get(name)
    return (metric.value or 0) if metric else 0


def _about_verdicts(record: RunRecord, found: Severity) -> str:
    """The share of verified tokens that are glitch tokens, and the criterion."""
    if not found.verified:
        return ""
    level, probes = thresholds(record).probability, _probes(record)
    limit = (
        ", at any probability (thresholds.probability = 1)"
        if level >= 1
        else f" with a probability below {level:g} (thresholds.probability), and "
        f"{counted(found.near_miss, 'near miss', 'near misses')} failed with a higher one"
    )
    size = record.model.vocabulary_size if record.model else 0
    whole = f" ({share(found.verified, size)} of the vocabulary's {size:,})" if size else ""
    return (
        f"Of {counted(found.verified, 'verified token')}{whole}, {found.glitch:,} "
        f"({share(found.glitch, found.verified)}) failed {probes}{limit}."
    )


def _probes(record: RunRecord) -> str:
    """The probes that a glitch token fails, in words."""
    asked = {tuple(fact.probes) for fact in verdicts(record)}
    names = sorted({name for probes in asked for name in probes})
    if len(names) == 1:
        return f"the probe {names[0]}"
    if len(asked) > 1:  # steps with different probes
        return f"every probe applied to them ({', '.join(names)})"
    return f"each of the probes {', '.join(names)}"


def _about_excluded(record: RunRecord) -> str:
    """The tokens that the spec excludes; empty if none."""
    if not record.model or not (record.spec.get("tokens") or {}).get("exclude"):
        return ""
    return f"tokens.exclude removed {counted(record.model.excluded, 'token')} from the scope."


def _about_left(step: StepRecord) -> str:
    """The named tokens that a search did not verify; empty if none."""
    metric = step.metrics.get("left")
    search = SEARCHES.get(step.params.get("search", ""))
    if not metric or not search or not search.selects:
        return ""
    if metric.n == 0:
        return f"Step {step.id} named no token in scope (`tokens` in the spec)."
    if not metric.value:
        return ""
    limits = [name for name in ("iterations", "budget") if step.params.get(name) is not None]
    raised = " and ".join(f"`{name}`" for name in limits or ["budget"])
    asked = f"{metric.value:,.0f} of the {counted(metric.n or 0, 'token')}"
    return (
        f"Step {step.id} ran out of budget before verifying {asked} that it named. Raise "
        f"{raised}, or draw a sample of them with `sample_rate` or `sample_size`."
    )


def _about_recall(step: StepRecord) -> str:
    """A cascade's lower bound on the share of all glitch tokens that it found."""
    metric = step.metrics.get("recall_low")
    if not metric:
        return ""
    screened = (fact for timed in step.batches for fact in timed.batch.screened)
    if len(facts_by_token(step)) == sum(len(fact.token_ids) for fact in screened):
        return f"Step {step.id} verified every token in scope, so it missed no glitch token."
    if metric.value is None:
        return (
            f"How many glitch tokens step {step.id} missed is not known: it ended before an audit, "
            "or found nothing."
        )
    confidence = step_with_defaults({"strategy": step.strategy, **step.params})["confidence"]
    return (
        f"Step {step.id} found at least {percent(metric.value)} of the glitch tokens in scope, "
        f"with {percent(confidence)} confidence, by a random audit of the tokens that it skipped."
    )


def _about_screen(step: StepRecord) -> str:
    """A warning if the screen predicted few verdicts on this model; else empty."""
    metric = step.metrics.get("screen_agreement")
    if not metric or metric.value is None or metric.value >= _GUIDED:
        return ""
    return (
        f"The screen of step {step.id} predicted {percent(metric.value)} of its "
        f"{counted(metric.n or 0, 'verdict')}, so its order is of little use on this model. "
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
        f"{SEVERE:g}{each}; {found.mild:,} {'is' if found.mild == 1 else 'are'} below {MILD:g}."
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


def _why_unsampled(record: RunRecord) -> str:
    strategies = [STRATEGIES.get(step.strategy) for step in record.steps]
    if any(strategy is not None and strategy.samples_attempts for strategy in strategies):
        return "No attempts were sampled, so none of them is confirmed."
    return "The experiment has no step that samples attempts, so none of them is confirmed."
