"""Whether a tokenizer ever writes a token, and where it does.

What stands in front of a text decides how it is split. Llama 3's tokenizer writes `.get` as one
token alone and behind a letter, and as two behind a quote; `'s` is one token alone, and two behind
«. One context proves that a token can be written, but no single one proves that it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glitchrun.prompts.tokenizer import ANCHOR, Tokenizer, decode_inside, encode, encode_all


@dataclass(frozen=True, slots=True)
class EncodingContext:
    """The text before and after a token's text while it is encoded."""

    before: str
    after: str = ""

    def __str__(self) -> str:
        if self.after:
            return f"before {self.after!r}"
        return f"behind {self.before!r}" if self.before else "alone"


FIRST = EncodingContext(ANCHOR)
"""Tried before all others: next to no vocabulary merges it with anything."""
ALONE = EncodingContext("")
CONTEXTS = (
    FIRST,
    ALONE,
    # A letter, a line break, a space, a digit, quotes and brackets end one piece of a text and
    # begin another in most tokenizers. Several letters: WordPiece takes the longest entry that
    # fits from the left, so that `a` may take letters of the text with it.
    *map(
        EncodingContext, ("a", "\n", " ", "1", '"', "'", "(", ".", "Z", "q", "x", "é", "的", "\t")
    ),
    # BPE with an end-of-word mark writes the inner pieces of a word before other letters only.
    *(EncodingContext("", after) for after in ("q", "x", "z", "1", "-", "a")),
)
"""In the order in which they are tried; each for the tokens that none before it has shown."""
_MANY = 10_000
_SAMPLE = 1_000
"""Where more than `_MANY` tokens are left (every capital of a tokenizer that writes lower case), a
third and later surroundings is tried on `_SAMPLE` of them, and on all where that shows one: whole
vocabularies are categorized in the time of two encodings, not of twenty."""


def reached(
    tokenizer: Tokenizer, rows: Sequence[int], texts: Sequence[str]
) -> dict[int, EncodingContext]:
    """The first surroundings in which each token's text is written with just that token.

    Tokens that none of them shows are not in it.

    Args:
        tokenizer: The tokenizer.
        rows: The tokens' ids.
        texts: The text of each as it reads inside a text.
    """
    found: dict[int, EncodingContext] = {}
    left = dict(zip(rows, texts, strict=True))
    for one in CONTEXTS:
        if one not in (FIRST, ALONE) and not _shows_any(tokenizer, left, one):
            continue
        found |= dict.fromkeys(_written(tokenizer, left, one), one)
        left = {row: text for row, text in left.items() if row not in found}
        if one is ALONE:  # a first piece may lose its space when it is decoded alone
            again = {row: text for row, text in _decoded(tokenizer, left) if text != left[row]}
            found |= dict.fromkeys(_written(tokenizer, again, one), one)
            left = {row: text for row, text in left.items() if row not in found}
    return found


def _shows_any(tokenizer: Tokenizer, texts: dict[int, str], around: EncodingContext) -> bool:
    """Whether a look at all of the texts is worth its time."""
    if len(texts) <= _MANY:
        return bool(texts)
    some = dict(list(texts.items())[:: len(texts) // _SAMPLE])
    return any(True for _ in _written(tokenizer, some, around))


def _written(tokenizer: Tokenizer, texts: dict[int, str], around: EncodingContext) -> Iterator[int]:
    """The rows whose texts are written with just that row in these surroundings."""
    before = list(encode(tokenizer, around.before))
    whole = [f"{around.before}{text}{around.after}" for text in texts.values()]
    for row, ids in zip(texts, encode_all(tokenizer, whole), strict=True):
        if _place_of_one(ids, before, around) == row:
            yield row


def _decoded(tokenizer: Tokenizer, rows: dict[int, str]) -> Iterator[tuple[int, str]]:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    texts = tokenizer.batch_decode([[row] for row in rows], **options) if rows else []
    return zip(rows, texts, strict=True)


def _place_of_one(ids: Sequence[int], before: Sequence[int], around: EncodingContext) -> int | None:
    """The one id that stands for the text; None where it is not one."""
    start = len(before)
    if list(ids[:start]) != list(before) or len(ids) <= start:
        return None
    # What follows the text has ids of its own.
    alone = len(ids) > start + 1 if around.after else len(ids) == start + 1
    return ids[start] if alone else None


def written_as_one(tokenizer: Tokenizer, text: str) -> int | None:
    """The token that a text is written with in some surroundings; None where there is none.

    Behind «, whatever the tokenizer makes of the text counts (some write `The` as `the`);
    elsewhere the token must read just as the text does.
    """
    for around in CONTEXTS:
        before = encode(tokenizer, around.before)
        ids = encode(tokenizer, f"{around.before}{text}{around.after}")
        one = _place_of_one(ids, before, around)
        if one is not None and (around is FIRST or decode_inside(tokenizer, [one]) == [text]):
            return one
    return None
