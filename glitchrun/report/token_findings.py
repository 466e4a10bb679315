"""What a run found out about tokens, in sentences: the result, its caveats, and details."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glitchrun.behaviour.significance import wilson
from glitchrun.events import SEVERE, Sampled
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.agreement import shown, spread, spread_unit
from glitchrun.report.alarms import alarm_sentence, alarms
from glitchrun.report.formatting import counted, figure, percent, quoted, share
from glitchrun.report.token_rows import (
    TokenRow,
    facts_by_token,
    found_tokens,
    is_readable,
    named_tokens,
    remembered,
    token_rows,
    worst_first,
)
from glitchrun.report.totals import (
    MILD,
    Severity,
    is_about_tokens,
    samples,
    severity,
    thresholds,
    verdicts,
)
from glitchrun.spec.schema import step_with_defaults
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES

NAMED = 5
"""Tokens named in a sentence."""

_GUIDED = 0.5
"""Share of correctly predicted verdicts below which the screen is reported as unhelpful."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The main number about tokens, its unit, and sentences in three parts."""

    number: int | None
    unit: str
    result: tuple[str, ...] = ()
    """The number of tokens found and examined, the most severe of them, and the share of the scope
    that is covered."""
    caveats: tuple[str, ...] = ()
    """Limits of the result: intervals, false alarms, missed tokens."""
    details: tuple[str, ...] = ()


@remembered
def findings(record: RunRecord) -> Findings:
    """Confirmed tokens; else severe glitch tokens; else glitch tokens; else no number."""
    found, sampled = severity(record), samples(record)
    if not sampled and not found.verified:
        if is_about_tokens(record):
            return Findings(None, "no verdict", ("No token was verified or sampled.",))
        return Findings(None, "no result")
    verified = _about_verdicts(record, found)
    covered, unaudited = _about_recall(record.steps)
    both, several = shown(record), spread(record)
    first = _about_samples(record, sampled) if sampled else verified
    last = covered[0] if covered else verified
    spelled_otherwise, nothing_like_it = _about_emitted(found)
    named = "" if sampled else _about_passed(record)
    result = [
        both.sentence if both else "",
        first,
        _about_worst(record, sampled),
        named,
        *([last] if last != first else []),
    ]
    if several and not sampled:
        result = [several]
    caveats = [
        _about_intervals(record, sampled),
        *map(alarm_sentence, alarms(record)),
        spelled_otherwise,
        *unaudited,
        *map(_about_screen, record.steps),
        *map(_about_left, record.steps),
        _why_unsampled(record) if found.glitch and not sampled else "",
    ]
    details = [
        *covered[1:],
        "" if verified in result or (several and not sampled) else verified,
        _about_severity(record, found),
        nothing_like_it,
        _about_excluded(record),
        *map(_about_saved, record.steps),
    ]
    parts = (tuple(filter(None, part)) for part in (result, caveats, details))
    return Findings(*_number(record, found, sampled), *parts)


def _number(record: RunRecord, found: Severity, sampled: Sequence[Sampled]) -> tuple[int, str]:
    if both := shown(record):
        return both.in_chat, both.unit
    if (several := spread_unit(record)) and not sampled:
        return several
    if sampled:
        confirmed = sum(fact.confirmed for fact in sampled)
        return confirmed, "confirmed glitch token" + ("" if confirmed == 1 else "s")
    if found.severe:
        return found.severe, f"severe glitch token{'' if found.severe == 1 else 's'}, not sampled"
    if found.glitch:
        plural = "" if found.glitch == 1 else "s"
        return found.glitch, f"glitch token{plural}, none of them severe, not sampled"
    return 0, "glitch tokens"


# The result


def _about_samples(record: RunRecord, sampled: Sequence[Sampled]) -> str:
    attempts = sorted({fact.attempts for fact in sampled})
    number = f"{attempts[0]}" if len(attempts) == 1 else f"{attempts[0]} to {attempts[-1]}"
    level = thresholds(record).asr
    least = percent(level) if level else "one"
    confirmed = sum(fact.confirmed for fact in sampled)
    tried = counted(len(sampled), "sampled token")
    which = f"All {tried}" if confirmed == len(sampled) > 1 else f"{confirmed:,} of {tried}"
    return (
        f"{which} failed at least {least} of their attempts ({number} each; "
        f"thresholds.asr = {level:g})."
    )


def _about_verdicts(record: RunRecord, found: Severity) -> str:
    """The share of verified tokens that are glitch tokens, and the criterion."""
    if not found.verified:
        return ""
    level, probes = thresholds(record).probability, _probes(record)
    limit = (
        ", at any probability (thresholds.probability = 1)"
        if level >= 1
        else f" with a probability below {level:g} (thresholds.probability), and "
        f"{f'{found.near_miss:,}' if found.near_miss else 'none'} failed with a higher one"
    )
    size = record.model.vocabulary_size if record.model else 0
    whole = f" ({share(found.verified, size)} of the vocabulary's {size:,})" if size else ""
    return (
        f"Of {counted(found.verified, 'verified token')}{whole}, {found.glitch:,} "
        f"({share(found.glitch, found.verified)}) failed {probes}{limit}."
    )


def _probes(record: RunRecord) -> str:
    """The probes that a glitch token fails, in words."""
    groups = {fact.any_of for fact in verdicts(record)} - {()}
    if groups:
        return f"any of the probes {', '.join(next(iter(groups))[0])}"
    asked = {(*fact.probes, *fact.answers) for fact in verdicts(record)}
    names = sorted({name for probes in asked for name in probes})
    if len(names) == 1:
        return f"the probe {names[0]}"
    if len(asked) > 1:  # steps with different probes
        return f"every probe applied to them ({', '.join(names)})"
    return f"each of the probes {', '.join(names)}"


def _about_worst(record: RunRecord, sampled: Sequence[Sampled]) -> str:
    """Names the worst tokens; of those that are tied, readable ones."""
    worst = worst_first(found_tokens(token_rows(record)))
    confirmed = [row for row in worst if row.confirmed]
    if confirmed:
        return _worst_confirmed(confirmed)
    if sampled:
        return _nearest_to_confirmed(sampled)
    return _named("The least probable are", worst, _probability)


def _probability(row: TokenRow) -> str:
    """The probability of a token; spellings and lengths that were compared as text have none."""
    return f"p {figure(row.p)}" if row.closest else "wrong answer"


def _worst_confirmed(worst: Sequence[TokenRow]) -> str:
    tied = [row for row in worst if row.asr == worst[0].asr]
    if len(tied) <= NAMED:
        return _named("The highest ASR have", worst, lambda row: percent(row.asr))
    names = _listed([quoted(row.token) for row in tied[:NAMED]])
    number = f"All {len(tied):,}" if len(tied) == len(worst) else f"{len(tied):,}"
    return f"{number} are tied at an ASR of {percent(tied[0].asr)}, among them {names}."


def _nearest_to_confirmed(sampled: Sequence[Sampled]) -> str:
    highest = max(fact.asr for fact in sampled)
    if not highest:
        return "No sampled attempt failed."
    tokens = [fact.token for fact in sampled if fact.asr == highest]
    tokens.sort(key=lambda token: (not is_readable(token), token.id))
    return f"The highest ASR was {percent(highest)}, of {_some([*map(quoted, tokens)])}."


def _about_passed(record: RunRecord) -> str:
    """Names the tokens that the spec names and that passed; empty if none did."""
    passed = [row.token for row in named_tokens(record, token_rows(record)) if row.passed]
    return f"{_some([*map(quoted, passed)])} passed." if passed else ""


def _named(verb: str, worst: Sequence[TokenRow], measure: Callable[[TokenRow], str]) -> str:
    """The first tokens, each with its measure; empty without tokens."""
    names = [f"{quoted(row.token)} ({measure(row)})" for row in worst[:NAMED]]
    if len(worst) <= 1:
        return f"It is {names[0]}." if names else ""
    return f"{verb if len(worst) > NAMED else 'They are'} {_listed(names)}."


def _some(names: Sequence[str]) -> str:
    """The first names and the number of the others."""
    hidden = len(names) - NAMED
    return _listed([*names[:NAMED], *([f"{hidden:,} more"] if hidden > 0 else [])])


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _about_recall(steps: Sequence[StepRecord]) -> tuple[list[str], list[str]]:
    """What each cascade says about the share of all glitch tokens that it found, and which of them
    cannot say."""
    covered, unaudited = [], []
    for step in steps:
        metric = step.metrics.get("recall_low")
        if not metric:
            continue
        screened = (fact for timed in step.batches for fact in timed.batch.screened)
        if len(facts_by_token(step)) == sum(len(fact.token_ids) for fact in screened):
            covered.append(
                f"Step {step.id} verified every token in scope, so it missed no glitch token."
            )
        elif metric.value is None:
            unaudited.append(
                f"How many glitch tokens step {step.id} missed is not known: it ended before an "
                "audit, or found nothing."
            )
        else:
            covered.append(_audited(step, metric.value))
    return covered, unaudited


def _audited(step: StepRecord, low: float) -> str:
    confidence = step_with_defaults({"strategy": step.strategy, **step.params})["confidence"]
    return (
        f"Step {step.id} found at least {percent(low)} of the glitch tokens in scope, "
        f"with {percent(confidence)} confidence, by a random audit of the tokens that it skipped."
    )


# Caveats


def _about_intervals(record: RunRecord, sampled: Sequence[Sampled]) -> str:
    """For how many confirmed tokens the whole interval is above the threshold."""
    level = thresholds(record).asr
    confirmed = [fact for fact in sampled if fact.confirmed]
    if not confirmed or not level:
        return ""
    clear = sum(fact.asr_low >= level for fact in confirmed)
    above = f"their whole 95 % interval above the threshold of {percent(level)}"
    if clear == len(confirmed) > 1:
        return f"All {clear:,} confirmed tokens have {above}."
    if clear:
        part = f"{clear:,} of {counted(len(confirmed), 'confirmed token')}"
        return f"{part} ({share(clear, len(confirmed))}) have {above}."
    none = f"No confirmed token has its whole 95 % interval above the threshold of {percent(level)}"
    needed, made = _attempts_needed(level), max(fact.attempts for fact in confirmed)
    if needed is None:
        return f"{none}: no number of attempts can show that."
    return (
        f"{none}: that takes at least {needed} attempts, all failed."
        if made < needed
        else f"{none}."
    )


def _attempts_needed(level: float) -> int | None:
    """The fewest attempts, all failed, whose interval is above `level`; None if none suffices."""
    if level >= 1:
        return None
    odds = 1 / wilson(1, 1).low - 1  # Wilson's lower bound of n failures in n is n / (n + odds)
    return math.ceil(level * odds / (1 - level) - 1e-9)


def _about_emitted(found: Severity) -> tuple[str, str]:
    """How many glitch tokens the model knows in another spelling; the second text is for none."""
    piece, same = found.emitted["prefix"], found.emitted["case_space"]
    if not found.glitch:
        return "", ""
    if not piece and not same:
        return "", (
            "The model answered none of them with a shorter piece of the right text, or with the "
            "right text in other case or spacing."
        )
    of_all = f"of the {counted(found.glitch, 'glitch token')} "
    parts = [
        f"for {piece:,} {of_all}({share(piece, found.glitch)}) the model began the right text with "
        "a shorter piece"
        if piece
        else "",
        f"for {same:,} {'' if piece else of_all}({share(same, found.glitch)}) its answer differed "
        "only in case or spacing"
        if same
        else "",
    ]
    text = ", and ".join(filter(None, parts))
    return f"{text[0].upper()}{text[1:]}; it may know these words, just not as single tokens.", ""


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


def _about_left(step: StepRecord) -> str:
    """The named tokens that a search did not verify; empty if none."""
    metric = step.metrics.get("left")
    search = SEARCHES.get(step.params.get("search", ""))
    if not metric or not search or not search.selects:
        return ""
    if metric.n == 0:
        return f"Step {step.id} named no token in scope (tokens in the spec)."
    if not metric.value:
        return ""
    limits = [name for name in ("iterations", "budget") if step.params.get(name) is not None]
    raised = " and ".join(limits or ["budget"])
    asked = f"{metric.value:,.0f} of the {counted(metric.n or 0, 'token')}"
    return (
        f"Step {step.id} ran out of budget before verifying {asked} that it named. Raise "
        f"{raised}, or draw a sample of them with sample_rate or sample_size."
    )


def _why_unsampled(record: RunRecord) -> str:
    strategies = [STRATEGIES.get(step.strategy) for step in record.steps]
    if any(strategy is not None and strategy.samples_attempts for strategy in strategies):
        return "No attempts were sampled, so none of them is confirmed."
    return "The experiment has no step that samples attempts, so none of them is confirmed."


# Details


def _about_severity(record: RunRecord, found: Severity) -> str:
    """The severe tokens among the glitch tokens; empty if all are severe by definition."""
    if not found.glitch or thresholds(record).probability <= SEVERE:
        return ""
    several = any(len(fact.probes) > 1 for fact in verdicts(record))
    below = f"with a probability below {SEVERE:g}{' in every probe' if several else ''}"
    if found.severe == found.glitch > 1:
        return f"All {found.glitch:,} glitch tokens are severe, {below}."
    mild = (
        f"; {found.mild:,} {'is' if found.mild == 1 else 'are'} below {MILD:g}"
        if found.mild and thresholds(record).probability > MILD  # else all are
        else ""
    )
    if not found.severe and found.glitch > 1:
        return f"None of the {found.glitch:,} glitch tokens is severe, {below}{mild}."
    return (
        f"Of the {counted(found.glitch, 'glitch token')}, {found.severe:,} "
        f"({share(found.severe, found.glitch)}) "
        f"{'is' if found.severe == 1 else 'are'} severe, {below}{mild}."
    )


def _about_excluded(record: RunRecord) -> str:
    """The tokens that the spec excludes; empty if none."""
    if not record.model or not (record.spec.get("tokens") or {}).get("exclude"):
        return ""
    return f"tokens.exclude removed {counted(record.model.excluded, 'token')} from the scope."


def _about_saved(step: StepRecord) -> str:
    """The attempts that sequential testing saved; empty if none."""
    names = ("attempts", "attempts_saved", "stopped_early")
    known = (step.metrics.get(name) for name in names)
    made, saved, stopped = (int(metric.value or 0) if metric else 0 for metric in known)
    if not saved:
        return ""
    return (
        f"Step {step.id} stopped early on {counted(stopped, 'token')}, as soon as the verdict was "
        f"certain, which saved {saved:,} of {counted(made + saved, 'attempt')}."
    )
