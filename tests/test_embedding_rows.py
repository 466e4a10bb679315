"""Ids that the tokenizer knows and the embedding has no row for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glitchrun.chat.conversation import ChatSession, ChatSettings
from glitchrun.cli import main
from glitchrun.errors import ExitCode, PreflightError, RunError, UsageError
from glitchrun.model import load_tokenizer
from glitchrun.probing.backend import Backend
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.spec.types import Step
from glitchrun.strategies.context import Context, check_embedding_rows
from tests.support.engine import context
from tests.support.tiny_models import CHATML, tiny_llama
from tests.support.tokenizer_kinds import byte_level

STEPS = {
    "scan": {"probes": ["repeat"]},
    "mine": {"search": "random", "probes": ["repeat"]},
    "validate": {"tokens": {"ids": [300]}},
    "classify": {"tokens": {"ids": [300]}},
    "predict": {"prompts": [{"text": "The quick", "expected": " brown"}]},
    "genetic": {"base_text": "The quick"},
    "check": {"checks": ["chat"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer got ChatML's markers, and whose embedding was not resized."""
    path = tmp_path_factory.mktemp("rows")
    tokenizer = byte_level(("<s>", "</s>"), size=400, bos_token="<s>", eos_token="</s>")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    return tiny_llama(path, vocab=rows)


@pytest.fixture(scope="module")
def templated(folder: Path) -> Context:
    return context(folder, template="tokenizer")


@pytest.fixture(scope="module")
def bare(folder: Path) -> Context:
    return context(folder, template="raw")


def check(prepared: Context, strategy: str, **params: Any) -> None:
    check_embedding_rows(prepared, [Step("one", strategy, {**STEPS[strategy], **params})])


@pytest.mark.parametrize("strategy", STEPS)
def test_a_templates_ids_are_refused_before_anything_is_computed(
    templated: Context, strategy: str
) -> None:
    rows = len(templated.vocabulary)
    with pytest.raises(PreflightError) as caught:
        check(templated, strategy)
    told = str(caught.value)
    assert told.startswith("step one: ")
    assert f"'<|im_start|>' (id {rows})" in told
    assert f"has {rows} rows" in told
    assert f"resize_token_embeddings({rows + 2})" in told


@pytest.mark.parametrize("strategy", STEPS)
def test_a_template_without_such_ids_is_accepted(bare: Context, strategy: str) -> None:
    check(bare, strategy)


@pytest.mark.parametrize(
    ("strategy", "params"),
    [
        ("predict", {"prompts": ({"text": "The <|im_end|>"},)}),
        ("predict", {"prompts": ({"text": "The", "expected": "<|im_end|>"},)}),
        ("genetic", {"base_text": "The <|im_end|>", "format": "raw"}),
        ("check", {"prompts": ({"text": "The", "expected": "<|im_end|>"},)}),
    ],
)
def test_texts_of_the_spec_are_checked(
    bare: Context, strategy: str, params: dict[str, Any]
) -> None:
    with pytest.raises(PreflightError, match=r"'<\|im_end\|>' \(id"):
        check(bare, strategy, **params)


def test_end_ids_are_checked_by_strategies_that_sample(folder: Path) -> None:
    ended = context(folder, template="raw")
    ended.backend.model.module.generation_config.eos_token_id = [1, len(ended.vocabulary) + 1]
    with pytest.raises(PreflightError, match="the set of stop ids contains"):
        check(ended, "validate")
    check(ended, "scan")


def test_a_text_that_encodes_to_such_an_id_is_refused(bare: Context) -> None:
    with pytest.raises(RunError, match="this model's embedding has"):
        bare.tokens({"texts": ["<|im_end|>"]})


def test_a_chat_with_such_ids_does_not_start(templated: Context, bare: Context) -> None:
    settings = ChatSettings(SamplingParams(0.0, 1.0), 2, 0)
    with pytest.raises(PreflightError, match=r"'<\|im_start\|>' \(id"):
        ChatSession(templated.backend, templated.template, settings)
    talk = ChatSession(Backend(bare.backend.model), bare.template, settings)
    with pytest.raises(UsageError, match=r"'<\|im_end\|>' \(id .* has only"):
        list(talk.ask("The <|im_end|>"))
    assert list(talk.ask("The quick"))


def test_apply_ends_with_exit_code_4_and_names_the_token(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": "rows"},
        "model": {"path": str(folder), "device": "cpu"},
        "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
        "steps": [{"strategy": "scan"}],
    }
    Path("spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
    done = CliRunner().invoke(main, ["apply", "spec.yaml", "--yes"])
    assert done.exit_code == ExitCode.PREFLIGHT, done.output
    rows = load_tokenizer(folder).convert_tokens_to_ids("<|im_start|>")
    assert f"'<|im_start|>' (id {rows})" in done.output
