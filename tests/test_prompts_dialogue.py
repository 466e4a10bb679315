"""Conversations of several turns: every turn extends the ids before it."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from glitchrun.errors import PreflightError
from glitchrun.prompts.detect import detect
from glitchrun.prompts.dialogue import Dialogue
from glitchrun.prompts.template import Conversation, write_family
from glitchrun.prompts.tokenizer import encode
from glitchrun.spec.probes import Exchange
from glitchrun.spec.templates import FAMILIES, RAW
from glitchrun.spec.types import InlineTemplate
from tests.support.tiny_models import CHATML, bpe_tokenizer, mistral_tokenizer

MOVES_SYSTEM = (  # as Mistral's later templates: the system text goes with the last user turn
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.s = m['content'] %}{% elif m['role'] == 'user' %}[INST]"
    "{% if loop.last %}{{ ns.s }} {% endif %}{{ m['content'] }}[/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
FORGETS = "{{ messages[-1]['content'] }}"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = bpe_tokenizer(tmp_path_factory.mktemp("bpe"), chat_template=CHATML)
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = mistral_tokenizer(tmp_path_factory.mktemp("mistral"))
    return transformers.LlamaTokenizer.from_pretrained(folder, local_files_only=True)


def dialogue(tokenizer: Any, setting: Any, system: str | None = None) -> Dialogue:
    return Dialogue(detect(setting, tokenizer, {}, "m"), tokenizer, system)


def whole(talk: Dialogue, answer: str) -> tuple[int, ...]:
    """Two turns one after another, as a chat appends them."""
    ids = talk.first_turn("one thing?")
    return ids + encode(talk.tokenizer, answer) + talk.next_turn("and another?")


@pytest.mark.parametrize("name", [*FAMILIES, "raw"])
def test_two_turns_are_the_ids_of_the_whole_conversation(bpe: Any, name: str) -> None:
    family = RAW if name == "raw" else FAMILIES[name]
    system = "Be brief." if family.carries_system else None
    said = Conversation("and another?", (Exchange("one thing?", "yes"),), system)
    text = write_family(family, said)
    bos = [0] if family.bos else []
    assert list(whole(dialogue(bpe, name, system), "yes")) == bos + list(encode(bpe, text))


def test_the_tokenizers_own_template_is_continued(bpe: Any) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one thing?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and another?"},
    ]
    text = bpe.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    talk = dialogue(bpe, "tokenizer", "Be brief.")
    assert whole(talk, "yes") == encode(bpe, text)
    assert not talk.rewrites_history


def test_an_inline_template_closes_answers_with_its_stop(bpe: Any) -> None:
    setting = InlineTemplate(user="<u>{user}</u>", system="<s>{system}</s>", stop="<end>")
    text = "<s>Hi</s><u>one thing?</u>yes<end><u>and another?</u>"
    assert list(whole(dialogue(bpe, setting, "Hi"), "yes")) == list(encode(bpe, text))


def test_sentencepiece_turns_have_one_bos_and_no_stray_space(mistral: Any) -> None:
    ids = whole(dialogue(mistral, "nowllm"), "yes")
    assert ids[0] == mistral.bos_token_id
    assert ids.count(mistral.bos_token_id) == 1
    shown = mistral.decode(ids, skip_special_tokens=False)
    # The space in front of "yes" is this test's own encoding of the answer.
    assert shown.replace(" ", "") == "<s>[INST]onething?[/INST]yes</s>[INST]andanother?[/INST]"
    assert "</s>[INST]and another?[/INST]" in shown.replace("</s> [", "</s>[")


def test_a_closing_text_of_the_model_is_not_repeated(bpe: Any) -> None:
    talk = dialogue(bpe, "plain")
    assert bpe.decode(talk.next_turn("more?")) == "\n\nmore?\n"
    assert bpe.decode(talk.next_turn("more?", closed=True)) == "more?\n"


@pytest.mark.parametrize("setting", ["chatml", "tokenizer", "raw"])
def test_a_token_is_named_by_its_id(bpe: Any, setting: str) -> None:
    talk = dialogue(bpe, setting)
    for ids in (talk.first_turn("say <#77><#300>!"), talk.next_turn("say <#77><#300>!")):
        at = ids.index(300)
        assert ids[at - 1] == 77
        before, after = bpe.decode(ids[: at - 1]), bpe.decode(ids[at + 1 :])
        assert before.endswith("say ")
        assert after.startswith("!")


def test_the_internal_mark_may_occur_in_the_text(bpe: Any) -> None:
    ids = dialogue(bpe, "raw").first_turn("XglitchruntokenX <#77> XglitchruntokenXX")
    assert bpe.decode(ids[: ids.index(77)]).endswith("XglitchruntokenX ")
    assert bpe.decode(ids[ids.index(77) + 1 :]) == " XglitchruntokenXX"


def test_a_template_that_moves_the_system_text_is_detected(bpe: Any) -> None:
    bpe.chat_template = MOVES_SYSTEM
    try:
        assert dialogue(bpe, "tokenizer", "Be brief.").rewrites_history
        assert not dialogue(bpe, "chatml", "Be brief.").rewrites_history
        ids = whole(dialogue(bpe, "tokenizer", "Be brief."), "yes")
        assert bpe.decode(ids).count("Be brief.") == 1
    finally:
        bpe.chat_template = CHATML


def test_a_template_that_drops_earlier_answers_is_refused(bpe: Any) -> None:
    bpe.chat_template = FORGETS
    try:
        with pytest.raises(PreflightError, match="leaves earlier answers out"):
            dialogue(bpe, "tokenizer").next_turn("more?")
    finally:
        bpe.chat_template = CHATML
