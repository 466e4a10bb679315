"""Texts against the positions of a model, before any step begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glitchrun.behaviour.text_answers import most_tokens
from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.model import load_tokenizer
from glitchrun.plan.positions import Positions, positions
from glitchrun.prompts.detect import detect
from glitchrun.runner.lengths import (
    beyond_training,
    lengths,
    refusal,
    too_long,
)
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.strategies.prompt_lengths import PromptLengths
from tests.support import tiny_models
from tests.support.commands import run

LONG = "The quick brown fox jumps over the lazy dog. " * 12
STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "scan": ({"strategy": "scan", "probes": ["repeat", "explain"]}, "probes"),
    "mine": ({"strategy": "mine", "search": "random", "probes": "strict"}, "probes"),
    "test": ({"strategy": "test", "tokens": {"ids": [300]}, "probes": "strict"}, "probes"),
    "phrases": (
        {
            "strategy": "test",
            "tokens": {"phrases": {"texts": ["the man", LONG]}},
            "probes": ["repeat"],
        },
        "tokens.phrases.texts[1]",
    ),
    "validate": (
        {
            "strategy": "validate",
            "tokens": {"ids": [300]},
            "probes": ["repeat"],
            "max_new_tokens": 120,
        },
        "max_new_tokens",
    ),
    "classify": (
        {
            "strategy": "classify",
            "tokens": {"ids": [300]},
            "tests": ["length"],
            "max_new_tokens": 120,
        },
        "max_new_tokens",
    ),
    "predict": (
        {"strategy": "predict", "prompts": [{"text": LONG}], "formats": ["raw"]},
        "prompts[0]",
    ),
    "predict-long": (
        {"strategy": "predict", "prompts": [{"text": "The quick"}], "max_new_tokens": 150},
        "max_new_tokens",
    ),
    "genetic": (
        {"strategy": "genetic", "base_text": LONG, "format": "raw", "pool": {"ids": [300, 301]}},
        "max_tokens",
    ),
    "profile": (
        {"strategy": "profile", "workload": {"prompt_tokens": 100, "new_tokens": 40}},
        "workload",
    ),
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 128 learned positions."""
    return tiny_models.tiny_gpt2(tmp_path_factory.mktemp("models") / "gpt2", positions=128)


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose configuration names 64 positions."""
    folder = tiny_models.tiny_llama(tmp_path_factory.mktemp("models") / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    return folder


def written(folder: Path, model: Path, steps: list[dict[str, Any]]) -> Path:
    spec = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": "lengths"},
        "model": {"path": str(model), "device": "cpu"},
        "template": "chatml",
        "steps": steps,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec, indent=1))
    return path


def settings(folder: Path, model: Path, steps: list[dict[str, Any]]) -> PromptLengths:
    spec = load_experiment(written(folder, model, steps), ()).cells[0].spec
    tokenizer = load_tokenizer(model)
    config = json.loads((model / "config.json").read_text())
    template = detect("chatml", tokenizer, config, str(model))
    return PromptLengths(spec, template, tokenizer, config)


SHORT = {"id": "first", "strategy": "test", "tokens": {"ids": [300]}, "probes": ["repeat"]}


@pytest.mark.parametrize("name", STEPS)
def test_the_longest_text_of_each_strategy_is_known(
    name: str, learned: Path, tmp_path: Path
) -> None:
    step, parameter = STEPS[name]
    given = settings(tmp_path, learned, [SHORT, {"id": "long", **step}])
    (_, first), (_, second) = lengths(given)
    assert first.total < 96 < 128 < second.total
    reason = too_long(given, Positions(128, fixed=True))
    assert reason is not None
    assert re.match(rf".*spec.json:\d+:\d+: steps\[1\].{re.escape(parameter)}: ", reason)
    assert f"needs {second.total} positions" in reason
    assert too_long(given, Positions(second.total, fixed=True)) is None
    assert beyond_training(given, Positions(second.total, fixed=False)) == ()
    (note,) = beyond_training(given, Positions(second.total - 3, fixed=False))
    assert "3 beyond the" in note


def test_a_spelled_answer_is_as_long_as_the_longest_token_needs(
    learned: Path, tmp_path: Path
) -> None:
    named = {"id": "t", "strategy": "test", "tokens": {"ids": [5, 300]}, "probes": ["spelling"]}
    whole = {"id": "s", "strategy": "scan", "probes": ["spelling"]}
    given = settings(tmp_path, learned, [named, whole])
    (_, some), (place, every) = lengths(given)
    texts = [given.tokenizer.decode([one]) for one in (5, 300)]
    assert some.new_tokens == most_tokens("spelling", max(texts, key=len)) - 1
    longest = max(given.tokenizer.get_vocab(), key=len)
    assert every.new_tokens == most_tokens("spelling", longest) - 1 > some.new_tokens
    reason = too_long(given, Positions(every.total - 1, fixed=True))
    assert reason is not None
    assert reason.startswith(place)
    assert "at most" not in reason  # no number of `probes` would help


def test_a_number_that_would_fit_is_named(learned: Path, tmp_path: Path) -> None:
    step = {**STEPS["validate"][0], "id": "v", "max_new_tokens": 120}
    reason = too_long(settings(tmp_path, learned, [step]), Positions(128, fixed=True))
    assert reason is not None
    (fits,) = re.findall(r"max_new_tokens of (\d+) at most", reason)
    step["max_new_tokens"] = int(fits)
    ((_, length),) = lengths(settings(tmp_path, learned, [step]))
    assert length.total == 128


@pytest.mark.parametrize(("kind", "refused"), [("learned", True), ("rotary", False)])
def test_the_headers_of_a_checkpoint_are_enough_to_refuse(
    kind: str, refused: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(kind)
    given = settings(tmp_path, model, [{"id": "long", **STEPS["scan"][0]}])
    header = read_header(Checkpoint("folder", model, str(model)))
    reason = refusal(given.spec, given.tokenizer, header)
    assert (reason is not None) == refused
    assert reason is None or "steps[0].probes" in reason


def test_apply_refuses_before_any_step(learned: Path, tmp_path: Path) -> None:
    steps = [SHORT, {"id": "long", **STEPS["predict-long"][0]}]
    done = run(tmp_path, "apply", str(written(tmp_path, learned, steps)))
    assert done.returncode == 4, done.stderr
    assert "spec.json:" in done.stderr
    assert "steps[1].max_new_tokens" in done.stderr
    assert "Traceback" not in done.stderr
    assert {found.read_text() for found in tmp_path.rglob("tokens.jsonl")} <= {""}


def test_a_text_beyond_what_rotary_positions_were_trained_for_is_noted(
    rotary: Path, tmp_path: Path
) -> None:
    step = {**SHORT, "probes": ["explain"]}
    done = run(tmp_path, "apply", str(written(tmp_path, rotary, [step])))
    assert done.returncode == 0, done.stderr
    note = "beyond the 64 in the model's configuration"
    assert "warning: " in done.stderr
    assert note in done.stderr
    assert note in done.stdout
    page = next(tmp_path.rglob("report.html"))
    assert "Beyond the model" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "shapes", "wanted"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, {"wpe.weight": (1024, 8)}, (1024, True)),
        (
            {"model_type": "opt", "max_position_embeddings": 2048},
            {"model.decoder.embed_positions.weight": (2050, 8)},
            (2048, True),
        ),
        (
            {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
            {"roberta.embeddings.position_embeddings.weight": (514, 8)},
            (512, True),
        ),
        ({"model_type": "gptj", "n_positions": 2048}, {}, (2048, True)),
        ({"model_type": "mpt", "max_seq_len": 2048}, {}, (2048, True)),
        ({"model_type": "llama", "max_position_embeddings": 2048}, {}, (2048, False)),
        ({"general.architecture": "gpt2", "gpt2.context_length": 9}, {}, (9, True)),
        (
            {"model_type": "new", "text_config": {"max_position_embeddings": 77}},
            {"a.position_embedding.weight": (70, 4)},
            (70, True),
        ),
        ({"model_type": "bloom"}, {"h.0.post_attention_layernorm.weight": (8,)}, None),
        ({"model_type": "mamba"}, {}, None),
    ],
)
def test_positions_are_read_off_the_configuration_and_the_tensors(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], wanted: tuple[int, bool] | None
) -> None:
    found = positions(config, shapes)
    assert found == (Positions(*wanted) if wanted else None)
