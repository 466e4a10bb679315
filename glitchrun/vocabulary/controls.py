"""Matched controls: ordinary tokens of similar form and frequency to compare with glitch tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glitchrun.vocabulary.character_groups import group_of
from glitchrun.vocabulary.vocabulary import Vocabulary

NEAREST = 16
"""A control is drawn from this number of tokens that are most similar to its token."""


@dataclass(frozen=True, slots=True)
class MatchedControl:
    """A token's control."""

    token_id: int
    """The control."""
    of: int
    """The token that it is a control for."""
    alike: bool
    """Whether both have the same group (`group_of`) and both or neither begin with white space.
    Length and frequency are always as close as the vocabulary allows."""


def matched_controls(
    vocabulary: Vocabulary,
    tokens: Collection[int],
    count: int,
    seed: int,
    *,
    exclude: Collection[int] = (),
    avoid: Collection[int] = (),
    mutual: bool = False,
    outside: Collection[str] = (),
) -> list[MatchedControl]:
    """Draw `count` distinct controls of similar script, length and frequency for `tokens`.

    Controls are tokens of category `normal` outside of `tokens` and `exclude`. Those in `avoid` are
    drawn only if there is no other of the script, and scripts in `outside` (`group_of`) are never
    drawn. With `mutual`, the tokens may be controls of one another; use it if every token was
    verified, because excluding all flagged tokens would leave no control that could raise an alarm.
    The choice does not use the model's behavior. So some controls may be unknown glitch tokens, and
    the rate of false alarms among controls is an upper bound.

    A control has the script of its token and both or neither begin with a space, as long as such
    tokens are left. It is drawn from the `NEAREST` by |log₂ of the ratio of lengths| + |log₂ of the
    ratio of frequency ranks|. If `count` is less than the number of tokens, tokens are drawn; if it
    is more, tokens get several controls. The result is shorter than `count` if the vocabulary has
    too few tokens. It depends on the seed and the sets, not on their order.
    """
    targets = sorted(set(tokens))
    barred = {*exclude} if mutual else {*targets, *exclude}
    rows = (row for row in vocabulary.ids(("normal",)) if row not in barred)
    if outside:
        rows = (row for row in rows if group_of(vocabulary.texts[row]) not in outside)
    ids = np.array(list(rows), dtype=int)
    rng = np.random.default_rng(seed)
    pool = _Pool(vocabulary, ids, frozenset(avoid))
    turns = _turns(targets, min(count, len(ids)), rng)
    return [match for target in turns if (match := pool.take(target, rng))]


def _turns(targets: Sequence[int], count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield the token for each control; every token comes once before any comes again."""
    while targets and count > 0:
        order = rng.permutation(targets)[:count]
        yield from order.tolist()
        count -= len(order)


class _Pool:
    """The possible controls that were not drawn yet, and the values by which they are compared."""

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

    def take(self, target: int, rng: np.random.Generator) -> MatchedControl | None:
        """Draw a control for a token; None if none is left."""
        text = self._vocabulary.texts[target]
        # Tokens of another script or spacing come last.
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
        return MatchedControl(int(self._ids[place]), target, not unlike[place])


def _is_spaced(text: str) -> bool:
    return text[:1].isspace()


def _log_length(text: str) -> float:
    """log₂ of the length without surrounding white space; of the full length for white space."""
    return float(np.log2(max(1, len(text.strip() or text))))
