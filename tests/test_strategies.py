"""Every strategy against its schema fragment, and run on tiny models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, replace
from itertools import accumulate, pairwise
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pytest

from glitchrun.errors import RunError
from glitchrun.events import Batch, Entry, Event, Measured, Sampled, Stage, Verified
from glitchrun.plan.passes import SCREEN_BATCH as screen_rows
from glitchrun.probing.backend import Backend
from glitchrun.spec.indicators import METRICS
from glitchrun.spec.schema import fragments
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Origin, Thresholds, TokenScope
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import draw
from glitchrun.strategies.metrics import screen_agreement
from glitchrun.strategies.tokens import read_ids
from tests.support.engine import context
from tests.support.steps import all_events

PARAMS: dict[str, dict[str, Any]] = {
    "check": {"glitch": [40, 41], "controls": 6, "attempts": 2, "max_new_tokens": 3},
    "classify": {
        "tokens": {"ids": [40, 300, 5]},
        "tests": ["repetition", "drift", "missing", "email-with-token"],
        "controls": 2,
        "attempts": 2,
        "max_new_tokens": 6,
        "batch_size": 6,
    },
    "genetic": {
        "base_text": "The quick brown",
        "wanted": 90,
        "objective": "both",
        "impact_tokens": 70,
        "population": 12,
        "generations": 3,
        "elite": 2,
    },
    "mine": {"search": "gradient", "iterations": 4, "batch_size": 5, "k": 9, "controls": 3},
    "predict": {
        "prompts": [
            {"text": "The quick brown", "expected": "fox jumps", "name": "fox"},
            {"text": "2 + 2 =", "chat": "What is 2 + 2?"},
            {"text": "The quick brown", "expected": " fox"},
        ],
        "top_k": 3,
    },
    "profile": {"workload": {"prompt_tokens": 9, "batch_size": 2, "new_tokens": 4, "repeats": 2}},
    "scan": {"batch_size": 48, "controls": 20},
    "test": {"tokens": {"ids": [40, 41, 300, 40]}, "probes": "strict", "controls": 4},
    "validate": {"tokens": {"ids": [40, 41]}, "attempts": 3, "max_new_tokens": 4, "controls": 5},
}


PHRASES = {"phrases": {"pairs": "incomplete", "limit": 3}}
OF_PHRASES: dict[str, dict[str, Any]] = {
    "test": {"tokens": PHRASES, "probes": ["repeat"], "controls": 0},
    "validate": {"tokens": PHRASES, "probes": ["repeat"], "attempts": 2, "controls": 0},
}
"""Parameters with which a strategy examines phrases instead of tokens."""


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=7)


def run(name: str, probed: Context, history: Sequence[Batch] = (), **params: Any) -> list[Event]:
    strategy = STRATEGIES[name]
    return all_events(strategy, strategy.configure(PARAMS[name] | params), probed, history)


@pytest.fixture(scope="module")
def runs(llama: Context) -> dict[str, list[Event]]:
    """The events of a run of each strategy."""
    return {name: run(name, llama) for name in PARAMS}


@pytest.fixture(scope="module")
def phrase_runs(llama: Context) -> dict[str, list[Event]]:
    return {name: run(name, llama, **params) for name, params in OF_PHRASES.items()}


def batches(events: Sequence[Event]) -> list[Batch]:
    return [event for event in events if isinstance(event, Batch)]


def timeless(name: str, events: Sequence[Event]) -> list[Event]:
    """Events without what the clock or the machine measured, by the fragment's own word."""
    fragment = fragments()[name]
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Batch):
            facts = tuple(
                replace(fact, cells=steady(fragment, fact)) if isinstance(fact, Entry) else fact
                for fact in event.facts
            )
            kept.append(replace(event, seconds=0.0, search_seconds=0.0, facts=facts))
        elif not is_measured(fragment, event.name):  # type: ignore[union-attr]
            kept.append(event)
    return kept


def steady(fragment: Any, entry: Entry) -> dict[str, Any]:
    columns = fragment["x-tables"][entry.table]["columns"]
    return {name: cell for name, cell in entry.cells.items() if not columns[name].get("measured")}


def is_measured(fragment: Any, name: str) -> bool:
    return name.endswith(("_per_second", "_seconds")) or fragment["x-metrics"][name].get(
        "measured", False
    )


OWN: Any = field(default=None)
"""A parameter that only one search has."""
CASCADE = {"search": "cascade", "recall": 0.6, "confidence": 0.6}
"""Ends a `mine` step with metrics of its own."""


def test_every_strategy_is_tried() -> None:
    assert set(PARAMS) == set(fragments())


@pytest.mark.parametrize("name", sorted(fragments()))
def test_schema_and_config_agree(name: str) -> None:
    fragment = fragments()[name]
    config = {field.name: field for field in fields(STRATEGIES[name].config_type)}
    if config.pop("own", None):  # the parameters that only one search has
        config |= {key: OWN for entry in SEARCHES.values() for key in entry.parameters}
    assert set(config) == set(fragment["properties"])
    required = {key for key, field in config.items() if field.default is MISSING}
    assert required == set(fragment["required"])
    for key, rule in fragment["properties"].items():
        if key not in required and config[key] is not OWN:
            default = config[key].default
            # A default of false may be left out, so that it does not enter the keys of old specs.
            declared = rule.get("default", False)
            assert declared == (list(default) if isinstance(default, tuple) else default)
        assert rule["description"]


@pytest.mark.parametrize("name", sorted(fragments()))
def test_same_events_twice(name: str, llama: Context, runs: dict[str, list[Event]]) -> None:
    assert timeless(name, run(name, llama)) == timeless(name, runs[name])


@pytest.mark.parametrize("name", sorted(fragments()))
def test_metrics_are_the_declared_ones(
    name: str,
    llama: Context,
    runs: dict[str, list[Event]],
    phrase_runs: dict[str, list[Event]],
) -> None:
    events = runs[name] + (run(name, llama, **CASCADE) if name == "mine" else [])
    events += phrase_runs.get(name, [])
    measured = {event.name for event in events if isinstance(event, Measured)}
    assert measured == set(fragments()[name]["x-metrics"]) - set(METRICS)


@pytest.mark.parametrize("name", sorted(fragments()))
def test_tables_are_the_declared_ones(
    name: str, runs: dict[str, list[Event]], phrase_runs: dict[str, list[Event]]
) -> None:
    declared = fragments()[name].get("x-tables", {})
    made = runs[name] + phrase_runs.get(name, [])
    entries = [entry for batch in batches(made) for entry in batch.entries]
    assert {entry.table for entry in entries} == set(declared)
    for entry in entries:
        assert list(entry.cells) == list(declared[entry.table]["columns"])
        assert json.loads(json.dumps(entry.cells, allow_nan=False)) == entry.cells


@pytest.mark.parametrize("name", sorted(fragments()))
def test_headlines_are_of_declared_metrics(name: str) -> None:
    metrics = set(fragments()[name]["x-metrics"])
    if headline := fragments()[name].get("x-headline"):
        conditional = headline.get("when", {})
        named = _named(" ".join([headline["sentence"], *conditional.values()]))
        assert {headline["metric"], *headline.get("cards", ()), *conditional, *named} <= metrics
        assert headline["unit"]
        for answer in headline.get("answers", ()):
            conditions = {*answer.get("where", {}), *answer.get("unless", {})}
            sorted_by = {answer["by"]} if "by" in answer else set()
            columns = _columns(name)[answer["table"]]
            assert conditions | sorted_by <= columns
            assert _named(answer["line"]) <= columns | _dotted(name)


def _columns(name: str) -> dict[str, set[str]]:
    return {table: set(made["columns"]) for table, made in fragments()[name]["x-tables"].items()}


def _dotted(name: str) -> set[str]:
    return {f"{table}.{column}" for table, made in _columns(name).items() for column in made}


def _named(text: str) -> set[str]:
    """The metrics or columns that a sentence shows."""
    return set(re.findall(r"\{([\w.]+)(?:\|[^}]*)?\}", text))


@pytest.mark.parametrize("name", sorted(fragments()))
def test_resuming_anywhere_gives_the_rest(
    name: str, llama: Context, runs: dict[str, list[Event]]
) -> None:
    whole = runs[name]
    done = batches(whole)
    for cut in range(len(done) + 1):
        rest = run(name, llama, history=done[:cut])
        assert timeless(name, done[:cut] + batches(rest)) == timeless(name, done)
        assert timeless(name, rest)[len(done) - cut :] == timeless(name, whole)[len(done) :]


@pytest.mark.parametrize("name", sorted(fragments()))
def test_progress_counts_up_to_the_total(name: str, llama: Context) -> None:
    """In every stage, from the total that is announced before its first batch."""
    announced: list[Stage] = []
    done = batches(run(name, replace(llama, announce=announced.append)))
    for name_, some in by_stage(done).items():
        assert name_
        (first,) = {stage.total for stage in announced if stage.name == name_}
        assert all(a.done < b.done for a, b in pairwise(some))
        assert {batch.total for batch in some} == {first} == {some[-1].done}
        if not any(batch.entries for batch in some):
            assert some[-1].done == sum(len(batch.facts) for batch in some)


def by_stage(done: Sequence[Batch]) -> dict[str, list[Batch]]:
    names = dict.fromkeys(batch.stage for batch in done)
    return {name: [batch for batch in done if batch.stage == name] for name in names}


def test_a_cascade_resumes_within_its_screen_and_after_it(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glitchrun.strategies.mine.run._PASSES_PER_WRITE", 1)
    monkeypatch.setitem(screen_rows, "cpu", 64)
    spec = replace(llama.spec, thresholds=Thresholds(probability=0.002))
    strict = replace(llama, spec=spec, tools={})  # not the screener of another test
    whole = run("mine", strict, **CASCADE)
    done = batches(whole)
    assert [bool(batch.screened) for batch in done[:5]] == [True, True, True, True, False]
    assert sum(batch.counters.get("screens", 0) for batch in done) == len(llama.scope())
    assert [batch.counters.get("screen_forwards") for batch in done[:5]] == [1, 1, 1, 1, None]
    _check_stages(done, len(llama.scope()))
    for cut in range(len(done) + 1):
        rest = run("mine", strict, history=done[:cut], **CASCADE)
        assert unhurried(done[:cut] + batches(rest)) == unhurried(done)
    found = {f.token.id for b in done for f in b.token_facts if f.flagged}
    scanned = {f.token.id for b in batches(run("scan", strict)) for f in b.token_facts if f.flagged}
    assert found <= scanned
    measured = {event.name: event.value for event in whole if isinstance(event, Measured)}
    low, high = measured["recall_low"], measured["recall_high"]
    assert low is not None
    assert high is not None
    assert 0.6 <= low <= len(found) / len(scanned) <= high


def _check_stages(done: Sequence[Batch], size: int) -> None:
    """The screen knows its total, a front does not."""
    stages = by_stage(done)
    assert list(stages) == ["screen", "front"]
    assert [batch.done for batch in stages["screen"]][-1] == size
    assert {batch.total for batch in stages["screen"]} == {size}
    assert {batch.total for batch in stages["front"]} == {None}
    verified = accumulate(len(batch.token_facts) for batch in stages["front"])
    assert [batch.done for batch in stages["front"]] == list(verified)


def test_a_screen_is_held_against_the_verdicts(llama: Context) -> None:
    found = run("mine", llama, search="screen")
    done = batches(found)
    gaps = {i: g for b in done for s in b.screened for i, g in zip(s.token_ids, s.gap, strict=True)}
    verdicts = [fact for batch in done for fact in batch.token_facts if isinstance(fact, Verified)]
    agreed = [(gaps[fact.token.id] == 0) == fact.probes["repeat"].passed for fact in verdicts]
    (told,) = [e for e in found if isinstance(e, Measured) and e.name == "screen_agreement"]
    assert agreed
    assert (told.value, told.n) == (sum(agreed) / len(agreed), len(agreed))
    # Without verdicts there is no agreement.
    assert screen_agreement(tuple(batch for batch in done if batch.screened)).value is None


def unhurried(done: Sequence[Batch]) -> list[Batch]:
    return [replace(batch, seconds=0.0, search_seconds=0.0) for batch in done]


def test_scan_looks_at_the_scope_and_no_more(llama: Context) -> None:
    facts = [fact for batch in batches(run("scan", llama)) for fact in batch.token_facts]
    assert [fact.token.id for fact in facts] == llama.scope()
    special = replace(llama, spec=replace(llama.spec, tokens=TokenScope(("special",))))
    few = [fact.token for batch in batches(run("scan", special)) for fact in batch.token_facts]
    assert {token.category for token in few} == {"special"}


def test_excluded_tokens_are_no_controls_either(llama: Context) -> None:
    tokens = TokenScope(exclude=("[a-m]",))
    narrow = replace(llama, spec=replace(llama.spec, tokens=tokens))
    suspects, every = llama.scope()[:3], len(llama.vocabulary)
    drawn = {match.token_id for match in draw(narrow, suspects, every, [])}
    assert drawn == set(narrow.scope()) - set(suspects)
    assert drawn < {match.token_id for match in draw(llama, suspects, every, [])}


def test_excluded_tokens_are_out_of_scope_and_counted(llama: Context) -> None:
    narrow = replace(llama, spec=replace(llama.spec, tokens=TokenScope(exclude=("a", "^[A-Z]"))))
    texts = list(map(llama.vocabulary.text, llama.scope()))
    left_out = [text for text in texts if "a" in text or text[:1] in set(ascii_uppercase)]
    assert 0 < len(narrow.excluded(("normal",))) == len(left_out)
    kept = list(map(llama.vocabulary.text, narrow.scope()))
    assert sorted(kept + left_out) == sorted(texts)
    assert not llama.excluded(("normal",))
    named = next(i for i in llama.scope() if i not in narrow.scope())
    assert [token.id for token in narrow.tokens({"ids": [named]})] == [named]


def test_tokens_of_several_steps_are_taken_once(llama: Context) -> None:
    earlier = {
        "low": batches(run("mine", llama, search="range", ranges=((40, 60),), controls=0)),
        "all": batches(run("scan", llama)),
    }
    after = replace(llama, earlier=earlier)
    first, second = (after.tokens({"from": name}) for name in earlier)
    both = after.tokens({"from": ["low", "all"]})
    assert 0 < len(first) < len(second) == len(both)
    assert both[: len(first)] == first
    assert {token.id for token in both} == {token.id for token in second}


def test_a_glitch_fails_every_probe_with_a_low_probability(llama: Context) -> None:
    facts = [f for b in batches(run("scan", llama, probes="strict")) for f in b.token_facts]
    limit = sorted(max(r.p for r in f.probes.values()) for f in facts)[len(facts) // 2]  # type: ignore[union-attr]
    severe = replace(llama, spec=replace(llama.spec, thresholds=Thresholds(probability=limit)))
    judged = [f for b in batches(run("scan", severe, probes="strict")) for f in b.token_facts]
    for fact in judged:
        assert isinstance(fact, Verified)
        failed = all(not r.passed and r.p < limit for r in fact.probes.values())
        assert fact.glitch == failed
        assert (fact.emitted is None) == any(r.passed for r in fact.probes.values())
    assert 0 < sum(f.glitch for f in judged) < len(judged)  # type: ignore[union-attr]


def test_budget_ends_a_search(llama: Context) -> None:
    found = batches(run("mine", llama, search="random", budget=7, batch_size=5, controls=0))
    assert [len(batch.facts) for batch in found] == [5, 2]


def test_a_budget_alone_is_spent_whole_and_iterations_bound_it(llama: Context) -> None:
    everything = len(llama.scope())
    assert everything > 52 * 4
    assert mined(llama, budget=everything, batch_size=4) == everything
    assert mined(llama, batch_size=4) == 50 * 4
    assert mined(llama, budget=everything, iterations=52, batch_size=4) == 52 * 4


def mined(probed: Context, **params: Any) -> int:
    given = {"search": "random", "iterations": None} | params
    return sum(len(batch.token_facts) for batch in batches(run("mine", probed, **given)))


def test_validate_counts_attempts_and_confirms_by_threshold(llama: Context) -> None:
    events = run("validate", llama)
    facts = [fact for batch in batches(events) for fact in batch.token_facts]
    for fact in facts:
        assert isinstance(fact, Sampled)
        assert fact.attempts == 3
        assert fact.asr == fact.failures / 3
        assert fact.asr_low <= fact.asr <= fact.asr_high
        assert fact.confirmed == (fact.asr >= llama.spec.thresholds.asr)
    measured = {event.name: event for event in events if isinstance(event, Measured)}
    assert measured["confirmed"].value == sum(fact.confirmed for fact in facts)  # type: ignore[union-attr]


def test_tokens_come_from_ids_texts_files_and_steps(llama: Context, tmp_path: Path) -> None:
    piece = llama.vocabulary.text(300)
    assert [t.id for t in llama.tokens({"texts": [piece]})] == [300]
    file = tmp_path / "ids.json"
    file.write_text("[5, 6, 5]")
    assert [t.id for t in llama.tokens({"file": str(file)})] == [5, 6]
    found = batches(run("mine", llama))
    later = replace(llama, earlier={"mine": found})
    everything = [fact.token.id for batch in found for fact in batch.token_facts]
    assert [t.id for t in later.tokens({"from": "mine", "select": "all"})] == everything
    glitches = [f.token.id for b in found for f in b.token_facts if f.glitch]  # type: ignore[union-attr]
    assert [t.id for t in later.tokens({"from": "mine"})] == glitches


@pytest.mark.parametrize("name", ["test", "validate", "classify"])
def test_a_token_named_twice_is_looked_at_once(name: str, llama: Context) -> None:
    once = run(name, llama, tokens={"ids": [40, 41]})
    twice = run(name, llama, tokens={"ids": [40, 41, 40, 41, 40]})
    assert timeless(name, twice) == timeless(name, once)


def test_a_file_about_another_vocabulary_is_not_run(llama: Context, tmp_path: Path) -> None:
    right = {"id": 300, "text": llama.vocabulary.text(300)}
    file = tmp_path / "ids.json"
    file.write_text(json.dumps([right]))
    assert [t.id for t in llama.tokens({"file": str(file)})] == [300]
    file.write_text(json.dumps([right, {"id": 301, "text": "iciones"}]))
    with pytest.raises(RunError, match=r"(?s)1 of 2 tokens .* «iciones» in the file"):
        llama.tokens({"file": str(file)})


def test_no_tokens_found_is_an_empty_step_not_an_error(llama: Context) -> None:
    nothing = replace(llama, earlier={"mine": []})
    events = run("validate", nothing, tokens={"from": "mine"})
    measured = {event.name: event for event in events if isinstance(event, Measured)}
    assert measured["confirmed"].n == 0
    assert measured["asr_mean"].value is None


def test_impossible_tokens_are_named(llama: Context) -> None:
    with pytest.raises(RunError, match="999999 is outside"):
        llama.tokens({"ids": [999999]})
    with pytest.raises(RunError, match="not one token"):
        llama.tokens({"texts": ["surely many tokens"]})
    origins = {"steps[1].tokens.texts[0]": Origin("spec.yaml", 7, 31)}
    placed = replace(llama, spec=replace(llama.spec, origins=origins), path="steps[1]")
    with pytest.raises(RunError, match=r"^spec\.yaml:7:31: tokens\.texts\[0\]: 'surely"):
        placed.tokens({"texts": ["surely many tokens"]})


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("a.json", [3, 4], [3, 4]),
        ("a.json", [{"token_id": 3}, {"id": 4, "text": "x"}], [3, 4]),
        ("a.json", {"glitch_tokens": ["x", "x"], "glitch_token_ids": [9, 9]}, [9]),
        ("a.json", {"tokens": [{"id": 1}]}, [1]),
        ("a.json", {"columns": ["token_id", "glitch"], "data": [[1, True], [2, False]]}, [1]),
    ],
)
def test_result_files_that_are_read(
    tmp_path: Path, name: str, content: object, ids: list[int]
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert read_ids(tmp_path / name) == ids


def test_tokens_jsonl_gives_its_glitches(tmp_path: Path) -> None:
    rows = [
        {"token_id": 1, "glitch": True},
        {"token_id": 2, "glitch": False},
        {"token_id": 3, "glitch": None, "control_of": 1, "false_alarm": True},
        {"token_id": 4, "glitch": False, "control_of": 1, "false_alarm": False},
    ]
    (tmp_path / "tokens.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_ids(tmp_path / "tokens.jsonl") == [1]


def test_what_a_file_names_and_a_step_does_not_take_is_told(
    tmp_path: Path, llama: Context, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"step": "m", "token_id": i, "glitch": i == 40} for i in (40, 41, 42)]
    path = tmp_path / "tokens.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert [token.id for token in llama.tokens({"file": str(path)})] == [40]
    assert "tokens.jsonl: using 1 of its 3 tokens" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"tokens": "x"}', "[true]"])
def test_files_without_ids_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(RunError, match=r"bad\.json"):
        read_ids(tmp_path / "bad.json")


def test_a_continuation_ends_where_the_models_own_settings_end_it(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = llama.backend.model.module.generation_config
    monkeypatch.setattr(generation, "eos_token_id", [7, 9])
    assert llama.backend.model.end_ids == {7, 9}
    # Every token ends the text: one step for each probe, and none of them says the token.
    monkeypatch.setattr(generation, "eos_token_id", list(range(500)))
    steps: list[int] = []
    whole = Backend.step

    def counted(self: Backend, ids: Any, cache: Any, **options: Any) -> Any:
        steps.append(len(ids))
        return whole(self, ids, cache, **options)

    monkeypatch.setattr(Backend, "step", counted)
    run("validate", llama, tokens={"ids": [40]}, attempts=1, batch_size=8)
    assert len(steps) <= 6  # three probes, each at most resampled once
