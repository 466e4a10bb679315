"""Norms of the rows of an embedding, and features of a token's text for the surrogate search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glitchrun.vocabulary.character_groups import GROUPS, group_of

_CHUNK = 8192
"""Rows of an embedding that are processed at a time, to bound the memory of temporary copies."""

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17)
"""Upper bounds of the length classes, in characters; longer texts are another class."""
_CASES = ("none", "lower", "upper", "title", "mixed")
_TEXTS_AT_ONCE = 8192
"""Texts whose features are Python numbers at a time, which take ten times the memory of arrays."""
_SEPARATORS = frozenset("_-./\\:")


def row_norms(weight: Tensor | Iterable[Tensor], chunk: int = _CHUNK) -> Tensor:
    """L2 norm of each row of an embedding `(V, H)`: float32 `(V,)` on the CPU.

    Converts `chunk` rows at a time, so that there is never a second copy of the embedding.

    Args:
        weight: The embedding, or blocks of its rows `(R, H)`, of which one is needed at a time.
        chunk: Rows converted at a time.
    """
    blocks = [weight] if isinstance(weight, Tensor) else weight
    parts = (part for block in blocks for part in block.split(chunk))
    return torch.cat([rows.detach().float().norm(dim=1).cpu() for rows in parts])


def text_features(texts: Sequence[str]) -> NDArray[np.float32]:
    """Features `(N, F)` of N texts, for a model to learn from.

    They are one-hot vectors of character group, length class and case; shares of kinds of
    characters; and whether the text has a leading or trailing space, digits, separators (`_`, `.`)
    or inner capitals.
    """
    if not texts:
        return np.empty((0, len(_features(""))), dtype=np.float32)
    starts = range(0, len(texts), _TEXTS_AT_ONCE)
    return np.concatenate(
        [
            np.array([_features(text) for text in texts[at : at + _TEXTS_AT_ONCE]], np.float32)
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
        not _SEPARATORS.isdisjoint(bare),
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
