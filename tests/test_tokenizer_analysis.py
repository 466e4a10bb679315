"""Which tokens a tokenizer can produce, for tokenizers of every kind and real vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers

from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary import tokenizer_analysis as module
from glitchrun.vocabulary.vocabulary import scope_change
from tests.support.real_tokenizers import smollm2
from tests.support.tokenizer_kinds import byte_level, end_of_word, unigram, word_piece
from tools import vocabularies

KINDS = {
    "byte-level": byte_level,
    "WordPiece": partial(word_piece, lowercase=False),
    "WordPiece, lower case": partial(word_piece, lowercase=True),
    "Unigram": unigram,
    "Unigram, lower case": partial(unigram, normalizers.Strip(), normalizers.Lowercase()),
    "end of word": end_of_word,
}


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, [0.0] * len(tokenizer))


@cache
def real(name: str) -> Vocabulary:
    """One of the vocabularies of the table."""
    if name == "SmolLM2":
        return vocabulary_of(smollm2())
    if name in vocabularies.TEKKEN:
        return vocabulary_of(vocabularies.tekken(vocabularies.TEKKEN[name]))
    return vocabulary_of(vocabularies.sentencepiece(vocabularies.SENTENCEPIECE[name]))


def left_out(vocabulary: Vocabulary) -> Iterator[int]:
    """Rows outside the scope whose text, by plain calls of transformers, encodes to just them;
    without those that were added to the tokenizer for their own sake."""
    tokenizer: Any = vocabulary._tokenizer
    decoder = dict(tokenizer.added_tokens_decoder)  # made anew at each look
    for row, category in enumerate(vocabulary.categories):
        added = row in decoder and category in ("special", "unused")
        if category == "normal" or added or not vocabulary.texts[row]:
            continue
        texts = {vocabulary.texts[row], tokenizer.decode([row])}
        for before in ("", "a", " ", "\n"):
            front = tokenizer.encode(before, add_special_tokens=False)
            ways = [tokenizer.encode(before + one, add_special_tokens=False) for one in texts]
            if [*front, row] in ways:
                yield row


@pytest.mark.parametrize("kind", KINDS)
def test_the_scope_includes_every_token_that_encodes_to_itself(kind: str) -> None:
    vocabulary = vocabulary_of(KINDS[kind]())
    assert not [vocabulary.pieces[row] for row in left_out(vocabulary)]
    assert vocabulary.categories.count("normal") > len(vocabulary) // 3


@pytest.mark.parametrize("name", ["SmolLM2", "Mistral v3", "Tekken 240718"])
def test_the_scope_of_a_real_vocabulary_is_complete(name: str) -> None:
    """Except for the entries of U+FFFD, to which any bytes decode."""
    vocabulary = real(name)
    assert {vocabulary.texts[row].strip("\ufffd") for row in left_out(vocabulary)} <= {""}
    assert "unreachable" not in vocabulary.categories
    page = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
    assert vocabularies.row(name, vocabulary) in page


def test_tokens_that_begin_with_punctuation_are_in_scope() -> None:
    """A real vocabulary of 131,072 with Llama 3's kind of split; after « alone 7,809 are lost."""
    vocabulary = real("Tekken 240718")
    before = [vocabulary._category_before(row) for row in range(len(vocabulary))]
    assert (before.count("unreachable"), before.count("normal")) == (7_809, 120_826)
    for text in (",", ".", "E", "S", "\n\n", "’s", ".get", "'t"):
        found = vocabulary.find(text)
        assert found is not None
        assert (vocabulary.texts[found], vocabulary.categories[found]) == (text, "normal")


@pytest.mark.parametrize(
    ("kind", "piece", "where"),
    [
        ("byte-level", ".get", "alone"),
        ("byte-level", "(self", "alone"),
        ("byte-level", "$PostalCodes", "alone"),
        ("byte-level", "_name", "alone"),
        ("WordPiece", "##ing", "after 'a'"),
        ("end of word", "th", "before 'q'"),
    ],
)
def test_the_reason_names_the_context(kind: str, piece: str, where: str) -> None:
    tokenizer = KINDS[kind]()
    row = tokenizer.convert_tokens_to_ids(piece)
    assert vocabulary_of(tokenizer).reason(row) == f"its text encodes to just this token {where}"


def test_an_entry_that_the_normalizer_changes_is_unreachable() -> None:
    """An entry in capitals of a tokenizer that lower-cases every text."""
    tokenizer = word_piece(lowercase=True)
    layout = tokenizer.backend_tokenizer
    cased = layout.from_str(layout.to_str().replace('"the":', '"THE":'))
    tokenizer._tokenizer = cased
    vocabulary = vocabulary_of(tokenizer)
    row = cased.token_to_id("THE")
    assert vocabulary.categories[row] == "unreachable"
    assert "is encoded as" in vocabulary.reason(row)


def test_added_text_is_text_and_added_tags_are_special() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("\n\n\n", normalized=False), AddedToken("<table>")])
    tokenizer.add_tokens([AddedToken("<unused7>"), AddedToken("endoftext", special=True)])
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.categories[-4:] == ("normal", "special", "unused", "special")


def test_a_context_is_first_tried_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_piece(lowercase=False)
    everything = vocabulary_of(tokenizer).categories
    monkeypatch.setattr(module, "_MANY", 10)
    monkeypatch.setattr(module, "_SAMPLE", 10)
    asked: list[int] = []
    encode_all = module.encode_all
    monkeypatch.setattr(
        module,
        "encode_all",
        lambda one, texts: asked.append(len(texts)) or encode_all(one, texts),
    )
    assert vocabulary_of(tokenizer).categories == everything
    assert asked.count(max(asked)) <= 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("byte-level", "’s"),
        ("byte-level", "\n\n"),
        ("byte-level", "\tIdentifier"),
        ("WordPiece", "token"),
    ],
)
def test_a_text_is_found_by_its_context(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    vocabulary = vocabulary_of(tokenizer)
    found = vocabulary.find(text)
    assert found is not None
    assert vocabulary.categories[found] == "normal"
    assert vocabulary.texts[found].strip(" ") == text.strip(" ")


def test_the_message_for_a_text_of_several_tokens_names_pieces_and_spellings() -> None:
    vocabulary = real("SmolLM2")
    there = vocabulary.find(" Mississippi")
    assert there is not None
    assert vocabulary.find("Mississippi") is None
    told = vocabulary.not_one_token("Mississippi")
    ids = smollm2().encode("Mississippi", add_special_tokens=False)
    assert f"but {len(ids)}: " in told
    assert all(f"({one})" in told for one in ids)
    assert f"one token here: ' Mississippi' ({there})" in told


def test_a_first_piece_is_not_the_word_without_its_space() -> None:
    """SentencePiece encodes "house" at the start of a text as `▁house`, which is " house"."""
    vocabulary = real("Mistral v3")
    spaced = vocabulary.find(" Washington")
    assert spaced is not None
    assert vocabulary.find("Washington") is None
    assert f"' Washington' ({spaced})" in vocabulary.not_one_token("Washington")


def test_a_token_beyond_the_rows_is_not_found() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<added>"])
    short = Vocabulary(tokenizer, [0.0] * (len(tokenizer) - 1))
    assert short.find("<added>") is None
    assert f"is token {len(tokenizer) - 1}, and" in short.not_one_token("<added>")


def test_a_scope_changed_by_the_rule_has_a_digest() -> None:
    few, more = byte_level(size=260), byte_level(size=480)
    assert scope_change(few, len(few)) is None
    assert scope_change(unigram(), 60) is None
    changed = scope_change(more, len(more))
    assert changed is not None
    assert changed == scope_change(more, len(more) + 8)
    assert scope_change(more, len(more), ("special",)) is None
    vocabulary = vocabulary_of(more)
    added = [vocabulary._category_before(row) for row in vocabulary.ids(("normal",))]
    assert set(added) == {"normal", "unreachable"}
