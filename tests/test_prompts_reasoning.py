"""Chat templates that open the model's reasoning: an answer that is begun stands behind it."""

from __future__ import annotations

from typing import Any

import pytest

from glitchrun.prompts.detect import detect
from glitchrun.prompts.dialogue import Dialogue
from glitchrun.prompts.render import intact, render, render_slot, render_text
from glitchrun.spec.probes import PROBES
from glitchrun.spec.types import InlineTemplate
from tests.support.tokenizer_kinds import byte_level

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n"
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
COHERE = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>")


def chat(opens: str, turn: str = TURN, end: str = "{% endif %}") -> str:
    """A chat template whose generation prompt ends with `opens`."""
    return "{% for m in messages %}" + turn + "{% endfor %}" + OPENING + opens + end


# A template that shows the reasoning of earlier turns, in a way of its own.
SHOWN = chat(
    "<reasoning>\n",
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] is defined and m['reasoning_content'] %}"
    "<reasoning>\n{{ m['reasoning_content'] }}\n</reasoning>\n### Answer\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n",
)
# Told to leave reasoning out, it closes what it opens.
SWITCH = chat(
    "<think>\n{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n"
    "{% endif %}"
)
CASES = {
    "think, line": (chat("<think>\n"), (), "<think>\n", "\n</think>\n\n"),
    "think": (chat("<think>"), ("<think>", "</think>"), "<think>", "</think>\n\n"),
    "thought": (chat("<thought>\n"), (), "<thought>\n", "\n</thought>\n\n"),
    "seed": (chat("<seed:think>"), (), "<seed:think>", "</seed:think>\n\n"),
    "Magistral": (chat("[THINK]"), (), "[THINK]", "[/THINK]\n\n"),
    "Kimi": (chat("◁think▷"), (), "◁think▷", "◁/think▷\n\n"),
    "Cohere": (chat(COHERE[0]), COHERE, COHERE[0], f"{COHERE[1]}\n\n"),
    "shown": (SHOWN, (), "<reasoning>\n", "\n</reasoning>\n### Answer\n"),
    "switch": (SWITCH, (), "<think>\n", "</think>\n\n"),
    "channel": (
        chat("<|channel|>analysis<|message|>"),
        HARMONY,
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}


def tokenizer_of(template: str, special: tuple[str, ...] = ()) -> Any:
    named = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", *special)
    return byte_level(named, chat=template, eos_token="</s>")


@pytest.mark.parametrize("name", CASES)
def test_the_prefill_follows_the_closed_reasoning(name: str) -> None:
    template, special, opens, closes = CASES[name]
    tokenizer = tokenizer_of(template, special)
    used = detect("tokenizer", tokenizer, {}, "x")
    prompts = {
        probe: render(used, PROBES[probe], tokenizer) for probe in PROBES if not PROBES[probe].raw
    }
    for probe, prompt in prompts.items():
        end = f"<|im_end|>\n<|im_start|>assistant\n{opens}{closes}{PROBES[probe].prefill}"
        assert prompt.suffix_text.endswith(end)
        assert tokenizer.decode(prompt.suffix_ids).endswith(end)
    assert f"closed before the prefill of a probe with {closes!r}" in used.rule
    word = tokenizer.convert_tokens_to_ids("token")
    assert intact(prompts["question"], [word], tokenizer) == [True]


def test_reasoning_that_the_spec_disables_is_not_closed() -> None:
    tokenizer = tokenizer_of(SWITCH)
    used = detect("tokenizer", tokenizer, {}, "x", {"enable_thinking": False})
    assert "reasoning" not in used.rule
    prompt = render(used, PROBES["repeat"], tokenizer)
    assert prompt.suffix_text.count("</think>") == 1


def test_reasoning_stays_open_without_a_prefill() -> None:
    tokenizer = tokenizer_of(CASES["think, line"][0])
    used = detect("tokenizer", tokenizer, {}, "x")
    for prefill in ("", " "):
        text, _ = render_text(used, "The quick", tokenizer, prefill=prefill)
        assert text.endswith(f"assistant\n<think>\n{prefill}")
    text, _ = render_text(used, "The quick", tokenizer, prefill="It")
    assert text.endswith("<think>\n\n</think>\n\nIt")
    place = render_slot(used, "The quick", tokenizer, prefill="It")
    assert place.suffix_text.endswith("<think>\n\n</think>\n\nIt")
    said = tokenizer.decode(Dialogue(used, tokenizer).first_turn("The quick"))
    assert said.endswith("<think>\n")


def test_reasoning_that_a_system_text_turns_on_is_closed_too() -> None:
    on = "{% if messages[0]['role'] == 'system' and 'thinking on' in messages[0]['content'] %}"
    tokenizer = tokenizer_of(chat(on + "<think>\n{% endif %}"))
    used = detect("tokenizer", tokenizer, {}, "x")
    assert "reasoning" not in used.rule
    prompt = render(used, PROBES["repeat"], tokenizer, "detailed thinking on")
    assert "<think>\n\n</think>\n\n Sure" in prompt.suffix_text
    assert "think>" not in render(used, PROBES["repeat"], tokenizer, "Be brief.").suffix_text


@pytest.mark.parametrize("opens", ["<|reflection|>", "<|channel|>analysis<|message|>"])
def test_reasoning_without_a_known_closing_is_reported(opens: str) -> None:
    tokenizer = tokenizer_of(chat(opens), ("<|reflection|>",))
    used = detect("tokenizer", tokenizer, {}, "x")
    assert "no text is known to close it" in used.rule
    assert opens in used.rule
    prompt = render(used, PROBES["repeat"], tokenizer)
    assert prompt.suffix_text.endswith(f"{opens}{PROBES['repeat'].prefill}")


@pytest.mark.parametrize(
    "template",
    [
        chat(""),
        chat("<think>\n\n</think>\n\n"),
        chat("<|START_RESPONSE|>"),
        chat("<answer>"),
        # The system's words mention the tag; a turn ends behind them.
        chat("", TURN + "<|im_start|>system\nThink inside <think> first.<|im_end|>\n"),
    ],
)
def test_templates_without_open_reasoning_are_unchanged(template: str) -> None:
    tokenizer = tokenizer_of(template, COHERE)
    used = detect("tokenizer", tokenizer, {}, "x")
    assert "reasoning" not in used.rule
    prompt = render(used, PROBES["repeat"], tokenizer)
    text, _ = render_text(used, "u", tokenizer)
    assert prompt.suffix_text.endswith(text[-9:] + PROBES["repeat"].prefill)
    assert prompt.suffix_text.count("</think>") == template.count("</think>")


def test_an_inline_format_is_unchanged_and_open_reasoning_reported() -> None:
    tokenizer = tokenizer_of("")
    used = detect(InlineTemplate(user="<u>{user}</u><think>\n"), tokenizer, {}, "x")
    assert "leaves reasoning open (<think>)" in used.rule
    prompt = render(used, PROBES["repeat"], tokenizer)
    assert prompt.suffix_text.endswith(f"<think>\n{PROBES['repeat'].prefill}")
    assert "reasoning" not in detect(InlineTemplate(user="<u>{user}</u>"), tokenizer, {}, "x").rule
