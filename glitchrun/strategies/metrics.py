"""The metrics of steps with verdicts on tokens, computed from judged batches without the model.

`Strategy.metrics_code` names one of these functions. A run with new thresholds computes them again
from the facts of a finished step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glitchrun.behaviour.significance import McNemar, wilson
from glitchrun.events import Batch, Measured, Sampled, Verified
from glitchrun.spec.searches import SEARCHES
from glitchrun.strategies.mine import Config as MineConfig
from glitchrun.strategies.scan import Config as ScanConfig
from glitchrun.strategies.test import Config as TestConfig
from glitchrun.strategies.validate import Config as ValidateConfig


def of_verification(
    config: ScanConfig | TestConfig, batches: Sequence[Batch], measured: Sequence[Measured]
) -> Iterator[Measured]:
    """The metrics of `scan` and `test`."""
    if rows := _phrases(batches):
        yield from _of_phrases(rows, batches)
        return
    yield from _verdicts(batches)
    yield from _controls(config.controls, batches)


def of_mining(
    config: MineConfig, batches: Sequence[Batch], measured: Sequence[Measured]
) -> Iterator[Measured]:
    """The metrics of `mine`; `measured` are those that only its search knows, such as recall."""
    yield from _verdicts(batches)
    yield from _controls(config.controls, batches)
    n = sum(len(batch.token_facts) for batch in batches)
    for name in ("gradients", "screens"):
        yield Measured(name, _count(name, batches), n)
    yield Measured("search_seconds", sum(batch.search_seconds for batch in batches), n)
    if SEARCHES[config.search].screened:
        yield screen_agreement(batches)
    yield from measured


def of_sampling(
    config: ValidateConfig, batches: Sequence[Batch], measured: Sequence[Measured]
) -> Iterator[Measured]:
    """The metrics of `validate`."""
    if rows := _phrases(batches):
        yield from _of_phrases(rows, batches)
        return
    facts = [fact for b in batches for fact in b.token_facts if isinstance(fact, Sampled)]
    n = len(facts)
    attempts = sum(fact.attempts for fact in facts)
    seconds = sum(batch.seconds for batch in batches if not batch.is_of_controls)
    yield Measured("confirmed", sum(fact.confirmed for fact in facts), n)
    yield Measured("asr_mean", sum(fact.asr for fact in facts) / n if n else None, n)
    yield Measured("validated", n, n)
    yield Measured("attempts", attempts, n)
    yield Measured("attempts_saved", config.repeats * n - attempts, n)
    yield Measured("stopped_early", sum(fact.attempts < config.repeats for fact in facts), n)
    sampled = attempts - _count("reused_attempts", [b for b in batches if not b.is_of_controls])
    rate = sampled / seconds if sampled and seconds else None
    yield Measured("attempts_per_second", rate, sampled)
    for name in ("resampled", "not_intact"):
        yield Measured(name, _count(name, batches), n)
    yield _distinct(config, batches)
    yield from _controls(config.controls, batches)


def _phrases(batches: Sequence[Batch]) -> list[Mapping[str, Any]]:
    """The rows of the table `phrases`."""
    entries = (entry for batch in batches for entry in batch.entries)
    return [entry.cells for entry in entries if entry.table == "phrases"]


def _of_phrases(rows: Sequence[Mapping[str, Any]], batches: Sequence[Batch]) -> Iterator[Measured]:
    """How many phrases and controls fail, and the exact sign test of their difference."""
    n = len(rows)
    pairs = [(row["result"] == "fail", row["control_result"] == "fail") for row in rows]
    if "asr" in rows[0]:
        pairs = [(row["asr"], row["control_asr"]) for row in rows]
        yield Measured("phrases_asr", sum(one for one, _ in pairs) / n, n)
        yield Measured("phrases_control_asr", sum(other for _, other in pairs) / n, n)
    worse = sum(one > other for one, other in pairs)
    better = sum(one < other for one, other in pairs)
    yield Measured("phrases_failed", sum(row["result"] == "fail" for row in rows), n)
    failed = sum(row["control_result"] == "fail" for row in rows)
    yield Measured("phrases_control_failed", failed, n)
    yield Measured("phrases", n, n)
    yield Measured("phrases_worse", worse, n)
    yield Measured("phrases_better", better, n)
    yield Measured("phrases_p", McNemar(n, worse, better).p, worse + better)
    dropped = [entry for batch in batches for entry in batch.entries if entry.table == "pairs"]
    if dropped:
        cells = dropped[0].cells
        yield Measured("phrases_dropped", cells["drawn"] - cells["kept"], cells["drawn"])


def _verdicts(batches: Sequence[Batch]) -> Iterator[Measured]:
    facts = [fact for batch in batches for fact in batch.token_facts]
    verdicts = [fact for fact in facts if isinstance(fact, Verified)]
    n = len(verdicts)
    glitches = sum(verdict.glitch for verdict in verdicts)
    yield Measured("glitch", glitches, n)
    yield Measured("severe", sum(verdict.severe for verdict in verdicts), n)
    yield Measured("verified", n, n)
    yield Measured("glitch_rate", glitches / n if n else None, n)
    seconds = sum(batch.seconds for batch in batches if not batch.is_of_controls)
    yield Measured("tokens_per_second", n / seconds if seconds else None, n)
    for name in ("rechecked", "not_intact"):
        yield Measured(name, _count(name, batches), n)


def _controls(asked: int, batches: Sequence[Batch]) -> Iterator[Measured]:
    """The share of false alarms with Wilson's 95 % interval; nothing where none were asked for."""
    if not asked:
        return
    controls = [control for batch in batches for control in batch.controls]
    n, alarms = len(controls), sum(control.alarm for control in controls)
    rate = wilson(alarms, n) if n else None
    yield Measured("controls", n, n)
    yield Measured("false_alarms", alarms, n)
    yield Measured("false_alarm_rate", rate.value if rate else None, n)
    yield Measured("false_alarm_low", rate.low if rate else None, n)
    yield Measured("false_alarm_high", rate.high if rate else None, n)
    others = [control for batch in batches for control in batch.controls_elsewhere]
    raised = sum(control.alarm for control in others)
    yield Measured("controls_elsewhere", len(others), len(others))
    yield Measured("false_alarms_elsewhere", raised, len(others))


def screen_agreement(batches: Sequence[Batch]) -> Measured:
    """The share of verified tokens for which the screen predicted the first probe's verdict.

    The screen keeps the positions between token and answer frozen. A model that carries the token
    to its answer through them gets a low share; the screen's order is then of little use.
    """
    passing = {token_id: gap == 0 for token_id, gap in _gaps(batches).items()}
    verdicts = [
        (fact.token.id, next(iter(fact.probes.values())).passed)
        for batch in batches
        for fact in batch.token_facts
        if isinstance(fact, Verified)
    ]
    foreseen = sum(passing[token_id] == passed for token_id, passed in verdicts)
    n = len(verdicts)
    return Measured("screen_agreement", foreseen / n if n else None, n)


def _gaps(batches: Sequence[Batch]) -> Mapping[int, float]:
    facts = (fact for batch in batches for fact in batch.screened)
    return {i: gap for fact in facts for i, gap in zip(fact.token_ids, fact.gap, strict=True)}


def _distinct(config: ValidateConfig, batches: Sequence[Batch]) -> Measured:
    """The share of distinct continuations, counted per token and prompt."""
    said = [fact.continuations for batch in batches for fact in batch.samples]
    if all(said):
        made = sum(map(len, said))
        distinct = sum(len({(one.probe, one.ids) for one in some}) for some in said)
    else:  # a record of an earlier version
        made, distinct = _count("continuations", batches), _count("distinct", batches)
    # Continuations of different rounds are not compared.
    known = made and not config.sequential
    return Measured("distinct", distinct / made if known else None, made)


def _count(name: str, batches: Sequence[Batch]) -> int:
    return sum(batch.counters.get(name, 0) for batch in batches)
