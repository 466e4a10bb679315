"""Tokens that are related by their text: longer ones that contain a token, and the tokens to which
the text of an unreachable token is encoded instead."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from glitchrun.events import SEVERE, Verified
from glitchrun.vocabulary.vocabulary import Vocabulary

MOST_LONGER = 8
"""Longer tokens kept for a token."""
_MOST_SEVERE = 1000
_MOST_UNREACHABLE = 300
_MOST_SCANNED = 2000
"""Largest number of occurrences that are examined: a letter is part of most entries."""
_END = "\0"


@dataclass(frozen=True, slots=True)
class Longer:
    """The tokens whose entries contain that of one token."""

    count: int
    """How many there are; a lower bound from `_MOST_SCANNED` on."""
    ids: tuple[int, ...]
    """Up to `MOST_LONGER` of them: those of special interest first, then by id."""


def longer_tokens(
    vocabulary: Vocabulary, ids: Sequence[int], first: Collection[int]
) -> dict[int, Longer]:
    """The longer tokens that contain each of the tokens `ids`; tokens without any are left out.

    Args:
        vocabulary: The vocabulary.
        ids: The tokens.
        first: Tokens that are named before others.
    """
    pieces = [piece or "" for piece in vocabulary.pieces]
    text = _END.join(pieces)
    starts = [0, *accumulate(len(piece) + 1 for piece in pieces)]
    found: dict[int, Longer] = {}
    for token_id in ids:
        piece = pieces[token_id]
        rows = _containing(text, starts, piece, token_id) if piece else []
        if rows:
            chosen = sorted(rows, key=lambda row: (row not in first, row))[:MOST_LONGER]
            found[token_id] = Longer(len(rows), tuple(chosen))
    return found


def _containing(text: str, starts: Sequence[int], piece: str, own: int) -> list[int]:
    rows: dict[int, None] = {}
    at = text.find(piece)
    while at >= 0 and len(rows) < _MOST_SCANNED:
        row = bisect_right(starts, at) - 1
        if row != own:
            rows[row] = None
        at = text.find(piece, starts[row + 1])
    return list(rows)


def as_json(vocabulary: Vocabulary, verified: Sequence[Verified]) -> dict[str, Any]:
    """The related tokens of a step, with their texts: `longer` for the tokens whose probability is
    that of severe ones; and `unreachable`, with the tokens to which the text of unreachable tokens
    is encoded instead."""
    least = sorted((fact for fact in verified if fact.p < SEVERE), key=lambda fact: fact.p)
    ids = [fact.token.id for fact in least if fact.failed][:_MOST_SEVERE]
    longer = longer_tokens(vocabulary, ids, {fact.token.id for fact in verified})
    unreachable = vocabulary.ids(("unreachable",))
    text = vocabulary.text
    return {
        "longer": {
            token_id: {"count": found.count, "tokens": [(one, text(one)) for one in found.ids]}
            for token_id, found in longer.items()
        },
        "unreachable": {
            "count": len(unreachable),
            "tokens": [
                (one, text(one), [(other, text(other)) for other in vocabulary.encoded(one)])
                for one in unreachable[:_MOST_UNREACHABLE]
            ],
        },
    }
