"""What belongs in front of a prompt, once, on tokenizers that put different things there."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from glitchrun.prompts.detect import detect
from glitchrun.prompts.dialogue import Dialogue
from glitchrun.prompts.render import intact, intact_sequences, render, render_slot, render_text
from glitchrun.prompts.tokenizer import encode_inside, leading_ids
from glitchrun.spec.probes import PROBES
from glitchrun.spec.types import InlineTemplate
from tests.support.tokenizer_kinds import byte_level, word_piece

GLM = ("[gMASK]", "<sop>", "<|user|>", "<|end|>")
TURNS = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
FRONTS = {
    "two": {"special": GLM, "front": "[gMASK] <sop>", "eos_token": "<|end|>"},
    "two, and an end": {"special": GLM, "front": "[gMASK] <sop>", "behind": "<|end|>"},
    "not the BOS": {"special": ("<s>", "</s>", "x"), "front": "</s>", "bos_token": "<s>"},
    "BOS": {"special": ("<s>", "</s>"), "front": "<s>", "behind": "</s>", "bos_token": "<s>"},
    "none": {"special": ("<s>", "</s>"), "behind": "</s>", "eos_token": "</s>"},
}


def front(name: str, chat: str | None = None) -> tuple[Any, tuple[int, ...]]:
    """A tokenizer and the ids that it puts in front, by its layout."""
    options: dict[str, Any] = dict(FRONTS[name])
    tokenizer = byte_level(options.pop("special"), chat=chat, **options)
    names = options.get("front", "").split()
    return tokenizer, tuple(tokenizer.convert_tokens_to_ids(names))


@pytest.mark.parametrize("name", FRONTS)
@pytest.mark.parametrize("setting", ["raw", "plain", "mistral", InlineTemplate(user="<u>{user}")])
def test_every_prompt_begins_with_the_opening_ids(name: str, setting: Any) -> None:
    tokenizer, ids = front(name)
    template = detect(setting, tokenizer, {}, "x")
    prompt = render(template, PROBES["repeat"], tokenizer)
    assert leading_ids(tokenizer) == ids
    assert prompt.prefix_ids[: len(ids)] == prompt.added_ids == ids
    assert prompt.prefix_ids[len(ids) :] == tuple(
        tokenizer.encode(prompt.prefix_text, add_special_tokens=False)
    )
    assert not {*tokenizer.all_special_ids, *ids}.intersection(prompt.prefix_ids[len(ids) :])
    word = tokenizer.convert_tokens_to_ids("token")
    assert intact(prompt, [word], tokenizer) == [True]

    text, said = render_text(template, "The quick", tokenizer)
    assert said == (*ids, *tokenizer.encode(text, add_special_tokens=False))
    assert Dialogue(template, tokenizer).first_turn("The quick") == said
    place = render_slot(template, "The quick", tokenizer)
    assert place.ids(()) == said
    assert intact_sequences(place, [()], tokenizer) == [True]


@pytest.mark.parametrize(
    "written", ["", "[gMASK]", "<sop>", "[gMASK]<sop>", "[gMASK]<sop>[gMASK]<sop>"]
)
@pytest.mark.parametrize("name", ["two", "two, and an end"])
def test_opening_ids_from_the_chat_template_are_not_repeated(name: str, written: str) -> None:
    tokenizer, ids = front(name, written + TURNS)
    template = detect("tokenizer", tokenizer, {}, "x")
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    _, said = render_text(template, "The quick", tokenizer)
    assert said[: len(ids) + 1] == (*ids, user)
    assert all(said.count(one) == 1 for one in ids)
    prompt = render(template, PROBES["repeat"], tokenizer)
    assert prompt.prefix_ids[: len(ids) + 1] == (*ids, user)
    word = tokenizer.convert_tokens_to_ids("token")
    assert intact(prompt, [word], tokenizer) == [True]


def test_the_rule_names_opening_ids_other_than_bos() -> None:
    tokenizer, _ = front("two")
    assert "begins with [gMASK] <sop>" in detect("raw", tokenizer, {}, "x").rule
    tokenizer, _ = front("not the BOS")
    assert "begins with </s>" in detect("raw", tokenizer, {}, "x").rule
    for name in ("BOS", "none"):
        tokenizer, _ = front(name)
        assert detect("raw", tokenizer, {}, "x").rule == "The spec names raw."


def test_ids_that_the_tokenizer_appends_are_left_out() -> None:
    tokenizer = word_piece(lowercase=True)
    template = detect("raw", tokenizer, {}, "x")
    _, said = render_text(template, "the quick", tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(said)) == ["[CLS]", "the", "quick"]


def test_a_family_with_bos_gets_it_if_the_tokenizer_adds_nothing() -> None:
    tokenizer = byte_level(bos_token="<s>")
    _, said = render_text(detect("mistral", tokenizer, {}, "x"), "The quick", tokenizer)
    assert said[0] == tokenizer.bos_token_id
    _, said = render_text(detect("raw", tokenizer, {}, "x"), "The quick", tokenizer)
    assert tokenizer.bos_token_id not in said


def test_a_separate_space_token_is_added_once() -> None:
    """SentencePiece's space in front of a text, where the vocabulary has no `▁a`."""
    pieces = [
        "<unk>",
        "▁",
        *'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ«»:.,?"\n',
        "word",
    ]
    backend = Tokenizer(models.Unigram([(piece, -2.0) for piece in pieces], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert encode_inside(tokenizer, "b.") == (pieces.index("b"), pieces.index("."))
    prompt = render(detect("plain", tokenizer, {}, "x"), PROBES["repeat"], tokenizer)
    assert intact(prompt, [pieces.index("word")], tokenizer) == [True]
