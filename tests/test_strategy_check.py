"""`check`: what passes, what fails, what is skipped."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Measured
from glitchrun.probing.token_choice import SamplingParams, rng_key
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.check.outcomes import Checked, Finding
from glitchrun.strategies.context import Context
from glitchrun.strategies.validate import run as validate_run
from tests.support.engine import context
from tests.support.oracle import PLANTED, oracle
from tests.support.tiny_models import tiny_mixtral

NOWLLM = {"architecture": "MixtralForCausalLM", "vocabulary_size": 32_000, "template": "nowllm"}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tiny_mixtral(tmp_path_factory.mktemp("mixtral"), real_tokenizer=True)
    return context(folder, template="nowllm", quantization="int8")


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder)


def events(probed: Context, *checks: str, **params: Any) -> list[Any]:
    strategy = STRATEGIES["check"]
    config = strategy.configure({"checks": list(checks), **params})
    return list(strategy.run(config, probed, ()))


def table(found: list[Any], name: str) -> list[Any]:
    entries = [e for event in found if isinstance(event, Batch) for e in event.entries]
    return [entry.cells for entry in entries if entry.table == name]


def outcome(probed: Context, check: str, **params: Any) -> tuple[str, str]:
    (row,) = table(events(probed, check, **params), "checks")
    return row["outcome"], row["reason"]


def measurements(probed: Context, check: str, **params: Any) -> dict[str, Any]:
    rows = table(events(probed, check, **params), "measurements")
    return {row["what"].removeprefix(f"{check}: "): row for row in rows}


def test_a_sound_model_is_loaded_as_asked(mixtral: Context) -> None:
    assert outcome(mixtral, "loading", expect=NOWLLM)[0] == "pass"
    assert outcome(mixtral, "template", expect=NOWLLM)[0] == "pass"
    found = measurements(mixtral, "loading", expect=NOWLLM)
    assert found["share of the layers' bytes in int8"]["value"] > 0.9
    assert found["time (seconds)"]["measured"] > 0
    told = measurements(mixtral, "template")
    assert told["BOS at the start of the prompt"]["value"] == 1
    assert "not supported" in told["system text"]["value"]


def test_another_model_fails(mixtral: Context) -> None:
    state, reason = outcome(mixtral, "loading", expect={"architecture": "LlamaForCausalLM"})
    assert state == "fail"
    assert reason == "architecture: wanted LlamaForCausalLM, found MixtralForCausalLM"
    assert outcome(mixtral, "template", expect={"template": "chatml"})[0] == "fail"


def test_weights_that_are_not_quantized_as_asked_fail(mixtral: Context) -> None:
    asked = replace(mixtral.spec.model, quantization="int4")
    other = replace(mixtral, spec=replace(mixtral.spec, model=asked))
    state, reason = outcome(other, "loading")
    assert state == "fail"
    assert "int4" in reason


def test_weights_far_from_the_plan_fail(mixtral: Context) -> None:
    planned = mixtral.backend.model.bytes
    for estimate, state in ((planned, "pass"), (2 * planned, "fail")):
        told = replace(mixtral, estimate={"weight_bytes": estimate})
        assert outcome(told, "loading")[0] == state


def test_predictions_are_held_against_references(mixtral: Context) -> None:
    strategy = STRATEGIES["predict"]
    prompt = {"text": "The quick brown", "expected": "fox", "name": "fox"}
    config = strategy.configure({"prompts": [prompt], "formats": ["raw"]})
    (row,) = table(list(strategy.run(config, mixtral, ())), "predictions")
    right = {"raw": {"rank": row["rank"], "p": row["p"]}}
    assert outcome(mixtral, "prediction", prompts=[{**prompt, "reference": right}])[0] == "pass"
    wrong = {"raw": {"rank": row["rank"], "p": min(1.0, 3 * row["p"])}}
    state, reason = outcome(mixtral, "prediction", prompts=[{**prompt, "reference": wrong}])
    assert state == "fail"
    assert reason.startswith("«fox» raw: p: wanted")
    wide = {"prompts": [{**prompt, "reference": wrong}], "p_factor": 4.0}
    assert outcome(mixtral, "prediction", **wide)[0] == "pass"


def test_without_a_reference_the_rank_has_a_limit(mixtral: Context) -> None:
    assert outcome(mixtral, "chat", max_rank=32_000)[0] == "pass"
    assert outcome(mixtral, "chat", max_rank=1)[0] == "fail"
    assert outcome(mixtral, "chat", max_rank=32_000, min_improvement=1000)[0] == "fail"


def test_tokens_of_known_classes(mixtral: Context) -> None:
    assert outcome(mixtral, "classifier", labelled={"special": [0, 1, 2], "byte": [200]}) == (
        "pass",
        "all 6 requirements met",
    )
    state, reason = outcome(mixtral, "classifier", labelled={"normal": [1, 5000]})
    assert state == "fail"
    assert reason == "labelled normal: wanted all of them normal, found 1 of 2; not 1"
    assert measurements(mixtral, "classifier")["rows byte"]["value"] == 253


def test_verification_without_a_known_glitch_is_skipped_not_passed(llama: Context) -> None:
    state, reason = outcome(llama, "verification", controls=4, max_false_alarms=1)
    assert state == "skip"
    assert "no known glitch token" in reason


def test_false_alarms_fail_the_verification(llama: Context) -> None:
    """A random model repeats nothing: it finds every glitch token, and every control too."""
    given = {"glitch": [40, 41], "controls": 4, "attempts": 2, "max_new_tokens": 3}
    state, reason = outcome(llama, "verification", **given)
    assert state == "fail"
    assert "share of 4 controls called glitch: wanted at most 0.1, found 1" in reason
    assert "share of 4 controls confirmed by sampling: wanted at most 0.1, found 1" in reason
    found = measurements(llama, "verification", **given, max_false_alarms=1)
    assert found["known glitch tokens missed"]["outcome"] == "pass"
    assert found["known glitch tokens not confirmed by sampling"]["outcome"] == "pass"
    assert found["of 2 glitch tokens, those whose attempts differ"]["value"] == 2
    assert found["attempts drawn together and one token at a time"]["outcome"] == "pass"


def test_known_glitch_tokens_are_found_and_confirmed_among_controls() -> None:
    planted = sorted(PLANTED)[:3]
    trained = [one for one in oracle("float32").scope() if one not in PLANTED]
    given = {"glitch": planted, "controls": trained[::40], "attempts": 2, "max_new_tokens": 5}
    assert outcome(oracle("float32"), "verification", **given)[0] == "pass"
    more = {**given, "glitch": [*planted, trained[1]]}
    state, reason = outcome(oracle("float32"), "verification", **more)
    assert state == "fail"
    assert f"known glitch tokens missed: wanted none, found {trained[1]}" in reason
    assert f"not confirmed by sampling: wanted none, found {trained[1]}" in reason


def test_controls_that_are_drawn_are_common_words_and_pass() -> None:
    """Beside planted tokens drawn ones of their kind would often be planted ones too."""
    given = {"glitch": sorted(PLANTED)[:3], "controls": 20, "attempts": 2, "max_new_tokens": 5}
    assert outcome(oracle("float32"), "verification", **given)[0] == "pass"


def test_attempts_that_are_all_the_same_fail_the_verification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As they would be were they made greedily."""
    monkeypatch.setattr(validate_run, "SamplingParams", lambda _, top_p: SamplingParams(0.0, top_p))
    given = {"glitch": sorted(PLANTED)[:3], "controls": 4, "attempts": 3, "max_new_tokens": 5}
    state, reason = outcome(oracle("float32"), "verification", **given)
    assert state == "fail"
    assert reason == "of 3 glitch tokens, those whose attempts differ: wanted at least 1, found 0"


def test_attempts_that_differ_a_second_time_fail_the_verification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them fail the token, the second time too: what they drew tells them apart."""
    turn = count()
    monkeypatch.setattr(
        "glitchrun.probing.sampling.rng_key", lambda *what: rng_key(next(turn), *what[1:])
    )
    given = {"glitch": sorted(PLANTED)[:3], "controls": [], "attempts": 3, "max_new_tokens": 5}
    state, reason = outcome(oracle("float32"), "verification", **given)
    assert state == "fail"
    assert reason.startswith("attempts drawn together and one token at a time: wanted equal")


@pytest.mark.parametrize(
    ("budget", "state"), [("1TB", "pass"), ("10KB", "fail"), (1000, "fail"), (None, "skip")]
)
def test_memory_is_held_against_its_budget(mixtral: Context, budget: Any, state: str) -> None:
    assert outcome(mixtral, "memory", memory_budget=budget)[0] == state
    told = measurements(mixtral, "memory", memory_budget=budget)
    assert told["peak of process on cpu (bytes)"]["measured"] > mixtral.backend.model.bytes


def test_outcomes_are_counted_apart(llama: Context) -> None:
    found = events(llama, "loading", "memory", "template", expect={"vocabulary_size": 7})
    counts = {event.name: event.value for event in found if isinstance(event, Measured)}
    assert counts == {"failed": 1, "passed": 1, "skipped": 1, "checks": 3}


def test_a_check_of_which_nothing_was_wanted_is_no_pass() -> None:
    assert Checked("x", (Finding("size", 3),)).outcome == "skip"
    broken = (Finding("size", 3, "4", False),)
    assert Checked("x", broken, "no budget").outcome == "fail"
