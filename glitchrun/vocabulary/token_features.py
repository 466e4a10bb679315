"""Numeric features of tokens that need no forward pass: from the embedding and from the text.

The indicators are those of Land and Bartolo 2024, "Fishing for Magikarp" (arXiv 2405.05417, section
2.2), and the cosine to the mean. `search/features.py` calls them. The text features describe the
form of a token's text, for the surrogate search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from glitchrun.vocabulary.character_groups import GROUPS, group_of

_POWER_STEPS = 100
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


def to_mean(table: Tensor) -> Tensor:
    """Cosine of each row of an embedding `(V, H)` to the mean of all normalized rows: `(V,)`."""
    return _cosine(table, normalize(table, dim=1).mean(dim=0))


def to_unused(table: Tensor, unused: Sequence[int]) -> Tensor:
    """Cosine of each row of `(V, H)` to the mean of the rows `unused`: `(V,)`.

    It is large for a row that looks unused. Land & Bartolo's indicator for tied embeddings is 1
    minus this.
    """
    return _cosine(table, table[list(unused)].mean(dim=0))


def to_unused_without_component(table: Tensor, unused: Sequence[int]) -> Tensor:
    """`to_unused` of an embedding `(V, H)` without its first principal component: `(V,)`.

    Land & Bartolo's indicator for untied output embeddings is 1 minus this. The component is a
    constant that training adds to every row.
    """
    component = first_component(table)
    along = table @ component
    rows = list(unused)
    mean = (table[rows] - along[rows, None] * component).mean(dim=0)
    parts = zip(table.split(_CHUNK), along.split(_CHUNK), strict=True)
    return torch.cat([_cosine(part - some[:, None] * component, mean) for part, some in parts])


def _cosine(table: Tensor, direction: Tensor) -> Tensor:
    """Cosine of each row of `(V, H)` to a direction `(H,)`: `(V,)`."""
    parts = [cosine_similarity(part, direction, dim=1) for part in table.split(_CHUNK)]
    return torch.cat(parts)


def first_component(table: Tensor) -> Tensor:
    """The direction `(H,)` of largest variance of the rows of a float32 table `(V, H)`.

    Power iteration needs no `(H, H)` matrix.
    """
    mean = table.mean(dim=0)
    direction = normalize(table[table.norm(dim=1).argmax()] - mean, dim=0)
    for _ in range(_POWER_STEPS):
        along = table @ direction - mean @ direction
        previous, direction = direction, normalize(along @ table - along.sum() * mean, dim=0)
        if torch.dot(previous, direction) > 1 - 1e-7:
            break
    return direction


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
