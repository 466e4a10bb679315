"""What verdicts say beyond glitch or not, and the controls they are held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Measured, Verified
from glitchrun.events_json import batch_from_json, batch_to_json
from glitchrun.spec.probes import PROBES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Thresholds
from glitchrun.strategies.context import Context
from glitchrun.vocabulary.character_groups import doubtful_groups, group_of
from glitchrun.vocabulary.text import emitted_kind
from tests.support.engine import context
from tests.support.oracle import oracle
from tests.test_strategies import PARAMS, batches, run, timeless


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=7)


def test_severe_tokens_are_glitch_tokens_of_low_probability_in_every_probe(llama: Context) -> None:
    events = run("scan", llama, probes="strict")
    facts = [f for b in batches(events) for f in b.token_facts if isinstance(f, Verified)]
    severe = [f for f in facts if f.glitch and all(r.p < 1e-3 for r in f.probes.values())]
    assert 0 < len(severe) < len(facts)
    assert [f for f in facts if f.severe] == severe
    measured = {event.name: event.value for event in events if isinstance(event, Measured)}
    assert measured["severe"] == len(severe)


def test_what_came_instead_is_of_the_probe_that_came_closest(llama: Context) -> None:
    for batch in batches(run("scan", llama, probes="strict")):
        for fact in batch.token_facts:
            assert isinstance(fact, Verified)
            name, closest = max(fact.probes.items(), key=lambda item: item[1].p)
            if fact.emitted is None:
                assert fact.emitted_text is None
                continue
            assert fact.emitted_text == llama.vocabulary.text(closest.argmax)
            pair = [llama.vocabulary.raw(row) for row in (fact.token.id, closest.argmax)]
            assert fact.emitted == emitted_kind(*pair, PROBES[name].closing)


@pytest.mark.parametrize("name", ["mine", "test", "validate"])
def test_controls_are_ordinary_tokens_that_count_for_nothing_else(
    name: str, llama: Context
) -> None:
    with_controls = batches(run(name, llama))
    without = batches(run(name, llama, controls=0))
    assert timeless(name, with_controls)[: len(without)] == [
        replace(batch, total=ours.total)
        for batch, ours in zip(timeless(name, without), with_controls, strict=False)  # type: ignore[type-var]
    ]
    tokens = {fact.token.id for batch in without for fact in batch.token_facts}
    controls = [control for batch in with_controls for control in batch.controls]
    assert len(controls) == PARAMS[name]["controls"]
    assert not tokens & {control.token.id for control in controls}
    assert {control.of for control in controls} <= tokens
    assert {control.token.category for control in controls} == {"normal"}
    # Verified or sampled like any token: alone or as a control, the facts are the same.
    alone = {"ids": [control.token.id for control in controls]}
    params: dict[str, Any] = {"search": "range", "ranges": tuple((i, i) for i in alone["ids"])}
    again = run(name, llama, controls=0, **(params if name == "mine" else {"tokens": alone}))
    by_id = {fact.token.id: fact for batch in batches(again) for fact in batch.token_facts}
    assert [control.fact for control in controls] == [by_id[c.token.id] for c in controls]


@pytest.mark.parametrize("search", ["screen", "cascade"])
def test_controls_come_after_what_a_search_has_screened(search: str, llama: Context) -> None:
    done = batches(run("mine", llama, search=search, budget=20))
    assert sum(len(batch.controls) for batch in done) == PARAMS["mine"]["controls"]
    totals = {batch.stage: batch.total for batch in done}
    assert totals["screen"] == len(llama.scope())
    assert totals["controls"] == PARAMS["mine"]["controls"]
    assert sum(len(batch.token_facts) for batch in done) == 20
    resumed = batches(run("mine", llama, done[:-1], search=search, budget=20))
    assert timeless("mine", resumed) == timeless("mine", done[-1:])


def test_controls_of_a_scan_are_tokens_it_has_verified(llama: Context) -> None:
    done = batches(run("scan", llama))
    facts = {fact.token.id: fact for batch in done for fact in batch.token_facts}
    controls = done[-1].controls
    assert len({control.token.id for control in controls}) == len(controls) == 20
    assert all(control.fact == facts[control.token.id] for control in controls)
    assert done[-1].counters == {}, "no forward pass"


@pytest.mark.parametrize("name", ["test", "validate"])
def test_prompts_without_their_own_system_text_are_counted(name: str) -> None:
    """nowllm carries none, and of the probes `explain` has one."""
    strategy = STRATEGIES[name]
    for probes, dropped in (("strict", 2), (["repeat"], 0)):
        config = strategy.configure({"tokens": {"ids": [300, 341]}, "probes": probes})
        found = [e for e in strategy.run(config, oracle("float32"), ()) if isinstance(e, Batch)]
        assert sum(batch.counters.get("dropped_system", 0) for batch in found) == dropped


@pytest.mark.parametrize("name", ["mine", "scan", "test", "validate"])
def test_false_alarms_have_wilsons_interval(name: str, llama: Context) -> None:
    events = run(name, llama)
    alarms = [control.alarm for batch in batches(events) for control in batch.controls]
    n, share = len(alarms), sum(alarms) / len(alarms)
    measured = {event.name: event for event in events if isinstance(event, Measured)}
    assert (measured["controls"].value, measured["false_alarm_rate"].value) == (n, share)
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    assert measured["false_alarm_low"].value == pytest.approx(middle - half, abs=1e-6)
    assert measured["false_alarm_high"].value == pytest.approx(middle + half, abs=1e-6)
    assert not any(
        "alarm" in event.name or event.name == "controls"
        for event in run(name, llama, controls=0)
        if isinstance(event, Measured)
    )


@pytest.mark.parametrize("name", ["mine", "scan", "test", "validate"])
def test_scripts_whose_controls_fail_get_controls_of_other_scripts(
    name: str, llama: Context
) -> None:
    events = run(name, llama, controls=12)
    done = batches(events)
    controls = [control for batch in done for control in batch.controls]
    beside = [control for batch in done for control in batch.controls_elsewhere]
    doubtful = doubtful_groups((one.token.text, one.alarm) for one in controls)
    assert doubtful
    targets = [one.of for one in controls if group_of(one.token.text) in doubtful]
    assert 0 < len(beside) <= len(targets)
    assert {one.of for one in beside} <= {*targets}
    assert not doubtful & {group_of(one.token.text) for one in beside}
    assert not any(one.alike for one in beside)
    ids = [one.token.id for one in (*controls, *beside)]
    assert len(ids) == len(set(ids))
    measured = {event.name: event.value for event in events if isinstance(event, Measured)}
    assert measured["controls"] == len(controls)  # those beside count for themselves
    assert measured["controls_elsewhere"] == len(beside)
    assert measured["false_alarms_elsewhere"] == sum(one.alarm for one in beside)
    for batch in done:
        assert batch.total is None or batch.done <= batch.total
        assert batch_from_json(json.loads(json.dumps(batch_to_json(batch)))) == batch


def test_nothing_found_needs_no_controls(llama: Context) -> None:
    none = replace(llama, spec=replace(llama.spec, thresholds=Thresholds(probability=1e-30)))
    measured = {e.name: e for e in run("test", none) if isinstance(e, Measured)}
    assert (measured["glitch"].value, measured["controls"].value) == (0, 0)
    assert measured["false_alarm_rate"].value is None


def test_controls_are_none_that_a_step_before_has_flagged(llama: Context) -> None:
    scanned = batches(run("scan", llama, controls=0))
    ids = llama.scope()
    facts = [fact for batch in scanned for fact in batch.token_facts]
    ordinary = set(ids[::3])
    marked = [replace(fact, glitch=fact.token.id not in ordinary) for fact in facts]  # type: ignore[call-arg]
    later = replace(llama, earlier={"scan": [replace(scanned[0], facts=tuple(marked))]})
    tokens = {"ids": [i for i in ids if i not in ordinary][:10]}
    found = batches(run("validate", later, tokens=tokens, controls=8, attempts=1))
    assert {control.token.id for batch in found for control in batch.controls} <= ordinary
