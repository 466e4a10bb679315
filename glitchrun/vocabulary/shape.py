"""The outward form of token texts, as numbers for a model to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from glitchrun.vocabulary.groups import GROUPS, group_of

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17)
"""Upper ends of the length classes; longer texts are a class of their own."""
_CASES = ("none", "lower", "upper", "title", "mixed")
_AT_ONCE = 8192
"""Texts whose features stand as Python's numbers at a time: each takes ten times the room."""
_JOINTS = frozenset("_-./\\:")


def text_features(texts: Sequence[str]) -> NDArray[np.float32]:
    """One row a text: group of characters, length class and case as indicators, shares of kinds of
    character, space in front or behind, digits, joints (`_`, `.`), and inner capitals."""
    if not texts:
        return np.empty((0, len(_features(""))), dtype=np.float32)
    starts = range(0, len(texts), _AT_ONCE)
    return np.concatenate(
        [
            np.array([_features(text) for text in texts[at : at + _AT_ONCE]], np.float32)
            for at in starts
        ]
    )


def _features(text: str) -> list[float]:
    bare = text.strip()
    return [
        *_one_hot(GROUPS.index(group_of(text)), len(GROUPS)),
        *_one_hot(int(np.searchsorted(_LENGTHS, len(bare))), len(_LENGTHS) + 1),
        *_one_hot(_CASES.index(_case(bare)), len(_CASES)),
        *_shares(text),
        text[:1].isspace(),
        text[-1:].isspace(),
        any(map(str.isdigit, text)),
        not _JOINTS.isdisjoint(bare),
        any(a.islower() and b.isupper() for a, b in pairwise(bare)),
    ]


def _shares(text: str) -> list[float]:
    kinds = (str.isalpha, str.isdigit, str.isspace, str.isupper, str.isascii)
    return [sum(map(kind, text)) / max(1, len(text)) for kind in kinds]


def _case(text: str) -> str:
    if text.lower() == text.upper():
        return "none"
    if text.islower():
        return "lower"
    if text.isupper():
        return "upper"
    return "title" if text.istitle() else "mixed"


def _one_hot(place: int, size: int) -> list[float]:
    return [float(i == place) for i in range(size)]
