"""Matched controls: how often a step raises its alarm over ordinary tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from scipy.stats import binomtest

from glitchrun.events import Batch, Control, Measured
from glitchrun.strategies.context import Context
from glitchrun.strategies.verdicts import Judge, judged
from glitchrun.vocabulary.controls import Match, matched


def draw(
    context: Context, suspects: Sequence[int], count: int, batches: Sequence[Batch]
) -> list[Match]:
    """The controls of a step, from its seed and facts alone: the same after an interruption.

    Ordinary tokens like the suspects, that the spec does not exclude and neither this step has
    looked at nor any step before it has flagged; those that a step before it has looked at come
    last.
    """
    looked_at = {fact.token.id for batch in batches for fact in batch.token_facts}
    earlier = [batch for found in context.earlier.values() for batch in found]
    before = [fact for batch in earlier for fact in batch.token_facts]
    flagged = {fact.token.id for fact in before if fact.flagged}
    return matched(
        context.vocabulary,
        suspects,
        count,
        context.spec.seed,
        exclude=looked_at | flagged | context.excluded(("normal",)),
        avoid={fact.token.id for fact in before},
    )


def judged_controls(
    context: Context, judge: Judge, count: int, batches: Sequence[Batch]
) -> Iterator[Batch]:
    """Verifies controls of the glitch tokens that `batches` found, going on after those done."""
    if not count:
        return
    facts = [fact for batch in batches for fact in batch.token_facts]
    matches = draw(context, [fact.token.id for fact in facts if fact.flagged], count, batches)
    first = controls_done(batches)
    done = batches[-1].done - first if batches else 0
    for start in range(first, len(matches), judge.rows):
        chunk = matches[start : start + judge.rows]
        total = done + len(matches)
        _, batch = judged(judge, [match.token_id for match in chunk], done + start, total)
        yield as_controls(batch, chunk)


def scanned_controls(context: Context, count: int, batches: Sequence[Batch]) -> Iterator[Batch]:
    """Marks controls among the tokens of a scan, which has verified them already."""
    start = time.perf_counter()
    facts = {fact.token.id: fact for batch in batches for fact in batch.token_facts}
    if not count or controls_done(batches):
        return
    found = [token_id for token_id, fact in facts.items() if fact.flagged]
    outside = set(context.vocabulary.ids(("normal",))) - facts.keys()
    matches = matched(
        context.vocabulary, found, count, context.spec.seed, exclude=outside, mutual=True
    )
    if matches:
        marked = tuple(Control(one.of, one.alike, facts[one.token_id]) for one in matches)
        done = len(facts) + len(marked)
        yield Batch(marked, done, done, time.perf_counter() - start)


def as_controls(batch: Batch, matches: Sequence[Match]) -> Batch:
    """The batch with each fact marked as that of a control."""
    pairs = zip(matches, batch.token_facts, strict=True)
    return replace(batch, facts=tuple(Control(one.of, one.alike, fact) for one, fact in pairs))


def controls_done(batches: Sequence[Batch]) -> int:
    """How many controls a step has looked at."""
    return sum(len(batch.controls) for batch in batches)


def control_metrics(count: int, batches: Sequence[Batch]) -> Iterator[Measured]:
    """The share of false alarms with Wilson's 95 % interval; nothing where none were asked for."""
    if not count:
        return
    controls = [control for batch in batches for control in batch.controls]
    n, alarms = len(controls), sum(control.alarm for control in controls)
    rate = low = high = None
    if n:
        interval = binomtest(alarms, n).proportion_ci(confidence_level=0.95, method="wilson")
        rate, low, high = alarms / n, float(interval.low), float(interval.high)
    yield Measured("controls", n, n)
    yield Measured("false_alarms", alarms, n)
    yield Measured("false_alarm_rate", rate, n)
    yield Measured("false_alarm_low", low, n)
    yield Measured("false_alarm_high", high, n)
