"""Tokens that a text names by id, `<#31415>`: they are put in by that id, whatever they read as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glitchrun.prompts.tokenizer import Tokenizer, encode_inside
from glitchrun.spec.token_ids import BY_ID

# Begins what stands for such a token while the text is put together: letters only, so that no
# template alters it.
_MARK = "Xglitchruntoken"


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with a mark in place of each token named by id."""

    text: str
    mark: str
    ids: tuple[int, ...]
    """The tokens named, in order."""


def marked(text: str) -> Marked:
    """The text with its tokens taken out."""
    mark = f"{_MARK}X"
    while mark in text:
        mark = f"{mark}X"
    return Marked(BY_ID.sub(mark, text), mark, tuple(map(int, BY_ID.findall(text))))


def joined(
    start: tuple[int, ...], ids: Sequence[int], texts: Sequence[str], tokenizer: Tokenizer
) -> tuple[int, ...]:
    """`start`, and each of the tokens with the text behind it."""
    for token_id, text in zip(ids, texts, strict=True):
        start = (*start, token_id, *encode_inside(tokenizer, text))
    return start
