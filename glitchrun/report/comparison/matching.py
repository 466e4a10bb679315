"""Matches the tokens of sides with different vocabularies by their text.

Ids mean something within one vocabulary only. `matched` gives the tokens of every side keys by
which tokens with one text meet; everything that compares sides uses these keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from glitchrun.report.comparison.sides import Side, TokenVerdict
from glitchrun.vocabulary.text import visible

_REPLACEMENT = "\ufffd"


def matched(sides: Sequence[Side], how: str = "auto") -> list[Side]:
    """The sides with tokens under the keys by which they are compared.

    Args:
        sides: The sides, with tokens by id.
        how: `id`, `text`, or `auto` for text if a side lists texts without ids, or if two sides
            have different vocabularies: most ids that both list have different texts, or they
            share no id and their vocabularies differ in size.
    """
    pairs = combinations([side for side in sides if side.tokens], 2)
    if how == "id" or not (how == "text" or any(_differ(*pair) for pair in pairs)):
        return [*sides]
    keys: dict[str, int] = {}
    return [_by_text(side, keys) for side in sides]


def matched_cells(sides: Sequence[Side]) -> list[Side]:
    """Runs matched as by `auto`. Of the runs of one model only that with the most tokens is looked
    at, because the pairs of hundreds of cells are many.

    Args:
        sides: The runs, with tokens by id.
    """
    largest: dict[Any, Side] = {}
    for side in sorted(sides, key=lambda one: len(one.tokens)):
        largest[side.setting.get("model contents")] = side
    differ = any(side.by_text for side in matched([*largest.values()]))
    return matched(sides, "text" if differ else "id")


def _differ(left: Side, right: Side) -> bool:
    if any(token_id < 0 for side in (left, right) for token_id in side.tokens):
        return True
    common = [(left.tokens[i], right.tokens[i]) for i in left.tokens if i in right.tokens]
    if not common:
        return None not in (left.vocabulary, right.vocabulary) and (
            left.vocabulary != right.vocabulary
        )
    return 2 * sum(not same_text(*both) for both in common) > len(common)


def same_text(left: TokenVerdict, right: TokenVerdict) -> bool:
    """Whether two verdicts on one id may be about the same token.

    Tools that decode a SentencePiece entry alone lose its space; tables have visible text.
    """
    one, other = left.text, right.text
    if one is None or other is None or one == other:
        return True
    return one.strip(" ") == other.strip(" ") or visible(one) == other or one == visible(other)


def _by_text(side: Side, keys: dict[str, int]) -> Side:
    """The side with a key for each text. Tokens without a text of their own are left out: parts of
    characters, and texts that several of its tokens share."""
    times = Counter(_text(one) for one in side.tokens.values())
    kept: dict[int, TokenVerdict] = {}
    new: dict[int, int] = {}
    for token_id, one in side.tokens.items():
        text = _text(one)
        if text is not None and times[text] == 1:
            new[token_id] = keys.setdefault(text, len(keys))
            kept[new[token_id]] = one
    seen = frozenset(new[token_id] for token_id in side.seen if token_id in new)
    return replace(
        side,
        tokens=kept,
        seen=seen,
        looked_at=len(seen) if side.lists_all else side.looked_at,
        by_text=True,
        unmatchable=len(side.tokens) - len(kept),
    )


def _text(one: TokenVerdict) -> str | None:
    return one.text if one.text and _REPLACEMENT not in one.text else None


def without_counterpart(left: Mapping[int, TokenVerdict], right: Mapping[int, TokenVerdict]) -> int:
    """Number of tokens of `left` that `right` does not list."""
    return sum(key not in right for key in left)
