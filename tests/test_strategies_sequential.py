"""Stopping a token's attempts once its verdict is settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glitchrun.events import Batch, Measured, Sampled
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Thresholds
from glitchrun.strategies.context import Context
from glitchrun.strategies.validate.attempts import Stopping
from tests.support.engine import context
from tests.support.steps import all_events


def _run(rule: Stopping, outcomes: Sequence[bool]) -> tuple[int, int]:
    """Attempts made and failures among them, on outcomes that are laid out beforehand."""
    made = 0
    while more := rule.needed(made, sum(outcomes[:made])):
        made += more
    return made, int(sum(outcomes[:made]))


def test_certain_verdicts_stop_at_the_first_attempt_that_makes_them_so() -> None:
    rule = Stopping(0.8, 5, 0)
    assert _run(rule, [True] * 5) == (4, 4)  # 4 of 5 reach 0.8
    assert _run(rule, [False] * 5) == (2, 0)  # 3 of 5 no longer can
    assert _run(rule, [True, False, True, True, False]) == (5, 3)
    assert Stopping(0.8, 5, 0).needed(0, 0) == 2
    assert Stopping(0.0, 5, 0.05).needed(0, 0) == 1
    assert _run(Stopping(1.0, 5, 0.05), [True, False, True, True, True]) == (2, 1)


def test_no_attempt_is_asked_for_that_could_come_after_the_end() -> None:
    """In steps of what is needed, a token stops where looking after every attempt would stop it."""
    random = np.random.default_rng(0)
    for _ in range(300):
        rule = Stopping(float(random.uniform(0.05, 0.95)), int(random.integers(1, 80)), 0.05)
        outcomes = (random.random(rule.attempts) < random.random()).tolist()
        made, _ = _run(rule, outcomes)
        singly = next(
            n for n in range(1, rule.attempts + 1) if rule.needed(n, sum(outcomes[:n])) == 0
        )
        assert made == singly


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_curtailment_gives_the_verdict_of_all_attempts(threshold: float) -> None:
    random = np.random.default_rng(1)
    rule = Stopping(threshold, 20, 0)
    for rate in (0.1, 0.5, 0.75, 0.85, 1.0):
        for _ in range(50):
            outcomes = (random.random(20) < rate).tolist()
            made, failures = _run(rule, outcomes)
            assert (failures / made >= threshold) == (sum(outcomes) / 20 >= threshold)


def _wrong(rate: float, rule: Stopping, tokens: int) -> tuple[float, float]:
    """How often evidence stops on the wrong side, and the mean of attempts."""
    random = np.random.default_rng(7)
    wrong = attempts = 0
    for _ in range(tokens):
        made, failures = _run(rule, (random.random(rule.attempts) < rate).tolist())
        attempts += made
        early = rule._evidence(made, failures)
        wrong += early and (failures / made >= rule.threshold) != (rate >= rule.threshold)
    return wrong / tokens, attempts / tokens


@pytest.mark.parametrize("rate", [0.8, 0.7999, 0.7, 0.9])
def test_the_error_rate_holds_where_it_is_hardest(rate: float) -> None:
    tokens = 400
    wrong, _ = _wrong(rate, Stopping(0.8, 150, 0.1), tokens)
    assert wrong <= 0.1 + 2 * (0.1 * 0.9 / tokens) ** 0.5


def test_clear_tokens_stop_early() -> None:
    rule = Stopping(0.8, 200, 0.05)
    assert _wrong(0.02, rule, 200)[1] < 6
    assert _wrong(1.0, rule, 1)[1] == 20
    assert _wrong(0.8, rule, 50)[1] > 100


PARAMS: dict[str, Any] = {
    "tokens": {"ids": list(range(100, 112))},
    "attempts": 8,
    "max_new_tokens": 5,
    "temperature": 1.0,
    "probes": ["repeat"],
}


@pytest.fixture(scope="module")
def probed(llama_folder: Path) -> Context:
    return replace(
        context(llama_folder, seed=7),
        spec=context(llama_folder, seed=7, thresholds=Thresholds(asr=0.75)).spec,
    )


def _events(probed: Context, history: Sequence[Batch] = (), **changes: Any) -> list[Any]:
    strategy = STRATEGIES["validate"]
    config = strategy.configure(PARAMS | changes)
    return all_events(strategy, config, probed, history)


def _facts(events: Sequence[Any]) -> list[Sampled]:
    return [fact for event in events if isinstance(event, Batch) for fact in event.facts]  # type: ignore[misc]


def test_sequential_attempts_are_the_first_of_all(probed: Context) -> None:
    whole = _facts(_events(probed))
    events = _events(probed, sequential=True)
    some = _facts(events)
    for every, first in zip(whole, some, strict=True):
        assert first.outcomes == every.outcomes[: first.attempts]
        assert first.asr == first.failures / first.attempts
        assert first.confirmed == every.confirmed  # 8 attempts: evidence comes after certainty
    saved = sum(8 - fact.attempts for fact in some)
    measured = {event.name: event.value for event in events if isinstance(event, Measured)}
    assert measured["attempts_saved"] == saved > 0
    assert measured["attempts"] == 8 * 12 - saved
    assert measured["stopped_early"] == sum(fact.attempts < 8 for fact in some)


@pytest.mark.parametrize("rows", [3, 64])
def test_sequential_results_do_not_depend_on_the_batch_or_an_interruption(
    probed: Context, rows: int
) -> None:
    expected = _facts(_events(probed, sequential=True))
    events = _events(probed, sequential=True, batch_size=rows)
    assert _facts(events) == expected
    batches = [event for event in events if isinstance(event, Batch)]
    rest = _events(probed, history=batches[:1], sequential=True, batch_size=rows)
    assert _facts(batches[:1]) + _facts(rest) == expected


def test_nothing_is_saved_where_all_attempts_are_made(probed: Context) -> None:
    measured = {e.name: e.value for e in _events(probed) if isinstance(e, Measured)}
    assert measured["attempts_saved"] == measured["stopped_early"] == 0


def test_attempts_that_are_alike_are_told(probed: Context) -> None:
    measured = {e.name: e for e in _events(probed, temperature=0.05) if isinstance(e, Measured)}
    few = measured["distinct"]
    many = next(e for e in _events(probed) if isinstance(e, Measured) and e.name == "distinct")
    assert few.value is not None
    assert many.value is not None
    assert 0 < few.value < many.value <= 1
    assert few.n == 8 * 12  # continuations of one probe
    rounds = _events(probed, sequential=True)
    (unknown,) = (e for e in rounds if isinstance(e, Measured) and e.name == "distinct")
    assert unknown.value is None
