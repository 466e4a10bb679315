"""The families and probes as data: complete, consistent, and known to the spec layer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from glitchrun.prompts.template import Conversation, write_family
from glitchrun.spec.probes import PROBES, STRICT, TOKEN, Exchange, probe_names
from glitchrun.spec.templates import FAMILIES, RAW, TEMPLATE_MODES, Family, without_system

EARLIER = (Exchange(user="q1", answer="a1"),)


def test_no_family_has_the_name_of_a_mode() -> None:
    assert not set(FAMILIES) & set(TEMPLATE_MODES)


def test_templates_without_a_system_text() -> None:
    names = [*FAMILIES, *TEMPLATE_MODES]
    without = {name for name in names if without_system(name)}
    assert without == {"nowllm", "mistral", "gemma", "raw"}


@pytest.mark.parametrize("family", [*FAMILIES.values(), RAW], ids=lambda family: family.name)
def test_every_format_contains_each_placeholder_once(family: Family) -> None:
    assert family.user.count("{user}") == 1
    assert family.answer.count("{answer}") == 1
    assert family.system is None or family.system.count("{system}") == 1
    if family.system_in_user is not None:
        assert family.system is None
        before, after = family.system_in_user.split("{user}")
        assert (before.count("{system}"), after.count("{system}")) == (1, 0)
    assert family.default_system is None or family.carries_system


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowllm", "[INST]q1[/INST]a1</s>[INST]q2[/INST]"),
        ("mistral", "[INST] q1 [/INST]a1</s>[INST] q2 [/INST]"),
        ("llama2", "[INST] <<SYS>>\nS\n<</SYS>>\n\nq1 [/INST]a1 </s>[INST] q2 [/INST]"),
        (
            "chatml",
            (
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n"
                "<|im_start|>assistant\na1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n"
                "<|im_start|>assistant\n"
            ),
        ),
        (
            "llama3",
            (
                "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (
            "gemma",
            (
                "<start_of_turn>user\nq1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
                "<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
        (
            "harmony",
            (
                "<|start|>system<|message|>You are ChatGPT, a large language model trained by "
                "OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\n"
                "Reasoning: medium\n\n# Valid channels: analysis, commentary, final. "
                "Channel must be included for every "
                "message.<|end|><|start|>developer<|message|># Instructions\n\nS<|end|>"
                "<|start|>user<|message|>q1<|end|><|start|>assistant<|channel|>final<|message|>"
                "a1<|end|><|start|>user<|message|>q2<|end|>"
                "<|start|>assistant<|channel|>final<|message|>"
            ),
        ),
        ("plain", "S\n\nq1\na1\n\nq2\n"),
    ],
)
def test_a_conversation_of_two_turns(name: str, expected: str) -> None:
    family = FAMILIES[name]
    system = "S" if family.carries_system else None
    assert write_family(family, Conversation("q2", EARLIER, system)) == expected


def test_raw_adds_nothing() -> None:
    assert write_family(RAW, Conversation("q2", EARLIER)) == "q1a1q2"


def test_an_empty_system_text_is_a_turn_and_none_is_not() -> None:
    chatml = FAMILIES["chatml"]
    assert write_family(chatml, Conversation("u", system="")).startswith(
        "<|im_start|>system\n<|im_end|>"
    )
    assert write_family(chatml, Conversation("u")).startswith("<|im_start|>user\n")


def test_the_default_system_text_is_used_if_none_is_given() -> None:
    qwen = FAMILIES["qwen"]
    assert "You are a helpful assistant." in write_family(qwen, Conversation("u"))
    assert "You are a helpful assistant." not in write_family(qwen, Conversation("u", system="S"))


def test_braces_in_texts_are_kept() -> None:
    text = write_family(FAMILIES["llama2"], Conversation("{system}{answer}", (), "{user}"))
    assert text == "[INST] <<SYS>>\n{user}\n<</SYS>>\n\n{system}{answer} [/INST]"


def test_each_chat_probe_asks_for_the_token_once() -> None:
    assert set(STRICT) <= set(PROBES)
    for probe in (one for one in PROBES.values() if not one.raw):
        assert probe.user.count(TOKEN) == 1
        assert TOKEN not in probe.prefill + "".join(turn.user for turn in probe.earlier)


def test_selecting_probes() -> None:
    assert probe_names(None) == ("repeat",)
    assert probe_names("strict") == ("repeat", "explain", "question")
    assert probe_names(["question"]) == ("question",)


def test_families_and_probes_need_no_installed_extra() -> None:
    """`glitchrun list` works without the extra `run`."""
    code = (
        "import sys; import glitchrun.spec.templates, glitchrun.spec.probes;"
        "print(sorted({'torch', 'transformers', 'jinja2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
