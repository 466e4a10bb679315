"""What a search can know of a token without running the model, as numbers to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glitchrun.search.base import Space
from glitchrun.vocabulary.token_features import (
    text_features,
    to_mean,
    to_unused,
    to_unused_without_component,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Directions:
    """The unit rows of an embedding about their mean, not stored but worked out when asked for."""

    table: Tensor
    """(V, H) float32 on the CPU."""
    ids: Tensor
    """(N,) the rows in scope."""
    inverse_norms: Tensor
    """(N,)"""
    mean: Tensor
    """(H,) of the unit rows in scope."""
    scale: float

    @classmethod
    def of(cls, table: Tensor, ids: Tensor) -> Directions:
        inverse = 1 / table.norm(dim=1)[ids].clamp_min(torch.finfo(torch.float32).tiny)
        weights = torch.zeros(len(table)).index_put((ids,), inverse)
        mean = weights @ table / len(ids)
        spread = max(1e-12, 1 - float(mean @ mean))  # the rows are of length 1
        return cls(table, ids, inverse, mean, spread**-0.5)

    def rows(self, places: Tensor) -> Tensor:
        """Of the tokens at `places` in scope: `(n, H)`."""
        unit = self.table[self.ids[places]] * self.inverse_norms[places, None]
        return (unit - self.mean) * self.scale

    def times(self, weights: Tensor) -> Tensor:
        """The product of all rows in scope with `(H,)`: `(N,)`."""
        along = (self.table @ weights)[self.ids] * self.inverse_norms
        return (along - self.mean @ weights) * self.scale


class Features:
    """Blocks of numbers for each token in scope, each about its mean and of mean square length 1:
    directions of the input and (where untied) output embedding, indicators, form of the text."""

    def __init__(self, space: Space) -> None:
        tables = _tables(space)
        self.indicators = indicators(space, tables)
        self._directions = [Directions.of(table, space.ids) for table in tables]
        texts = [space.vocabulary.text(i) for i in space.ids.tolist()]
        measures = [_spread(values.numpy()) for values in self.indicators.values()]
        dense = [_centred(np.concatenate(measures, axis=1)), _centred(text_features(texts))]
        self._dense = torch.from_numpy(np.concatenate(dense, axis=1))

    def rows(self, places: NDArray[np.int64]) -> Floats:
        """`(n, D)` of the tokens at `places` in scope."""
        at = torch.from_numpy(places)
        parts = [block.rows(at) for block in self._directions]
        return torch.cat([*parts, self._dense[at]], dim=1).double().numpy()

    def times(self, weights: Floats) -> Floats:
        """The product of all rows in scope with weights `(D,)`: `(N,)`."""
        sizes = [len(block.mean) for block in self._directions]
        parts = torch.from_numpy(weights).float().split([*sizes, self._dense.shape[1]])
        total = self._dense @ parts[-1]
        for block, part in zip(self._directions, parts[:-1], strict=True):
            total = total + block.times(part)
        return total.double().numpy()


def _tables(space: Space) -> list[Tensor]:
    """The input embedding and, where it is another one, the output embedding: float32, CPU."""
    tables = [space.input_embeddings.float().cpu()]
    return tables if space.tied else [*tables, space.embeddings.float().cpu()]


def indicators(space: Space, tables: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
    """Measures of each token in scope, `(N,)` by name; those to unused rows where there are any.

    `tables`: the embeddings in float32, `(V, H)` each, made where they are not given.
    """
    tables = tables or _tables(space)
    inputs, outputs = tables[0], tables[-1]
    found = {
        "norm": space.vocabulary.norms,
        "frequency": torch.tensor(space.vocabulary.frequency_ranks, dtype=torch.float32),
        "to_mean": to_mean(inputs),
    }
    if not space.tied:
        found |= {"output_norm": outputs.norm(dim=1), "output_to_mean": to_mean(outputs)}
    if unused := unused_rows(space):
        found["to_unused"] = to_unused(outputs, unused)
        found["to_unused_without_component"] = to_unused_without_component(outputs, unused)
    return {name: values[space.ids] for name, values in found.items()}


def unused_rows(space: Space) -> list[int]:
    """Rows that training hardly touched, by the tokenizer alone: unused ones and those that no
    text encodes to; where there are none, raw bytes."""
    ids = space.vocabulary.ids
    return ids(("unused", "unreachable")) or ids(("byte",))


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A measure in three columns, so that what is linear in them can favour low values, high ones,
    both ends or the middle: its rank, the rank's square, and the value without its outliers."""
    rank = np.empty(len(values))
    rank[np.argsort(values, kind="stable")] = np.linspace(-1, 1, len(values))
    standard = (values - values.mean()) / max(float(values.std()), 1e-12)
    return np.stack([rank, rank**2, standard.clip(-4, 4) / 2], axis=1).astype(np.float32)


def _centred(block: NDArray[np.float32]) -> NDArray[np.float32]:
    about = block - block.mean(axis=0)
    length: float = np.sqrt((about**2).sum(axis=1).mean())
    return about / max(length, 1e-12)
