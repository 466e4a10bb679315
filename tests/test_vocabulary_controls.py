"""Matched controls, character groups and frequency ranks of two real vocabularies."""

from __future__ import annotations

from collections import Counter
from functools import cache
from statistics import median

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.character_groups import (
    KINDS,
    doubtful_groups,
    group_of,
    kind_of,
    script_name,
)
from glitchrun.vocabulary.controls import matched_controls
from glitchrun.vocabulary.tokenizer_analysis import frequency_ranks
from tests.support.real_tokenizers import mistral, smollm2


@cache
def smollm2_vocabulary() -> Vocabulary:
    return Vocabulary(smollm2(), torch.zeros(49_152))


@cache
def mistral_vocabulary() -> Vocabulary:
    return Vocabulary(mistral(), torch.zeros(32_000))


def found(vocabulary: Vocabulary, *texts: str) -> list[int]:
    ids = [vocabulary.find(text) for text in texts]
    return [token_id for token_id in ids if token_id is not None]


def test_controls_are_distinct_ordinary_tokens() -> None:
    vocabulary = smollm2_vocabulary()
    tokens, exclude = vocabulary.ids(("normal",))[::100], range(1000, 2000)
    matches = matched_controls(vocabulary, tokens, 600, seed=1, exclude=exclude)
    controls = [match.token_id for match in matches]
    assert len(controls) == len(set(controls)) == 600
    assert not {*controls} & {*tokens, *exclude}
    assert {vocabulary.categories[one] for one in controls} == {"normal"}
    # 489 tokens: every one has a control, and none has three before another has two.
    assert {match.of for match in matches} == {*tokens}
    assert max(Counter(match.of for match in matches).values()) == 2


def test_scripts_can_be_excluded_from_controls() -> None:
    vocabulary = smollm2_vocabulary()
    tokens = [i for i in vocabulary.ids(("normal",)) if group_of(vocabulary.texts[i]) == "cyrillic"]
    inside = matched_controls(vocabulary, tokens[:20], 20, seed=1)
    outside = matched_controls(
        vocabulary, tokens[:20], 20, seed=1, outside={"cyrillic", "punctuation"}
    )
    assert {group_of(vocabulary.texts[one.token_id]) for one in inside} == {"cyrillic"}
    assert len(outside) == 20
    groups = {group_of(vocabulary.texts[one.token_id]) for one in outside}
    assert not groups & {"cyrillic", "punctuation"}
    assert matched_controls(vocabulary, tokens[:20], 20, seed=1, outside=()) == inside


def test_groups_are_doubtful_where_most_of_several_controls_fail() -> None:
    wedge, word, mark = "\U00012000", "word", "!!"
    made = [(wedge, True)] * 2 + [(wedge, False)] * 2 + [(word, True)] + [(word, False)] * 2
    assert doubtful_groups(made) == {"other"}
    assert doubtful_groups([*made, (mark, True), (mark, True)]) == {"other"}  # two say nothing
    assert doubtful_groups([]) == frozenset()
    assert [script_name(text) for text in (wedge, word, mark, "日")] == [
        *("cuneiform", "latin", "punctuation", "cjk"),
    ]


def test_kinds_of_tokens() -> None:
    texts = (" the", "жж", "12", "...", "+=", "😀", "\n\n", "\x00", "\ufffd", wedge := "\U00012000")
    assert [kind_of(text) for text in texts] == [
        *("words", "other scripts", "digits", "punctuation", "punctuation", "emoji"),
        *("white space", "control characters", "bytes", "other scripts"),
    ]
    assert kind_of("A", "byte") == "bytes"
    assert {kind_of(text) for text in (*texts, wedge)} <= set(KINDS)


def test_controls_are_similar_to_their_tokens() -> None:
    vocabulary = smollm2_vocabulary()
    tokens = vocabulary.ids(("normal",))[5::211]
    matches = matched_controls(vocabulary, tokens, len(tokens), seed=3)
    assert all(match.alike for match in matches)
    lengths, ranks = [], []
    for match in matches:
        one, other = vocabulary.texts[match.of], vocabulary.texts[match.token_id]
        assert group_of(one) == group_of(other)
        assert one[:1].isspace() == other[:1].isspace()
        lengths.append(abs(len(one) - len(other)))
        pair = [1 + vocabulary.frequency_ranks[row] for row in (match.of, match.token_id)]
        ranks.append(max(pair) / min(pair))
    assert (median(lengths), max(lengths) <= 8) == (0, True)
    assert median(ranks) < 1.02


def test_fewer_controls_than_tokens_are_spread_over_them() -> None:
    vocabulary = smollm2_vocabulary()
    tokens = vocabulary.ids(("normal",))[::10]
    matches = matched_controls(vocabulary, tokens, 50, seed=1)
    targets = [match.of for match in matches]
    assert len(set(targets)) == 50
    assert 15_000 < median(targets) < 35_000


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    vocabulary = mistral_vocabulary()
    tokens = list(range(1000, 1040))
    first = matched_controls(vocabulary, tokens, 30, seed=1)
    assert matched_controls(vocabulary, [*reversed(tokens), 1000], 30, seed=1) == first
    assert matched_controls(vocabulary, tokens, 30, seed=2) != first


def test_controls_of_a_rare_script_are_marked_as_unlike() -> None:
    vocabulary = mistral_vocabulary()
    thai = [row for row in vocabulary.ids(("normal",)) if group_of(vocabulary.texts[row]) == "thai"]
    matches = matched_controls(vocabulary, thai[:1], len(thai) + 5, seed=1)
    alike = [match for match in matches if match.alike]
    assert 0 < len(alike) < len(thai)
    assert all(group_of(vocabulary.texts[match.token_id]) == "thai" for match in alike)
    assert [match.alike for match in matches] == [True] * len(alike) + [False] * (
        len(matches) - len(alike)
    )


def test_avoided_tokens_are_drawn_before_those_of_another_script() -> None:
    vocabulary = mistral_vocabulary()
    thai = [row for row in vocabulary.ids(("normal",)) if group_of(vocabulary.texts[row]) == "thai"]
    (match,) = matched_controls(vocabulary, thai[:1], 1, seed=1, avoid=thai)
    assert match.token_id in thai
    (match,) = matched_controls(vocabulary, thai[:1], 1, seed=1, avoid=thai[1:-1])
    assert match.token_id == thai[-1]
    (match,) = matched_controls(vocabulary, thai[:1], 1, seed=1, exclude=thai)
    assert not match.alike


@pytest.mark.parametrize(("tokens", "count"), [((), 5), ((1000,), 0)])
def test_no_tokens_or_no_count_gives_no_controls(tokens: tuple[int, ...], count: int) -> None:
    assert matched_controls(smollm2_vocabulary(), tokens, count, seed=1) == []


def test_a_small_vocabulary_gives_fewer_controls() -> None:
    vocabulary = smollm2_vocabulary()
    normal = vocabulary.ids(("normal",))
    assert len(matched_controls(vocabulary, normal[:9], 100, seed=1, exclude=normal[20:])) == 11
    assert matched_controls(vocabulary, normal, 100, seed=1) == []


def test_tokens_may_be_controls_of_one_another_but_not_of_themselves() -> None:
    vocabulary = mistral_vocabulary()
    normal = vocabulary.ids(("normal",))
    few = normal[500:530]
    matches = matched_controls(
        vocabulary, few, 100, seed=1, exclude={*normal} - {*few}, mutual=True
    )
    assert {match.token_id for match in matches} <= {*few}
    assert all(match.token_id != match.of for match in matches)
    assert len(matches) >= 29
    alone = matched_controls(
        vocabulary, few[:1], 1, seed=1, exclude={*normal} - {few[0]}, mutual=True
    )
    assert alone == []


def test_ranks_are_indices_of_merges() -> None:
    vocabulary = smollm2_vocabulary()
    ranks = vocabulary.frequency_ranks
    # Its 252 single letters and added tokens come before the first merge, which made id 252.
    assert (vocabulary.pieces[252], ranks[252], ranks[49_151]) == ("Ġt", 0, 48_899)
    assert ranks[:252] == tuple(range(252))


def test_single_characters_of_sentencepiece_are_not_rare() -> None:
    vocabulary = mistral_vocabulary()
    common, rare = found(vocabulary, "e", " Please")
    assert common > rare
    assert vocabulary.frequency_ranks[common] < 300 < vocabulary.frequency_ranks[rare]


def test_unigram_ranks_by_score_and_others_by_id() -> None:
    scores = [("<unk>", 0.0), ("rare", -9.0), ("the", -2.0)]
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(Unigram(scores, 0)))
    assert frequency_ranks(unigram, ["<unk>", "rare", "the", None]) == (0, 2, 1, 3)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, "a"))
    assert frequency_ranks(PreTrainedTokenizerFast(tokenizer_object=words), ["a", "b"]) == (0, 1)


class Slow:
    """A tokenizer that does not expose its model."""


def test_a_tokenizer_of_another_library_ranks_by_id() -> None:
    assert frequency_ranks(Slow(), ["a", "b"]) == (0, 1)  # type: ignore[arg-type]


def test_bytes_of_rows() -> None:
    vocabulary = smollm2_vocabulary()
    assert vocabulary.raw(48_333) == b"\x20\xe0\xa8"
    assert vocabulary.raw(24_211) == "\ufffd".encode()
    assert vocabulary.raw(49_150) == b" Mama"
    assert mistral_vocabulary().raw(3) == b"\x00"
