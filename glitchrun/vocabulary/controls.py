"""Ordinary tokens to hold glitch tokens against: alike in all but what the model does with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glitchrun.vocabulary.groups import group_of
from glitchrun.vocabulary.vocabulary import Vocabulary

NEAREST = 16
"""A control is drawn among so many of the tokens that are most like its token."""


@dataclass(frozen=True, slots=True)
class Match:
    """A token's control."""

    token_id: int
    of: int
    """The token that it is like."""
    alike: bool
    """Whether both are of one script (`group_of`) and with or without white space in front; length
    and frequency are always as near as the vocabulary has them."""


def matched(
    vocabulary: Vocabulary,
    tokens: Collection[int],
    count: int,
    seed: int,
    *,
    exclude: Collection[int] = (),
    avoid: Collection[int] = (),
    mutual: bool = False,
    outside: Collection[str] = (),
) -> list[Match]:
    """Ordinary tokens of like script, length and frequency, `count` in all, each one once.

    Ordinary is a token of category `normal` that is neither in `tokens` nor in `exclude`; one in
    `avoid` is taken only where there is no other of its script. With `mutual`, the tokens may be
    controls of one another: for when every token has been looked at, and barring those found
    would leave none that could raise an alarm. Scripts in `outside` (`group_of`) give no control.
    Nothing that the model did is looked at, so some
    controls may be glitch tokens nobody knows of: a rate of false alarms among controls is an
    upper bound.

    A control has its token's script and a space in front as it has, where there is one left, and
    is drawn among the `NEAREST` by |log₂ of the ratio of lengths| + |log₂ of the ratio of frequency
    ranks|. Where `count` is less than there are tokens, tokens are drawn; where it is more, each
    gets several. Fewer come back when the vocabulary has no more. The draw depends on the seed and
    the sets given, not on their order.
    """
    targets = sorted(set(tokens))
    barred = {*exclude} if mutual else {*targets, *exclude}
    rows = (row for row in vocabulary.ids(("normal",)) if row not in barred)
    if outside:
        rows = (row for row in rows if group_of(vocabulary.texts[row]) not in outside)
    ids = np.array(list(rows), dtype=int)
    rng = np.random.default_rng(seed)
    drawn = _Pool(vocabulary, ids, frozenset(avoid))
    turns = _turns(targets, min(count, len(ids)), rng)
    return [match for target in turns if (match := drawn.take(target, rng))]


def _turns(targets: Sequence[int], count: int, rng: np.random.Generator) -> Iterator[int]:
    """Which token gets the next control: every one once before any gets another."""
    while targets and count > 0:
        order = rng.permutation(targets)[:count]
        yield from order.tolist()
        count -= len(order)


class _Pool:
    """The ordinary tokens not drawn yet, with what they are compared by."""

    def __init__(self, vocabulary: Vocabulary, ids: NDArray[np.int_], avoid: Collection[int]):
        self._vocabulary = vocabulary
        self._ids = ids
        texts = [vocabulary.texts[row] for row in ids]
        self._groups = np.array([group_of(text) for text in texts], dtype=object)
        self._spaced = np.array([_is_spaced(text) for text in texts], dtype=bool)
        self._lengths = np.array([_log_length(text) for text in texts], dtype=float)
        self._ranks = np.log2(1.0 + np.array([vocabulary.frequency_ranks[row] for row in ids]))
        self._avoided = np.array([row in avoid for row in ids.tolist()], dtype=bool)
        self._free = np.ones(len(ids), dtype=bool)

    def take(self, target: int, rng: np.random.Generator) -> Match | None:
        """Draws a control; None where no other token is left."""
        text = self._vocabulary.texts[target]
        # What is not alike is only taken where nothing better is left.
        unlike = 4 * (self._groups != group_of(text)) + 1 * (self._spaced != _is_spaced(text))
        free = self._free & (self._ids != target)
        if not free.any():
            return None
        tier = np.where(free, unlike + 2 * self._avoided, 99)
        best = np.flatnonzero(tier == tier.min())
        distance = abs(self._lengths[best] - _log_length(text))
        distance += abs(self._ranks[best] - np.log2(1.0 + self._vocabulary.frequency_ranks[target]))
        nearest = best[np.argsort(distance, kind="stable")[:NEAREST]]
        place = int(rng.choice(nearest))
        self._free[place] = False
        return Match(int(self._ids[place]), target, not unlike[place])


def _is_spaced(text: str) -> bool:
    return text[:1].isspace()


def _log_length(text: str) -> float:
    """Of the text without the white space around it; of white space alone, all of it."""
    return float(np.log2(max(1, len(text.strip() or text))))
