"""Prompts as ids, on the real tokenizers of SmolLM2 and Mistral."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch

from glitchrun.behaviour.catalogue import QUESTIONS
from glitchrun.errors import PreflightError
from glitchrun.prompts import render as module
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Prompt, intact, render
from glitchrun.prompts.tokenizer import decode_inside
from glitchrun.spec.probes import PROBES, Probe
from glitchrun.spec.templates import FAMILIES
from glitchrun.spec.types import InlineTemplate
from glitchrun.vocabulary import Vocabulary
from tests.support.real_tokenizers import mistral, mistral_spaced, smollm2, with_chat_template

# The ids of GlitchMiner's repeat prompt on SmolLM2 (github wooozihui/GlitchMiner, commit 77cf15b).
PREFIX = (1, 9690, 198, 2, 198, 1, 4093, 198, 10180, 9960, 260, 4928, 42, 476, 39969)
SUFFIX = (20306, 18, 2, 198, 1, 520, 9531, 198, 16096, 28, 260, 4928, 314, 42, 476, 39969)
EMPTY_SYSTEM = InlineTemplate(
    user="<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
REPEAT = PROBES["repeat"]


def prompt_of(
    setting: str | InlineTemplate,
    tokenizer: Any,
    probe: Probe = REPEAT,
    system: str | None = None,
    source: str = "x",
) -> Prompt:
    template = detect(setting, tokenizer, {"model_type": "mixtral"}, source)
    return render(template, probe, tokenizer, system)


@pytest.mark.parametrize(
    ("setting", "system"), [(EMPTY_SYSTEM, None), ("chatml", ""), ("tokenizer", "")]
)
def test_the_ids_are_glitchminers(setting: str | InlineTemplate, system: str | None) -> None:
    prompt = prompt_of(setting, smollm2(), system=system)
    assert prompt.prefix_ids == PREFIX
    assert prompt.suffix_ids == SUFFIX
    assert prompt.ids(7) == (*PREFIX, 7, *SUFFIX)
    assert prompt.ids(7)[prompt.position] == 7


@cache
def normal_ids() -> list[int]:
    tokenizer = smollm2()
    return Vocabulary(tokenizer, torch.zeros(len(tokenizer))).ids(["normal"])


@pytest.mark.parametrize(("probe", "merged"), [("repeat", 164), ("question", 612)])
def test_number_of_normal_tokens_not_presented_intact(probe: str, merged: int) -> None:
    """The counts over all 48,821 normal tokens of SmolLM2: 157 and 605 as measured independently,
    and the 7 that the tokenizer writes as one token alone, but not behind a quote."""
    prompt = prompt_of("chatml", smollm2(), PROBES[probe], "")
    assert intact(prompt, normal_ids(), smollm2()).count(False) == merged


def test_tokens_presented_intact() -> None:
    tokenizer = smollm2()
    prompt = prompt_of("chatml", tokenizer, PROBES["question"], "")
    ids = tokenizer.convert_tokens_to_ids(["Ġword", "Ġ'", "Ċ"])
    whole = [prompt.prefix_text + text + prompt.suffix_text for text in (" word", " '", "\n")]
    encoded = [tokenizer.encode(text) for text in whole]
    expected = [ours == list(prompt.ids(i)) for ours, i in zip(encoded, ids, strict=True)]
    assert expected == [True, False, True]
    assert intact(prompt, ids, tokenizer) == expected
    assert intact(prompt, [], tokenizer) == []


class TestBos:
    def test_one_where_the_tokenizer_adds_it(self) -> None:
        prompt = prompt_of("nowllm", mistral())
        assert (prompt.prefix_ids[0], prompt.prefix_ids.count(1), prompt.added_ids) == (1, 1, (1,))
        assert prompt_of("raw", mistral()).prefix_ids.count(1) == 1

    @pytest.mark.parametrize("written", ["{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
    def test_one_where_the_chat_template_writes_it(self, written: str) -> None:
        tokenizer = with_chat_template(
            mistral(), written + "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        )
        prompt = prompt_of("tokenizer", tokenizer)
        assert (prompt.prefix_ids[0], prompt.prefix_ids.count(1), prompt.added_ids) == (1, 1, ())

    def test_one_where_the_chat_template_does_not(self) -> None:
        tokenizer = with_chat_template(
            mistral(), "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        )
        assert prompt_of("tokenizer", tokenizer).prefix_ids.count(1) == 1

    def test_an_inline_format_gets_it_where_its_text_lacks_it(self) -> None:
        inline = InlineTemplate(user="<u>{user}</u>")
        assert prompt_of(inline, smollm2()).added_ids == (smollm2().bos_token_id,)
        assert prompt_of(EMPTY_SYSTEM, smollm2()).added_ids == ()
        assert prompt_of(inline, mistral()).prefix_ids.count(1) == 1

    def test_none_where_neither_family_nor_tokenizer_wants_it(self) -> None:
        assert prompt_of("raw", smollm2()).added_ids == ()
        assert prompt_of("plain", smollm2()).prefix_ids[0] != smollm2().bos_token_id


class TestSentencePiece:
    def test_the_suffix_gets_no_space_in_front(self) -> None:
        tokenizer = mistral()
        prompt = prompt_of("nowllm", tokenizer)
        pieces = tokenizer.convert_ids_to_tokens(list(prompt.suffix_ids))
        assert pieces[:3] == ["»", '"', "["]
        assert pieces[-2:] == ['▁"', "«"]

    def test_ids_are_those_of_the_whole_text(self) -> None:
        """With an ordinary word in place, ids and text are two ways to the same prompt."""
        tokenizer = mistral()
        prompt = prompt_of("nowllm", tokenizer)
        text = '[INST]Please repeat the string: "« house»"[/INST] Sure, the string is: "«'
        house = tokenizer.convert_tokens_to_ids("▁house")
        assert tokenizer.encode(text) == list(prompt.ids(house))
        assert intact(prompt, [house], tokenizer) == [True]

    @pytest.mark.parametrize("how", ["legacy", "none"])
    def test_the_same_prompt_however_spaces_are_treated(self, how: str) -> None:
        tokenizer = mistral_spaced(how)
        ours, usual = prompt_of("nowllm", tokenizer), prompt_of("nowllm", mistral())
        assert ours.suffix_ids == usual.suffix_ids
        assert ours.prefix_ids[0] == tokenizer.bos_token_id
        first = "▁[" if how == "legacy" else "["
        assert tokenizer.convert_ids_to_tokens(ours.prefix_ids[1]) == first
        assert ours.prefix_ids[2:] == usual.prefix_ids[2:]
        house, spaces = tokenizer.convert_tokens_to_ids(["▁house", "▁▁▁▁▁▁▁"])
        assert decode_inside(tokenizer, [house, spaces]) == [" house", " " * 7]
        assert intact(ours, [house, spaces], tokenizer) == [True, False]

    def test_a_piece_keeps_its_space(self) -> None:
        ids = mistral().convert_tokens_to_ids(["▁house", "house", "▁▁", "<0x41>"])
        assert decode_inside(mistral(), ids) == [" house", "house", "  ", "A"]

    def test_a_byte_that_has_a_letter_of_its_own_is_not_intact(self) -> None:
        prompt = prompt_of("nowllm", mistral())
        assert intact(prompt, [mistral().convert_tokens_to_ids("<0x41>")], mistral()) == [False]


class TestSystem:
    def test_a_specs_text_that_cannot_be_carried_is_refused(self) -> None:
        with pytest.raises(PreflightError, match="nowllm cannot carry a system text"):
            prompt_of("nowllm", mistral(), system="Be brief.")

    def test_an_empty_text_needs_no_carrying(self) -> None:
        assert prompt_of("nowllm", mistral(), system="") == prompt_of("nowllm", mistral())

    def test_a_probes_text_that_cannot_be_carried_is_declared(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        explain = PROBES["explain"]
        module._warn_dropped.cache_clear()
        with caplog.at_level(logging.WARNING, logger="glitchrun.prompts"):
            prompts = [prompt_of("nowllm", mistral(), explain) for _ in range(2)]
        prompt = prompts[1]
        assert prompt.dropped_system == explain.system
        assert "This helpful assistant" not in prompt.prefix_text
        assert caplog.text.count("explain is presented without its own") == 1

    def test_a_chat_template_that_drops_the_text_counts_as_one_that_cannot(self) -> None:
        template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
        tokenizer = with_chat_template(smollm2(), template)
        with pytest.raises(PreflightError, match="cannot carry"):
            prompt_of("tokenizer", tokenizer, system="Be brief.")
        assert prompt_of("tokenizer", tokenizer, PROBES["explain"]).dropped_system

    def test_the_probes_text_follows_the_specs(self) -> None:
        explain = PROBES["explain"]
        prompt = prompt_of("chatml", smollm2(), explain, "Be brief.")
        assert f"system\nBe brief.\n\n{explain.system}<|im_end|>" in prompt.prefix_text
        assert prompt.dropped_system is None
        assert (
            f"system\n{explain.system}<|im_end|>"
            in prompt_of("chatml", smollm2(), explain, "").prefix_text
        )


def test_the_few_shot_probe_shows_its_example_first() -> None:
    prompt = prompt_of("nowllm", mistral(), PROBES["explain"])
    assert prompt.prefix_text == (
        "[INST]What does 'edslfkj' mean?[/INST]'edslfkj' has no specific meaning I am aware of."
        "</s>[INST]What does '"
    )
    assert prompt.suffix_text == "' mean?[/INST]'"


def test_a_chat_template_that_repeats_the_text_is_refused() -> None:
    tokenizer = with_chat_template(
        smollm2(), "{{ messages[-1].content }}{{ messages[-1].content }}"
    )
    template = detect("auto", tokenizer, {}, "x")
    assert template.name == "chatml"
    assert "does not keep" in template.rule


def test_an_inline_system_format() -> None:
    inline = InlineTemplate(user="<u>{user}</u>", system="<s1>{system}</s1>", stop="</a>")
    prompt = prompt_of(inline, smollm2(), PROBES["question"], "S{user}")
    assert prompt.prefix_text.startswith("<s1>S{user}</s1><u>Question:")
    assert prompt.suffix_text == "'?</u> Of course! Here is the repeated string:'"


def test_prompts_do_not_depend_on_the_date() -> None:
    """Llama's templates write the date of the day into every prompt."""
    template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }} {{ strftime_now('%Y-%m-%d') }} {{ messages[-1].content }}"
    )
    prompt = prompt_of("tokenizer", with_chat_template(smollm2(), template))
    assert prompt.prefix_text.startswith("26 Jul 2024 2024-07-26 Please repeat")


@pytest.mark.parametrize("setting", [*FAMILIES, "raw"])
@pytest.mark.parametrize("tokenizer", [mistral, smollm2], ids=["mistral", "smollm2"])
def test_every_template_carries_every_question(setting: str, tokenizer: Any) -> None:
    """None ends in a lone space, behind which a model that writes " word" as one token is lost."""
    asked = [Probe(name, question.user, prefill="") for name, question in QUESTIONS.items()]
    for probe in (*PROBES.values(), *asked):
        prompt = prompt_of(setting, tokenizer(), probe)
        token_id = tokenizer().convert_tokens_to_ids("house")
        decoded = tokenizer().decode(prompt.ids(token_id), skip_special_tokens=False)
        assert decoded.count("house") == probe.slots
        assert probe.user.partition("{token}")[0] in decoded
        last = decode_inside(tokenizer(), prompt.tail(token_id)[-1:])[0]
        assert last.strip(" ")


@pytest.mark.parametrize("setting", [*FAMILIES, "raw"])
def test_every_template_gives_exactly_one_bos(setting: str) -> None:
    prompt = prompt_of(setting, mistral())
    assert prompt.prefix_ids.count(1) == 1
    assert prompt.prefix_ids[0] == 1
