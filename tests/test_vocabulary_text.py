"""Visible token text, kinds of wrong answers, and character groups."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glitchrun.events import Token
from glitchrun.vocabulary.character_groups import GROUPS, group_of
from glitchrun.vocabulary.text import emitted_kind, visible, visible_token


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        (" the", "␣the"),
        ("\n\t\r", "␊␉␍"),
        ("\x7f\x85", "␡⟨U+0085⟩"),
        ("a\u202eb\u200d", "a⟨U+202E⟩b⟨U+200D⟩"),
        ("\xa0\u3000\u00ad", "⟨U+00A0⟩⟨U+3000⟩⟨U+00AD⟩"),
        ("e\u0301", "e\u0301"),
        ("\u0301e", "⟨U+0301⟩e"),
        ("\u0e01\u0e34", "\u0e01\u0e34"),
        ("\u2764\ufe0f", "\u2764⟨U+FE0F⟩"),
        ("\ud800\ue000", "⟨U+D800⟩⟨U+E000⟩"),
        ("\u115f\u2800", "⟨U+115F⟩⟨U+2800⟩"),
        ("␣␊⟨", "⟨U+2423⟩⟨U+240A⟩⟨U+27E8⟩"),
        ("<script>", "<script>"),
        ("東京", "東京"),
        ("", ""),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "piece", "category", "shown"),
    [
        (" the", "▁the", "normal", "␣the"),
        ("\ufffd", "<0xE6>", "byte", "⟨E6⟩"),
        ("\ufffd", "æĹ", "byte", "⟨E6 97⟩"),
        (" \ufffd", "Ġæ", "byte", "⟨20 E6⟩"),
        ("\n", "<0x0A>", "byte", "␊"),
        ("\ufffd", "\ufffd", "undecodable", "\ufffd"),
    ],
)
def test_parts_of_characters_are_shown_as_bytes(
    text: str, piece: str, category: str, shown: str
) -> None:
    assert visible_token(Token(1, text, piece, category, 1.0)) == shown


@given(st.text(alphabet=st.characters()), st.text(alphabet=st.characters()))
def test_different_texts_look_different(one: str, other: str) -> None:
    assert (visible(one) == visible(other)) == (one == other)


@given(st.text(alphabet=st.characters()))
def test_the_result_has_no_invisible_characters(text: str) -> None:
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}
    assert not hidden & {unicodedata.category(character) for character in visible(text)}


@pytest.mark.parametrize(
    ("expected", "emitted", "kind"),
    [
        ("swigfaiss", "sw", "prefix"),
        (" oprot", "opr", "prefix"),
        ("oprot", " opr", "prefix"),
        ("\n\n", "\n", "prefix"),
        ("the", "The", "case_space"),
        (" the", "the", "case_space"),
        ("the ", "the", "case_space"),
        ("Straße", "STRASSE", "case_space"),
        ("the", " ", "whitespace"),
        (" the", " ", "whitespace"),
        ("the", "\n\n", "whitespace"),
        ("  ", "\n", "whitespace"),
        ("the", "dog", "other"),
        ("the", "then", "other"),
        ("the", "TH", "prefix"),
        (" todd", "T", "prefix"),
        ("the", "he", "other"),
        ("the", "", "other"),
        ("", "the", "other"),
        ("", "", "other"),
        ("", " ", "whitespace"),
        # The same token text twice: a byte and a character, say.
        ("A", "A", "case_space"),
        ("\n", "\n", "case_space"),
        (" ", "\u3000", "whitespace"),
        # Two ways to write an accent are one text; a letter without it is another.
        ("caf\u00e9", "cafe\u0301", "case_space"),
        ("caf\u00e9s", "cafe\u0301", "prefix"),
        ("\u00e9", "e", "other"),
        ("ﬁn", "FI", "prefix"),
        # Parts of characters.
        ("ा", b"\xe0", "prefix"),
        (" Ś", b" \xc5", "prefix"),
        ("Ś", b" \xc5", "prefix"),
        ("ा", b"\xe1", "other"),
        ("x", b"\xe0", "other"),
        (b"\xe0\xa4", b"\xe0", "prefix"),
        (b"\xe0\xa4", b"\xe0\xa5", "other"),
        (b"\xe0\xa4", "ा", "other"),
        (b"\xe0", b" \xe0", "case_space"),
        ("\ufffd", b"\xe0", "other"),
    ],
)
def test_the_kind_of_a_wrong_answer(expected: str | bytes, emitted: str | bytes, kind: str) -> None:
    assert emitted_kind(expected, emitted) == kind


@pytest.mark.parametrize(
    ("expected", "emitted", "closing", "kind"),
    [
        ("a.", "a.'", "'", "prefix"),
        (" ", " »", '»"', "prefix"),
        ("the", "The»", '»"', "prefix"),
        ("the", 'the»"', '»"', "prefix"),
        ("the", "the»x", '»"', "other"),
        ("the", "»", '»"', "other"),
        ("the", "the", '»"', "case_space"),
        ("the", "th", '»"', "prefix"),
    ],
)
def test_the_right_text_continues_after_the_token(
    expected: str, emitted: str, closing: str, kind: str
) -> None:
    assert emitted_kind(expected, emitted, closing) == kind


@given(st.text(), st.text(), st.sampled_from(["", "'", '»"']))
def test_every_answer_has_a_kind_as_text_and_as_bytes(
    expected: str, emitted: str, closing: str
) -> None:
    kind = emitted_kind(expected, emitted, closing)
    assert kind in ("prefix", "case_space", "whitespace", "other")
    assert kind == emitted_kind(expected.encode(), emitted.encode(), closing)
    assert (kind == "other") >= (not emitted)


@given(st.text(min_size=1), st.integers(1, 5))
@example("\xa00", 1)
def test_a_beginning_is_a_prefix(text: str, size: int) -> None:
    raw = text.encode()
    piece = raw[:size]
    if piece != raw and piece.strip() and piece.decode("utf-8", "surrogateescape").strip():
        assert emitted_kind(raw, piece) in ("prefix", "case_space")


@pytest.mark.parametrize(
    ("text", "group"),
    [
        (" the", "latin"),
        ("Straße", "latin"),
        ("ﬁ", "latin"),
        ("Москва", "cyrillic"),
        ("λόγος", "greek"),
        ("سلام", "arabic"),
        ("שלום", "hebrew"),
        ("東京", "cjk"),
        ("かな", "kana"),
        ("ｶﾅ", "kana"),
        ("ー", "kana"),
        ("한국", "hangul"),
        ("नमस्ते", "indic"),
        ("தமிழ்", "indic"),
        ("ไทย", "thai"),
        ("ქართული", "other"),
        ("12,5", "digits"),
        ("٣", "digits"),
        ("½", "digits"),
        ("():", "punctuation"),
        (" +=", "symbols"),
        ("€", "symbols"),
        ("😂", "emoji"),
        (" \n", "whitespace"),
        ("\u3000", "whitespace"),
        ("\u200b", "control"),
        ("\x01", "control"),
        ("\ufffd", "control"),
        ("", "control"),
        ("the,", "latin"),
        ("Привет x", "cyrillic"),
    ],
)
def test_groups_by_code_point(text: str, group: str) -> None:
    assert group_of(text) == group


@given(st.text(alphabet=st.characters()))
def test_every_text_has_a_group(text: str) -> None:
    assert group_of(text) in GROUPS
