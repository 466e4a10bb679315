"""Features of tokens that need no run of the model: embeddings, indicators and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glitchrun.search.base import Space
from glitchrun.vocabulary.indicators import measured
from glitchrun.vocabulary.token_features import text_features

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Directions:
    """The centred and scaled unit rows of an embedding, computed on demand to save memory."""

    table: Tensor
    """(V, H) float32 on the CPU."""
    ids: Tensor
    """(N,) token ids in scope."""
    inverse_norms: Tensor
    """(N,) 1 / norm of each row in scope."""
    mean: Tensor
    """(H,) mean of the unit rows in scope."""
    scale: float
    """Factor that gives the centred rows a mean square length of 1."""

    @classmethod
    def of(cls, table: Tensor, ids: Tensor) -> Directions:
        """The directions of rows `ids` `(N,)` of an embedding `(V, H)`."""
        inverse = 1 / table.norm(dim=1)[ids].clamp_min(torch.finfo(torch.float32).tiny)
        weights = torch.zeros(len(table)).index_put((ids,), inverse)
        mean = weights @ table / len(ids)
        spread = max(1e-12, 1 - float(mean @ mean))  # the rows are of length 1
        return cls(table, ids, inverse, mean, spread**-0.5)

    def rows(self, positions: Tensor) -> Tensor:
        """The rows `(n, H)` of the tokens at positions `(n,)` in scope."""
        unit = self.table[self.ids[positions]] * self.inverse_norms[positions, None]
        return (unit - self.mean) * self.scale

    def times(self, weights: Tensor) -> Tensor:
        """The product `(N,)` of all rows in scope with weights `(H,)`."""
        along = (self.table @ weights)[self.ids] * self.inverse_norms
        return (along - self.mean @ weights) * self.scale


class Features:
    """Features of each token in scope, in blocks: directions of the input and (if untied) output
    embedding, indicators, and the form of the text. Each block is centred, and its rows have a mean
    square length of 1."""

    def __init__(self, space: Space) -> None:
        tables = _tables(space)
        self.indicators = indicators(space, tables)
        self._directions = [Directions.of(table, space.ids) for table in tables]
        texts = [space.vocabulary.text(i) for i in space.ids.tolist()]
        measures = [_spread(values.numpy()) for values in self.indicators.values()]
        dense = [_centred(np.concatenate(measures, axis=1)), _centred(text_features(texts))]
        self._dense = torch.from_numpy(np.concatenate(dense, axis=1))

    def rows(self, positions: NDArray[np.int64]) -> Floats:
        """The features `(n, D)` of the tokens at positions `(n,)` in scope."""
        at = torch.from_numpy(positions)
        parts = [block.rows(at) for block in self._directions]
        return torch.cat([*parts, self._dense[at]], dim=1).double().numpy()

    def times(self, weights: Floats) -> Floats:
        """The product `(N,)` of all features with weights `(D,)`."""
        sizes = [len(block.mean) for block in self._directions]
        parts = torch.from_numpy(weights).float().split([*sizes, self._dense.shape[1]])
        total = self._dense @ parts[-1]
        for block, part in zip(self._directions, parts[:-1], strict=True):
            total = total + block.times(part)
        return total.double().numpy()


def _tables(space: Space) -> list[Tensor]:
    """The input embedding and, unless tied, the output embedding: `(V, H)`, float32, on the CPU."""
    tables = [space.input_embeddings.float().cpu()]
    return tables if space.tied else [*tables, space.embeddings.float().cpu()]


def indicators(space: Space, tables: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
    """Indicators of each token in scope by name, `(N,)` each.

    Those of unused rows are left out where the vocabulary has none. They are the cosines of
    `vocabulary/indicators.py`, that is, 1 minus the distances.

    Args:
        space: The tokens and the embeddings.
        tables: The embeddings `(V, H)` in float32, input first; converted here by default.
    """
    tables = tables or _tables(space)
    inputs, outputs = tables[0], tables[-1]
    found = {
        "norm": space.vocabulary.norms,
        "frequency": torch.tensor(space.vocabulary.frequency_ranks, dtype=torch.float32),
    }
    own = measured(outputs, unused_rows(space))
    norm, mean = own.pop("norm"), 1 - own.pop("to_mean")
    if space.tied:
        found["to_mean"] = mean
    else:
        found["to_mean"] = 1 - measured(inputs, ())["to_mean"]
        found |= {"output_norm": norm, "output_to_mean": mean}
    found |= {name: 1 - values for name, values in own.items()}
    return {name: values[space.ids] for name, values in found.items()}


def unused_rows(space: Space) -> list[int]:
    """Ids whose embeddings training hardly changed, judged by the tokenizer: unused and unreachable
    tokens or, where there are none, raw bytes."""
    ids = space.vocabulary.ids
    return ids(("unused", "unreachable")) or ids(("byte",))


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A measure `(N,)` as three columns `(N, 3)`: its rank, the rank's square, and the clipped
    standardized value. A linear model of them can favour low values, high ones, both or neither."""
    rank = np.empty(len(values))
    rank[np.argsort(values, kind="stable")] = np.linspace(-1, 1, len(values))
    standard = (values - values.mean()) / max(float(values.std()), 1e-12)
    return np.stack([rank, rank**2, standard.clip(-4, 4) / 2], axis=1).astype(np.float32)


def _centred(block: NDArray[np.float32]) -> NDArray[np.float32]:
    about = block - block.mean(axis=0)
    length: float = np.sqrt((about**2).sum(axis=1).mean())
    return about / max(length, 1e-12)
