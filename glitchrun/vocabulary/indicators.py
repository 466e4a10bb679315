"""What an embedding says of its own rows, without running the model.

The indicators are those of Land & Bartolo 2024, "Fishing for Magikarp: Automatically Detecting
Under-trained Tokens in Large Language Models" (arXiv 2405.05417, section 2.2), and two plain ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

_POWER_STEPS = 100
_CHUNK = 8192
"""Rows of a table in one part."""


def to_mean(table: Tensor) -> Tensor:
    """Cosine of each row of `(V, H)` to the mean of all unit rows: `(V,)`."""
    return _cosine(table, normalize(table, dim=1).mean(dim=0))


def to_unused(table: Tensor, unused: Sequence[int]) -> Tensor:
    """Cosine of each row to the mean of the rows `unused`: `(V,)`. Large where a row looks unused.

    Land & Bartolo's indicator for tied embeddings is 1 minus this.
    """
    return _cosine(table, table[list(unused)].mean(dim=0))


def to_unused_without_component(table: Tensor, unused: Sequence[int]) -> Tensor:
    """`to_unused` once the first principal component is taken out of every row: `(V,)`.

    Land & Bartolo's indicator for output embeddings that are not tied is 1 minus this; the
    component is a constant that training adds to every row.
    """
    component = first_component(table)
    along = table @ component
    rows = list(unused)
    mean = (table[rows] - along[rows, None] * component).mean(dim=0)
    parts = zip(table.split(_CHUNK), along.split(_CHUNK), strict=True)
    return torch.cat([_cosine(part - some[:, None] * component, mean) for part, some in parts])


def _cosine(table: Tensor, direction: Tensor) -> Tensor:
    """Cosine of each row `(V, H)` to a direction `(H,)`: `(V,)`. In parts, so that the copies that
    it takes stay small beside a table of a large vocabulary."""
    parts = [cosine_similarity(part, direction, dim=1) for part in table.split(_CHUNK)]
    return torch.cat(parts)


def first_component(table: Tensor) -> Tensor:
    """The direction `(H,)` of largest variance of the rows of a float32 table `(V, H)`, by power
    iteration: no `(H, H)` matrix is needed."""
    mean = table.mean(dim=0)
    direction = normalize(table[table.norm(dim=1).argmax()] - mean, dim=0)
    for _ in range(_POWER_STEPS):
        along = table @ direction - mean @ direction
        previous, direction = direction, normalize(along @ table - along.sum() * mean, dim=0)
        if torch.dot(previous, direction) > 1 - 1e-7:
            break
    return direction
