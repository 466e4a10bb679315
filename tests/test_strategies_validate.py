"""`validate`: attempts that differ and repeat, and what confirms a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Measured, Sampled
from glitchrun.probing.memory_limits import Pace
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Thresholds
from glitchrun.strategies.context import Context
from glitchrun.strategies.validate import run
from tests.support.engine import context
from tests.support.oracle import PLANTED, oracle
from tests.support.steps import all_events

PARAMS: dict[str, Any] = {
    "tokens": {"ids": [100, 101, 102, 108]},
    "attempts": 40,
    "max_new_tokens": 8,
    "temperature": 1.0,
}
ORDINARY = (300, 310)


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=7)


def events(probed: Context, **changes: Any) -> list[Any]:
    strategy = STRATEGIES["validate"]
    return all_events(strategy, strategy.configure(PARAMS | changes), probed)


def facts(found: Sequence[Any]) -> list[Sampled]:
    return [fact for event in found if isinstance(event, Batch) for fact in event.facts]  # type: ignore[misc]


def metrics(found: Sequence[Any]) -> dict[str, Any]:
    return {event.name: event.value for event in found if isinstance(event, Measured)}


def outcomes(probed: Context, **changes: Any) -> list[tuple[bool, ...]]:
    return [fact.outcomes for fact in facts(events(probed, **changes))]


def test_attempts_differ_from_each_other_and_repeat_with_their_seed(llama: Context) -> None:
    made = outcomes(llama)
    assert any(len(set(one)) == 2 for one in made)
    assert outcomes(llama) == made
    assert outcomes(replace(llama, spec=replace(llama.spec, seed=8))) != made


def test_a_batch_grows_while_its_passes_are_fast_enough() -> None:
    """A token of 10 passes should take 20 seconds."""
    pace = Pace(10)
    sizes = []
    for seconds_of_a_row in [0.01] * 20 + [0.025] * 12 + [1.0] * 3:
        sizes.append(pace.limit(150))
        pace.measure(sizes[-1], seconds_of_a_row * sizes[-1])
    assert sizes[:3] == [48, 60, 75]
    assert sizes[19] == 150
    assert 64 <= sizes[31] <= 80
    assert sizes[-1] == 48


@pytest.mark.parametrize("sequential", [False, True])
def test_sizes_of_batches_change_no_attempt(
    sequential: bool, llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced = events(llama, sequential=sequential)
    monkeypatch.setattr(run, "_WRITE_SECONDS", 0.0)
    fixed = events(llama, sequential=sequential, batch_size=3)
    batches = [one for one in fixed if isinstance(one, Batch)]
    assert [one.done for one in batches] == [1, 2, 3, 4]
    assert [bool(one.prompts) for one in batches] == [False, False, False, True]
    assert facts(fixed) == facts(paced)
    measured = {"attempts_per_second": None}
    assert metrics(fixed) | measured == metrics(paced) | measured


@pytest.mark.parametrize("sequential", [False, True])
def test_a_resumed_step_counts_no_attempt_twice(
    sequential: bool, llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_WRITE_SECONDS", 0.0)
    names = ["continuations", "drawn"] if sequential else ["continuations", "drawn", "distinct"]
    changes = {"attempts": 6, "sequential": sequential}
    whole = [one for one in events(llama, **changes) if isinstance(one, Batch)]
    for batch in whole:  # all tokens are sampled together, but each batch has the work of its own
        said = [one for fact in batch.samples for one in fact.continuations]
        assert batch.counters["continuations"] == len(said)
        assert batch.counters["drawn"] == sum(len(one.ids) for one in said)
    strategy = STRATEGIES["validate"]
    config = strategy.configure(PARAMS | changes)
    for done in (1, 3):
        resumed = all_events(strategy, config, llama, whole[:done])
        rest = [one for one in resumed if isinstance(one, Batch)]
        for name in names:
            counts = [batch.counters[name] for batch in (*whole[:done], *rest)]
            assert counts == [batch.counters[name] for batch in whole]


@pytest.mark.parametrize("sequential", [False, True])
def test_every_continuation_is_kept(sequential: bool, llama: Context) -> None:
    """Each attempt has one continuation for each probe up to the first that said the token."""
    decode = llama.backend.model.tokenizer.decode
    kept = facts(events(llama, sequential=sequential))
    order = ["repeat", "explain", "question"]
    for fact in kept:
        places = [(order.index(one.probe), one.number) for one in fact.continuations]
        assert places == sorted(set(places))
        for number, failed in enumerate(fact.outcomes):
            said = [one.said for one in fact.continuations if one.number == number]
            assert said == [False] * 3 if failed else said == [False] * (len(said) - 1) + [True]
        for one in fact.continuations:
            whole = decode(one.ids)
            assert whole.startswith(one.text)
            assert whole[len(one.text) :] in (("",) if one.said else ("", "</s>", "<|im_end|>"))
    assert {one.said for fact in kept for one in fact.continuations} == {True, False}


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.3), ("top_p", 0.2)])
def test_how_attempts_are_drawn_is_as_asked(name: str, value: float, llama: Context) -> None:
    assert outcomes(llama, **{name: value}) != outcomes(llama)


@pytest.mark.parametrize("sequential", [False, True])
def test_greedy_attempts_are_one_and_prove_no_more(sequential: bool, llama: Context) -> None:
    found = events(llama, temperature=0, sequential=sequential)
    single = events(llama, temperature=0, attempts=1)
    assert facts(found) == facts(single)
    assert {fact.attempts for fact in facts(found)} == {1}
    assert metrics(found)["attempts"] == 4
    assert metrics(found)["attempts_saved"] == metrics(found)["stopped_early"] == 0


@pytest.mark.parametrize("sequential", [False, True])
def test_a_threshold_of_nothing_asks_for_one_failed_attempt(sequential: bool) -> None:
    probed = oracle("float32")
    open_ = replace(probed, spec=replace(probed.spec, thresholds=Thresholds(asr=0.0)))
    ids = [*sorted(PLANTED)[:3], *ORDINARY]
    found = facts(events(open_, tokens={"ids": ids}, attempts=3, sequential=sequential))
    assert {fact.token.id for fact in found if fact.confirmed} == {*ids} & PLANTED
    assert all(fact.confirmed == (fact.failures > 0) for fact in found)
