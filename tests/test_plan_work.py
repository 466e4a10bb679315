"""Bounds on the work of each step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glitchrun.plan.work import StepWork, glitch_share, parameters, step_work, workloads
from glitchrun.search.recall import most_missed
from glitchrun.spec.strategy import STRATEGIES, Strategy
from glitchrun.spec.types import ModelSpec, Spec, Step, Thresholds
from glitchrun.strategies.mine import usual_cascade

VOCAB = 1000


def _spec(*steps: Step, system: str | None = None) -> Spec:
    return Spec("x", ModelSpec("m"), steps, system=system)


def _work(strategy: str, **params: Any) -> StepWork:
    return step_work(_spec(Step("s", strategy, params)), VOCAB)[0]


def test_a_walk_takes_a_gradient_a_round() -> None:
    work = _work("mine", iterations=20, batch_size=4, k=64)
    assert (work.tokens, work.prompts, work.gradients) == (80, 80, 20)
    assert work.repeats == 80


def test_a_walk_over_few_neighbours_takes_more_rounds() -> None:
    assert _work("mine", iterations=20, batch_size=8, k=2).gradients == 80


def test_only_a_walk_takes_gradients() -> None:
    assert _work("mine", search="random").gradients == 0


def test_the_budget_and_the_vocabulary_are_bounds() -> None:
    assert _work("mine", iterations=20, batch_size=4, budget=7).tokens == 7
    assert _work("mine", iterations=20, batch_size=4, budget=700).tokens == 80
    assert _work("mine", batch_size=4, budget=700).tokens == 700
    assert _work("mine", batch_size=4).tokens == 200
    assert _work("mine", iterations=5000, batch_size=4).tokens == VOCAB


@pytest.mark.parametrize(("recall", "fewest"), [(0.9, 9), (0.95, 19), (0.5, 1), (0.99, 99)])
def test_a_cascade_is_told_to_verify_nearly_all_where_few_are_found(
    recall: float, fewest: int
) -> None:
    assert most_missed(fewest, recall) == 1
    assert most_missed(fewest - 1, recall) == 0
    caveat = _work("mine", search="cascade", recall=recall).caveat
    assert caveat is not None
    assert f"fewer than {fewest} glitch token" in caveat
    assert _work("mine", search="cascade", recall=recall, budget=500).caveat is None
    assert _work("mine", search="screen").caveat is None


@pytest.mark.parametrize(
    ("glitches", "recall", "verified"),
    [(311, 0.8, 2648), (311, 0.9, 4931), (1679, 0.9, 4235), (12318, 0.95, 19835)],
)
def test_usual_cascade_agrees_with_those_measured(
    glitches: int, recall: float, verified: int
) -> None:
    """Front and audit of the table in docs/engine.md."""
    assert usual_cascade(48_814, glitches, recall, 0.95) == pytest.approx(verified, rel=0.3)
    if glitches < 2000:
        assert usual_cascade(48_814, glitches, recall, 0.95) == pytest.approx(verified, rel=0.03)


def test_usual_cascade_verifies_nearly_all_of_a_scope_without_glitch_tokens() -> None:
    assert usual_cascade(1000, 0, 0.9, 0.95) > 950
    assert usual_cascade(100, 0, 0.9, 0.95) == 100


def test_share_of_glitch_tokens_follows_the_threshold() -> None:
    shares = [glitch_share(p) for p in (1e-9, 1e-3, 3e-3, 1e-2, 0.1, 1.0)]
    assert shares[:2] == [0.0064, 0.0064]
    assert shares[3] == pytest.approx(0.034)
    assert shares[-1] == pytest.approx(0.25)
    assert shares == sorted(shares)


def test_likely_work_follows_the_finds_of_earlier_steps() -> None:
    steps = (
        Step("mine", "mine", {"search": "cascade", "recall": 0.8}),
        Step("asr", "validate", {"tokens": {"from": "mine"}, "attempts": 4, "max_new_tokens": 20}),
        Step("all", "test", {"tokens": {"from": "mine", "select": "all"}}),
    )
    spec = Spec("x", ModelSpec("m"), steps, thresholds=Thresholds(probability=0.001))
    mine, asr, every = step_work(spec, 49_152, {"mine": 48_000})
    assert (mine.tokens, mine.screens) == (48_000, 48_000)
    assert mine.likely is not None
    assert asr.likely is not None
    assert every.likely is not None
    assert mine.likely.found == round(0.0064 * 48_000)
    assert asr.likely.tokens == mine.likely.found
    assert asr.likely.continuations == 3 * 4 * asr.likely.tokens
    # Texts of 20 tokens on average, cut off at 20.
    assert asr.likely.new_tokens == 13 * asr.likely.continuations
    assert asr.caveat == "The bound assumes that all 48,000 tokens of mine are glitch tokens."
    assert every.likely.tokens == mine.likely.tokens
    assert every.caveat is None


def test_steps_that_take_the_scope_are_bounded_by_it() -> None:
    steps = (
        Step("s", "scan", {}),
        Step("m", "mine", {"batch_size": 4, "controls": 3}),
        Step("t", "test", {"tokens": {"from": "s"}}),
    )
    found = step_work(_spec(*steps), VOCAB, {"s": 30, "m": 20})
    assert [work.tokens for work in found] == [30, 20 + 2 * 3, 30]


def test_batch_of_continuations_has_no_more_rows_than_there_are() -> None:
    asked = {"tokens": {"ids": [1, 2]}, "attempts": 5}
    spec = _spec(Step("v", "validate", asked), Step("s", "scan", {}))
    validate, scan = workloads(spec, step_work(spec, VOCAB))
    assert (validate.rows, scan.rows) == (10, None)


def test_strict_asks_three_times() -> None:
    assert _work("scan", probes="strict").prompts == 3 * VOCAB
    assert _work("scan", probes=["repeat", "question"]).prompts == 2 * VOCAB


def test_defaults_are_those_of_the_schema() -> None:
    declared = STRATEGIES["mine"].fragment["properties"]
    found = parameters(Step("s", "mine", {"k": 7}))
    assert found["k"] == 7
    assert found["batch_size"] == declared["batch_size"]["default"]
    assert _work("mine").tokens == 50 * found["batch_size"]


def test_validation_counts_every_attempt_behind_every_probe() -> None:
    work = _work("validate", tokens={"ids": [1, 2, 2]}, attempts=5, max_new_tokens=50)
    assert (work.tokens, work.continuations, work.new_tokens) == (2, 30, 1500)
    assert work.prompts == 0


def test_a_step_looks_at_no_more_than_the_step_it_follows() -> None:
    steps = (
        Step("mine", "mine", {"iterations": 3, "batch_size": 4}),
        Step("again", "test", {"tokens": {"from": "mine"}}),
        Step("asr", "validate", {"tokens": {"from": "again"}, "attempts": 1}),
    )
    assert [work.tokens for work in step_work(_spec(*steps), VOCAB)] == [12, 12, 12]


def test_several_steps_followed_are_bounded_together() -> None:
    steps = (
        Step("a", "mine", {"iterations": 3, "batch_size": 4}),
        Step("b", "mine", {"iterations": 2, "batch_size": 4}),
        Step("asr", "validate", {"tokens": {"from": ["a", "b"]}, "attempts": 1}),
    )
    assert [work.tokens for work in step_work(_spec(*steps), VOCAB)] == [12, 8, 20]
    assert [work.tokens for work in step_work(_spec(*steps), 15)] == [12, 8, 15]


def test_a_file_of_tokens_is_bounded_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    ids = list(range(10))
    path.write_text(json.dumps(ids, separators=(",", ":")))
    found = _work("test", tokens={"file": str(path)}).tokens
    assert found is not None
    assert len(ids) <= found <= path.stat().st_size
    assert _work("test", tokens={"file": str(tmp_path / "none")}).tokens == VOCAB


def test_a_strategy_without_bounds_is_shown_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(STRATEGIES["scan"]), "work", Strategy.work)
    steps = (Step("s", "scan", {}), Step("t", "test", {"tokens": {"from": "s"}}))
    assert [work.tokens for work in step_work(_spec(*steps), VOCAB)] == [None, VOCAB]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_bounds(name: str) -> None:
    assert type(STRATEGIES[name]).work is not Strategy.work


@pytest.mark.parametrize(
    ("strategy", "params", "passes"),
    [
        ("mine", {"batch_size": 7}, [("verify", 7, True)]),
        ("mine", {"search": "random", "batch_size": 7}, [("verify", 7, False)]),
        (
            "mine",
            {"search": "screen", "batch_size": 7},
            [("screen", None, False), ("verify", 7, False)],
        ),
        ("mine", {"search": "cascade"}, [("screen", None, False), ("verify", None, False)]),
        ("scan", {}, [("verify", None, False)]),
        ("scan", {"batch_size": 16}, [("verify", 16, False)]),
        ("validate", {"tokens": {"ids": [1]}}, [("sample", None, False)]),
        ("validate", {"tokens": {"ids": [1]}, "batch_size": 4}, [("sample", 4, False)]),
        ("classify", {"tokens": {"ids": [1]}}, [("answer", None, False)]),
        ("genetic", {"base_text": "x"}, [("score", None, False)]),
    ],
)
def test_the_passes_of_a_step(
    strategy: str, params: dict[str, Any], passes: list[tuple[str, int | None, bool]]
) -> None:
    found = workloads(_spec(Step("s", strategy, params)))
    assert [(load.kind, load.batch, load.gradient) for load in found] == passes


def test_attempts_of_validate_begin_as_one_unless_they_stop_early() -> None:
    def together(**params: Any) -> int:
        asked = {"tokens": {"ids": [1]}, "attempts": 7, **params}
        (load,) = workloads(_spec(Step("s", "validate", asked)))
        return load.together

    assert together() == 7
    assert together(sequential=True) == 1


def test_positions_cover_the_prompt_its_system_text_and_the_continuation() -> None:
    step = Step("s", "validate", {"tokens": {"ids": [1]}, "max_new_tokens": 50})
    (plain,) = workloads(_spec(step))
    (with_system,) = workloads(_spec(step, system="x" * 100))
    (repeat,) = workloads(_spec(Step("s", "scan", {})))
    assert plain.positions == 128 + 50
    assert with_system.positions == plain.positions + 50
    assert repeat.positions == 64


def test_an_evolution_is_bounded_by_its_generations() -> None:
    asked = {"base_text": "x" * 200, "population": 10, "generations": 4, "max_tokens": 6}
    work = _work("genetic", **asked, impact_tokens=30)
    assert (work.tokens, work.prompts, work.gradients) == (30, 30 + 10 * 5 + 3, 0)
    assert _work("genetic", **asked, impact_tokens="all").tokens == VOCAB
    assert _work("genetic", **asked, pool={"ids": [1, 2, 2]}).tokens == 2
    (load,) = workloads(_spec(Step("s", "genetic", asked)))
    assert load.positions == 64 + 100 + 6
