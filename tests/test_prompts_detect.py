"""Which template a model gets, and the rule that says so."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from glitchrun.errors import PreflightError
from glitchrun.prompts.detect import detect
from glitchrun.prompts.dialogue import Dialogue
from glitchrun.prompts.render import render_text
from glitchrun.prompts.template import stop_ids
from glitchrun.spec.types import InlineTemplate
from tests.support.real_tokenizers import mistral, smollm2, with_chat_template

MIXTRAL = SimpleNamespace(model_type="mixtral")
TAKES_ALL = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


class Markers:
    """A tokenizer of which only the vocabulary matters: it splits every text into characters."""

    bos_token = bos_token_id = eos_token_id = chat_template = None
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, *pieces: str, size: int = 1000) -> None:
        self._vocabulary = {piece: i for i, piece in enumerate(pieces)}
        self._size = size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [self._vocabulary[text]] if text in self._vocabulary else [ord(c) for c in text]


@pytest.mark.parametrize(
    "source",
    [
        "nowllm-0829",
        "../models/nowllm-0829",
        "/models/nowllm-0829/",
        "/models/NoWLLM-0829",
        "someone/nowllm-0829",
        "/models/nowllm-0829.gguf",
        "/models/nowllm-0829.Q4_K_M.gguf",
    ],
)
def test_nowllm_is_detected_by_its_name(source: str) -> None:
    template = detect("auto", mistral(), MIXTRAL, source)
    assert template.name == "nowllm"
    assert "name" in template.rule


@pytest.mark.parametrize(
    "source", ["/nowllm-0829/tiny", "/m/nowllm-0829-merged", "/m/my-nowllm-0829", "/m/nowllm-0829x"]
)
def test_a_part_of_a_name_does_not_select_nowllm(source: str) -> None:
    assert detect("auto", mistral(), MIXTRAL, source).name == "mistral"


def test_the_name_precedes_the_chat_template() -> None:
    tokenizer = with_chat_template(mistral(), TAKES_ALL)
    assert detect("auto", tokenizer, MIXTRAL, "m/nowllm-0829").name == "nowllm"
    assert detect("auto", tokenizer, MIXTRAL, "m/other").name == "tokenizer"


EFFORT = "Reasoning: {{ effort | default('medium') }}\n{{ messages[-1]['content'] }}"


def test_variables_reach_the_chat_template_and_are_reported() -> None:
    tokenizer = with_chat_template(smollm2(), EFFORT)
    template = detect("auto", tokenizer, {}, "x", {"effort": "low"})
    assert "The spec sets effort." in template.rule
    text, _ = render_text(template, "hello", tokenizer)
    assert text == "Reasoning: low\nhello"
    text, _ = render_text(detect("auto", tokenizer, {}, "x"), "hello", tokenizer)
    assert text == "Reasoning: medium\nhello"
    dialogue = Dialogue(template, tokenizer)
    assert tokenizer.decode(dialogue.first_turn("hello")) == "Reasoning: low\nhello"


@pytest.mark.parametrize(
    ("setting", "variables", "message"),
    [
        ("auto", {"effrt": "low"}, "does not read effrt"),
        ("tokenizer", {"messages": "x"}, "does not read messages"),
        ("chatml", {"effort": "low"}, "this run uses chatml"),
    ],
)
def test_unused_variables_are_refused(
    setting: str, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(PreflightError, match=message):
        detect(setting, with_chat_template(smollm2(), EFFORT), {}, "x", variables)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param({"rag": EFFORT, "tool_use": EFFORT}, id="several, none the default"),
        pytest.param("{{ 1 // 0 }}{{ messages[-1]['content'] }}", id="division by zero"),
        pytest.param("{% for i in range(10**9) %}{% endfor %}", id="endless range"),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="endless recursion"),
        pytest.param("{{ ''.__class__.__mro__ }}{{ messages[-1]['content'] }}", id="reaches out"),
    ],
)
def test_a_failing_chat_template_is_reported(template: Any) -> None:
    tokenizer = with_chat_template(smollm2(), template)
    assert "was skipped" in detect("auto", tokenizer, {}, "x").rule
    with pytest.raises(PreflightError, match="fails on this conversation"):
        detect("tokenizer", tokenizer, {}, "x")


def test_harmony_answers_begin_in_the_final_channel() -> None:
    """Its own chat template leaves the channel to the model: no answer can be begun behind that."""
    tokenizer = with_chat_template(smollm2(), TAKES_ALL)
    markers = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>")
    tokenizer.get_vocab = lambda: dict.fromkeys(markers, 0)
    assert detect("auto", tokenizer, {"model_type": "gpt_oss"}, "x").name == "harmony"


def test_the_rule_contains_the_default_system_text() -> None:
    template = detect("auto", smollm2(), {"model_type": "llama"}, "x")
    assert template.name == "tokenizer"
    assert "You are a helpful AI assistant named SmolLM" in template.rule
    assert template.carries_system
    assert template.stop == "<|im_end|>"
    assert stop_ids(template, smollm2()) == {2}


def test_a_broken_chat_template_is_skipped_and_reported() -> None:
    tokenizer = with_chat_template(smollm2(), "{{ raise_exception('not today') }}")
    template = detect("auto", tokenizer, {"model_type": "llama"}, "x")
    assert template.name == "chatml"
    assert "not today" in template.rule
    with pytest.raises(PreflightError, match="not today"):
        detect("tokenizer", tokenizer, {}, "x")


def test_a_chat_template_that_alters_the_text_is_skipped() -> None:
    tokenizer = with_chat_template(smollm2(), "{{ messages[0]['content'] | lower }}")
    template = detect("auto", tokenizer, {}, "x")
    assert template.name == "chatml"
    assert "does not keep" in template.rule


@pytest.mark.parametrize(
    ("template", "carries"),
    [
        (TAKES_ALL, True),
        ("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}", False),
        (
            (
                "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
                "{% endif %}{{ messages[-1]['content'] }}"
            ),
            False,
        ),
    ],
    ids=["carries", "drops in silence", "refuses"],
)
def test_whether_a_chat_template_carries_a_system_text(template: str, carries: bool) -> None:
    tokenizer = with_chat_template(smollm2(), template)
    assert detect("tokenizer", tokenizer, {}, "x").carries_system is carries


@pytest.mark.parametrize(
    ("pieces", "config", "name"),
    [
        (("<|header_start|>", "<|eot|>"), {"model_type": "llama4"}, "llama4"),
        (("<|start_header_id|>", "<|eot_id|>"), {"model_type": "llama"}, "llama3"),
        (
            ("<|start_header_id|>", "<|eot_id|>"),
            SimpleNamespace(model_type="llama", rope_parameters={"rope_type": "llama3"}),
            "llama3.1",
        ),
        (("<start_of_turn>", "<end_of_turn>"), {"model_type": "gemma2"}, "gemma"),
        (("<|im_start|>", "<|im_end|>"), {"model_type": "llama"}, "chatml"),
        (("<|im_start|>", "<|im_end|>"), {"model_type": "qwen2"}, "qwen"),
        (("<|im_start|>", "<|im_sep|>", "<|im_end|>"), {"model_type": "phi3"}, "phi4"),
        (("<|user|>", "<|assistant|>", "<|end|>"), {"model_type": "phi3"}, "phi"),
        (("[INST]", "[/INST]", "<s>"), {"model_type": "llama"}, "mistral"),
        (("<s>", "</s>"), {"model_type": "mistral"}, "mistral"),
        ((), {"model_type": "mistral"}, "plain"),
        ((), {"model_type": "gpt2"}, "plain"),
        ((), object(), "plain"),
    ],
)
def test_families_are_detected_by_markers_and_architecture(
    pieces: tuple[str, ...], config: object, name: str
) -> None:
    tokenizer: Any = Markers(*pieces)
    template = detect("auto", tokenizer, config, "some/llama3-gemma-qwen")
    assert template.name == name


def test_llama_2_is_detected_by_architecture_and_size() -> None:
    tokenizer: Any = Markers("<s>", "</s>", size=32000)
    assert detect("auto", tokenizer, {"model_type": "llama"}, "x").name == "llama2"
    larger: Any = Markers("<s>", "</s>", size=128256)
    assert detect("auto", larger, {"model_type": "llama"}, "x").name == "plain"


@pytest.mark.parametrize("setting", ["raw", "chatml", "gemma"])
def test_a_name_in_the_spec_selects_the_family(setting: str) -> None:
    template = detect(setting, mistral(), MIXTRAL, "nowllm-0829")
    assert template.name == setting
    assert "spec" in template.rule


def test_a_closing_text_of_several_tokens_is_reported() -> None:
    assert "'<|im_end|>' is not a single token" in detect("chatml", mistral(), MIXTRAL, "x").rule
    assert "not a single token" not in detect("chatml", smollm2(), {}, "x").rule


def test_an_inline_template() -> None:
    template = detect(InlineTemplate(user="<u>{user}</u>", stop="</u>"), mistral(), MIXTRAL, "x")
    assert (template.name, template.stop, template.carries_system) == ("inline", "</u>", False)


def test_an_inline_template_without_the_user_placeholder_is_refused() -> None:
    with pytest.raises(PreflightError, match=r"template\.user '<u></u>' must contain \{user\}"):
        detect(InlineTemplate(user="<u></u>"), mistral(), MIXTRAL, "x")


def test_a_missing_chat_template_is_refused() -> None:
    with pytest.raises(PreflightError, match="has no chat template"):
        detect("tokenizer", mistral(), MIXTRAL, "x")


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(PreflightError, match="unknown template 'chatmal'"):
        detect("chatmal", mistral(), MIXTRAL, "x")


def test_the_rule_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="glitchrun.prompts"):
        template = detect("auto", mistral(), MIXTRAL, "nowllm-0829")
    assert template.rule in caplog.text


def test_stop_ids() -> None:
    tokenizer = smollm2()
    assert stop_ids(detect("chatml", tokenizer, {}, "x"), tokenizer) == {2}
    long_stop = detect(InlineTemplate(user="{user}", stop="</answer>"), tokenizer, {}, "x")
    assert stop_ids(long_stop, tokenizer) == {tokenizer.eos_token_id}
