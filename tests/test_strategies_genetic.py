"""The genetic strategy on a tiny model: its numbers against one prompt at a time, its filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.errors import PreflightError, RunError
from glitchrun.events import Batch, Event, Measured
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import render_slot
from glitchrun.spec.schema import fragments
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.context import Context
from glitchrun.strategies.genetic.evolution_tables import read_ids
from tests.support.engine import context, one_at_a_time

GENETIC = STRATEGIES["genetic"]
SMALL = {
    "base_text": "The quick brown",
    "impact_tokens": 40,
    "population": 12,
    "generations": 4,
    "elite": 2,
    "early_stop": 1,
}


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=3)


def run(probed: Context, history: Sequence[Batch] = (), **params: Any) -> list[Event]:
    return list(GENETIC.run(GENETIC.configure(SMALL | params), probed, history))


def rows(events: Sequence[Event], table: str) -> list[Mapping[str, Any]]:
    found = [entry for event in events if isinstance(event, Batch) for entry in event.entries]
    return [entry.cells for entry in found if entry.table == table]


def metrics(events: Sequence[Event]) -> dict[str, float | None]:
    return {event.name: event.value for event in events if isinstance(event, Measured)}


def probabilities(probed: Context, sequence: Sequence[int], form: str = "chat") -> Any:
    """The next-token distribution after a sequence and the base text, from one plain pass."""
    model = probed.backend.model
    template = probed.template
    if form == "raw":
        template = detect("raw", model.tokenizer, model.config, "x")
    place = render_slot(template, SMALL["base_text"], model.tokenizer)  # type: ignore[arg-type]
    return one_at_a_time(probed, place.ids(sequence)).softmax(-1)


@pytest.mark.parametrize("form", ["chat", "raw"])
def test_every_number_is_that_of_one_prompt_at_a_time(form: str, llama: Context) -> None:
    events = run(llama, format=form, wanted=90, objective="both")
    (start,) = rows(events, "baseline")
    plain = probabilities(llama, (), form)
    target = int(plain.argmax())
    assert (start["target_id"], start["target_rank"]) == (target, 1)
    assert start["target_p"] == pytest.approx(float(plain[target]), rel=1e-4)
    for row in rows(events, "sequences"):
        p = probabilities(llama, read_ids(row["ids"]), form)
        assert row["target_p"] == pytest.approx(float(p[target]), rel=1e-4)
        assert row["wanted_p"] == pytest.approx(float(p[90]), rel=1e-4)
        lowered = (start["target_p"] - row["target_p"]) / start["target_p"]
        raised = (row["wanted_p"] - start["wanted_p"]) / (1 - start["wanted_p"])
        assert row["fitness"] == pytest.approx((lowered + raised) / 2)


def test_objectives_follow_the_goals_given(llama: Context) -> None:
    def objective(**params: Any) -> tuple[str, bool]:
        config = GENETIC.configure(SMALL | {"generations": 0} | params)
        first = next(GENETIC.run(config, llama, ()))
        (start,) = rows([first], "baseline")
        return start["objective"], start["target_given"]

    assert objective() == ("target", False)
    assert objective(target=80) == ("target", True)
    assert objective(wanted=90) == ("wanted", False)
    assert objective(target=80, wanted=90) == ("both", True)
    assert objective(target=80, wanted=90, objective="wanted") == ("wanted", True)


def test_metrics_are_those_of_the_best_sequence(llama: Context) -> None:
    events = run(llama)
    found, best = metrics(events), rows(events, "best")
    everything = [*rows(events, "sequences"), *rows(events, "impacts")]
    assert best[0]["fitness"] == max(row["fitness"] for row in everything) == found["best_fitness"]
    assert [row["fitness"] for row in best] == sorted((r["fitness"] for r in best), reverse=True)
    assert found["evaluations"] == len(everything)
    assert found["target_p1"] == best[0]["target_p"]
    assert found["reduction"] == found["best_fitness"]
    assert found["wanted_p1"] is None
    assert found["increase"] is None
    assert found["generations"] == 4 == len(rows(events, "generations")) - 1


def test_sequences_that_are_not_intact_are_counted(llama: Context) -> None:
    letters = {"texts": list("thequickbrown")}  # "th" and others are one token when encoded
    events = run(llama, pool=letters, min_tokens=2)
    intact = {row["text"]: row["presented_intact"] for row in rows(events, "sequences")}
    tokenizer = llama.backend.model.tokenizer
    for text, kept in intact.items():
        assert kept <= (len(tokenizer.encode(text, add_special_tokens=False)) == len(text))
    assert metrics(events)["not_intact"] == list(intact.values()).count(False) > 0


def test_the_distribution_holds_both_sides(llama: Context) -> None:
    events = run(llama)
    shown = {row["token_id"]: row for row in rows(events, "distribution")}
    before = probabilities(llama, ())
    after = probabilities(llama, read_ids(rows(events, "best")[0]["ids"]))
    assert {*before.topk(12).indices.tolist(), *after.topk(12).indices.tolist()} <= set(shown)
    for token_id, row in shown.items():
        assert row["p_before"] == pytest.approx(float(before[token_id]), rel=1e-4)
        assert row["p_after"] == pytest.approx(float(after[token_id]), rel=1e-4)
        assert row["rank_before"] == int((before > before[token_id]).sum()) + 1


def test_the_ancestry_leads_from_the_winner_to_where_it_came_from(llama: Context) -> None:
    events = run(llama, generations=8)
    line = rows(events, "ancestry")
    assert line[0]["ids"] == rows(events, "best")[0]["ids"]
    known = {row["ids"] for row in line}
    assert all(set(row["parents"]) <= known for row in line)
    assert {row["how"] for row in line if not row["parents"]} <= {"single", "seeded", "random"}


def test_the_pool_is_kept_to(llama: Context, tmp_path: Path) -> None:
    def used(**params: Any) -> set[int]:
        events = run(llama, **params)
        return {i for row in rows(events, "sequences") for i in read_ids(row["ids"])}

    file = tmp_path / "glitches.json"
    file.write_text('{"glitch_token_ids": [50, 60, 70, 60]}')
    assert used(pool={"file": str(file)}) == {50, 60, 70}
    assert used() <= set(llama.scope())
    text = llama.vocabulary.text
    assert all(text(i).isascii() and text(i).isprintable() for i in used(ascii_only=True))
    assert {text(i)[0] for i in used(pool_pattern="^[a-c]")} <= set("abc")
    with pytest.raises(RunError, match=r"the pool is empty: 2 tokens"):
        run(llama, pool={"ids": [50, 60]}, pool_pattern="nothing like it")


def test_the_wanted_token_is_no_way_to_itself(llama: Context) -> None:
    pool = {"ids": [*range(60, 70), 65]}
    assert rows(run(llama, pool=pool, wanted=65), "baseline")[0]["pool"] == 9
    assert rows(run(llama, pool=pool, wanted=65, wanted_in_pool=True), "baseline")[0]["pool"] == 10


def test_lengths_are_kept_to(llama: Context) -> None:
    events = run(llama, min_tokens=2, max_tokens=2)
    lengths = {len(read_ids(row["ids"])) for row in rows(events, "sequences")}
    assert lengths == {2}
    assert len(read_ids(rows(events, "best")[0]["ids"])) == 2


def test_every_token_alone_and_nothing_else(llama: Context) -> None:
    events = run(llama, impact_tokens="all", generations=0, max_tokens=1, population=2, elite=1)
    alone = {row["token_id"] for row in rows(events, "impacts")}
    assert alone == set(llama.scope())
    assert rows(events, "sequences") == []  # all are known by then
    assert run(llama, impact_tokens=0)


SETTINGS: dict[str, Any] = {
    "format": "raw",
    "prefill": " fox",
    "target": 80,
    "wanted": 90,
    "pool": {"ids": list(range(60, 90))},
    "pool_pattern": "^[a-m]",
    "ascii_only": True,
    "min_tokens": 2,
    "max_tokens": 2,
    "population": 10,
    "generations": 3,
    "elite": 0,
    "tournament": 1,
    "crossover": 0.0,
    "mutation": "constant",
    "mutation_start": 0.2,
    "mutation_end": 0.7,
    "impact_tokens": 20,
    "seed_ratio": 0.1,
    "seed_top": 3,
    "diversity_after": 1,
    "diversity_share": 0.8,
    "early_stop": 0.01,
    "patience": 1,
}
NEEDING: dict[str, dict[str, Any]] = {
    "objective": {"wanted": 90, "target": 80},
    "wanted_in_pool": {"wanted": 70, "pool": {"ids": list(range(60, 90))}},
    "diversity_share": {"diversity_after": 1},
}
OTHERS = SETTINGS | {"objective": "wanted", "wanted_in_pool": True, "base_text": "2 + 2"}


def test_every_setting_is_tried() -> None:
    assert set(OTHERS) == set(fragments()["genetic"]["properties"])


@pytest.fixture(scope="module")
def usual(llama: Context) -> list[Event]:
    return run(llama, generations=8)


@pytest.mark.parametrize("name", OTHERS)
def test_no_setting_is_idle(name: str, llama: Context, usual: list[Event]) -> None:
    given = {"generations": 8} | NEEDING.get(name, {})
    other = run(llama, **given | {name: OTHERS[name]})
    if name in NEEDING:
        usual = run(llama, **given)
    tables = ("baseline", "impacts", "sequences", "generations")
    assert [rows(usual, one) for one in tables] != [rows(other, one) for one in tables]


@pytest.mark.parametrize("objective", ["wanted", "both"])
def test_a_wanted_token_needs_no_impacts_measured_first(objective: str, llama: Context) -> None:
    found = metrics(run(llama, wanted=90, objective=objective, impact_tokens=0))
    assert found["wanted_p0"] is not None
    assert found["wanted_p1"] is not None


def test_an_early_stop_ends_the_count_too(llama: Context) -> None:
    events = run(llama, early_stop=0.01, generations=50)
    done = [event for event in events if isinstance(event, Batch)]
    found = metrics(events)
    assert found["generations"] == 0
    assert (found["stopped_by_fitness"], found["stopped_by_patience"]) == (1, 0)
    (generations,) = [batch for batch in done if batch.stage == "generations"]
    assert generations.done == generations.total == 1


def test_an_end_by_patience_is_told_from_one_by_the_last_generation(llama: Context) -> None:
    pool = {"ids": [50, 60]}  # of which all there is has soon been tried
    alike = {"pool": pool, "impact_tokens": "all", "max_tokens": 2, "population": 4}
    found = metrics(run(llama, patience=2, generations=40, **alike))
    assert found["generations"] < 40  # type: ignore[operator]
    assert (found["stopped_by_fitness"], found["stopped_by_patience"]) == (0, 1)
    last = int(found["generations"])  # type: ignore[arg-type]
    for params in ({"patience": 2, "generations": last}, {"generations": 3}):
        found = metrics(run(llama, **alike, **params))
        assert (found["stopped_by_fitness"], found["stopped_by_patience"]) == (0, 0)


def test_the_seed_decides(llama: Context) -> None:
    other = replace(llama, spec=replace(llama.spec, seed=4))
    assert rows(run(llama), "sequences") == rows(run(llama), "sequences")
    assert rows(run(llama), "sequences") != rows(run(other), "sequences")


def test_goals_that_cannot_be(llama: Context) -> None:
    with pytest.raises(RunError, match=r"target: '.*' is not one token .* but \d+: .*\(\d+\)"):
        run(llama, target="surely many tokens")
    with pytest.raises(RunError, match="wanted: token id 99999 is outside"):
        run(llama, wanted=99999)
    assert rows(run(llama, target=llama.vocabulary.text(300)), "baseline")[0]["target_id"] == 300


def test_a_system_text_is_for_the_chat_only(llama: Context) -> None:
    said = replace(llama, spec=replace(llama.spec, system="Be brief."))
    assert "Be brief." in rows(run(said), "baseline")[0]["prompt"]
    assert rows(run(said, format="raw"), "baseline")[0]["prompt"] == "{sequence}The quick brown"
    silent = detect("nowllm", llama.backend.model.tokenizer, {}, "x")
    with pytest.raises(PreflightError, match="system"):
        run(replace(said, template=silent))


@pytest.mark.parametrize("quantization", ["bfloat16", "int8"])
def test_it_runs_in_the_arithmetic_of_the_model(quantization: str, llama_folder: Path) -> None:
    probed = context(llama_folder, quantization=quantization, seed=3)
    events = run(probed)
    assert metrics(events)["best_fitness"] > 0  # type: ignore[operator]
    done = [event for event in events if isinstance(event, Batch)]
    assert [e.facts for e in run(probed, done[:4]) if isinstance(e, Batch)] == [
        batch.facts for batch in done[4:]
    ]
