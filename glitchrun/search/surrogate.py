"""A search that predicts failures from its own verdicts, by ridge regression on token features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from glitchrun.events import Verified
from glitchrun.search.base import Parameters, Space
from glitchrun.vocabulary.character_groups import GROUPS, group_of
from glitchrun.vocabulary.indicators import measured

_WARM = 64
"""Tokens verified before anything is learned."""
_GROWTH = 1 / 16
"""The model is refitted when the number of verdicts has grown by this share."""
_STRONGER, _STRONGEST = 30.0, 200.0
"""The ridge parameter: a multiple of the likeliest one, and its maximum. The likeliest one predicts
best on average, but only the top of the order is verified, which selects for its errors. On
SmolLM2 and Gemma 3, ridges of 100 and 300 found a tenth more glitch tokens than the likeliest."""
_FLOOR = 1e-6
"""Probabilities are clipped here before their logarithm is taken."""

NOISES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Candidate noise variances, in units of the weights' prior variance."""


class Surrogate:
    """Verifies the tokens for which a linear model of the verdicts so far predicts the highest
    score.

    Half of the first tokens are the extremes of every indicator (least and largest norm, and so
    on), half are random. After that, a ridge regression on the features of all verified tokens
    predicts the sum of two standardized targets: whether a token is a glitch token, and −log p.
    The second separates severe tokens from others, and carries information before the first glitch
    token is found.
    """

    def __init__(self, space: Space) -> None:
        self.counters: Counter[str] = Counter()
        self._features = Features(space)
        self._ids = space.ids.numpy()
        self._index = {token_id: place for place, token_id in enumerate(self._ids.tolist())}
        self._rank = np.random.default_rng(space.seed).permutation(len(self._ids))
        """Breaks ties, and orders the random half of the first tokens."""
        self._order = self._warm_up()
        self._verified: list[int] = []
        self._targets: list[tuple[float, float]] = []
        self._fit_at = self._fitted_at = 0

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        """The search; it reads no parameters."""
        return cls(space)

    def propose(self, n: int) -> list[int]:
        if self._fit_at > self._fitted_at:
            self._fit()
        done = set(self._verified)
        open_ = (place for place in self._order.tolist() if place not in done)
        return [int(self._ids[place]) for place, _ in zip(open_, range(n), strict=False)]

    def update(self, verdicts: Sequence[Verified]) -> None:
        for verdict in verdicts:
            self._verified.append(self._index[verdict.token.id])
            p = max(result.p for result in verdict.probes.values())
            self._targets.append((float(verdict.glitch), -float(np.log(max(p, _FLOOR)))))
        # Depends on counts alone, so that a resumed search refits at the same verdicts.
        count = len(self._verified)
        if count >= max(_WARM, self._fit_at * (1 + _GROWTH)):
            self._fit_at = count

    def _fit(self) -> None:
        places = np.array(self._verified[: self._fit_at])
        target = _combined(np.array(self._targets[: self._fit_at]))
        weights = fit_ridge(self._features.rows(places), target, _STRONGER, _STRONGEST)
        scores = self._features.times(weights).round(6)
        self._order = np.lexsort((self._rank, -scores))
        self._fitted_at = self._fit_at
        self.counters["refits"] += 1

    def _warm_up(self) -> NDArray[np.int64]:
        by_value = [np.lexsort((self._rank, v)) for v in self._features.indicators.values()]
        ends = [order[::step] for order in by_value for step in (1, -1)]
        in_turn = islice(zip(*ends, strict=True), _WARM)
        extreme = list(dict.fromkeys(chain.from_iterable(in_turn)))
        random = np.argsort(self._rank).tolist()
        mixed = chain.from_iterable(zip(extreme[: _WARM // 2], random, strict=False))
        return np.array(list(dict.fromkeys([*mixed, *random])))


def _combined(targets: Floats) -> Floats:
    """The sum of the standardized columns `(n,)` of `(n, 2)`; constant columns count as 0."""
    about = targets - targets.mean(axis=0)
    spread = about.std(axis=0)
    total: Floats = (about / np.where(spread > 0, spread, np.inf)).sum(axis=1)
    return total


def fit_ridge(
    rows: Floats, target: Floats, stronger: float = 1.0, most: float = float("inf")
) -> Floats:
    """The weights `(D,)` of a ridge regression of a centred target `(n,)` on rows `(n, D)`.

    The ridge parameter is the one of `NOISES` with the greatest evidence, the overall scale left
    free (MacKay 1992, "Bayesian interpolation"), times `stronger`, and at most `most`. The linear
    system is solved in the smaller of n and D dimensions.
    """
    n, width = rows.shape
    dual = n <= width
    gram = rows @ rows.T if dual else rows.T @ rows
    inner = target if dual else rows.T @ target
    evidence = [_evidence(gram, inner, noise, target, None if dual else width) for noise in NOISES]
    likeliest = NOISES[int(np.argmax(evidence))]
    solved, _ = _solve(gram, inner, min(stronger * likeliest, most))
    return rows.T @ solved if dual else solved


def _evidence(
    gram: Floats, inner: Floats, noise: float, target: Floats, width: int | None
) -> float:
    """Log evidence up to a constant; `width` is D if `gram` is `(D, D)`, None if it is `(n, n)`."""
    n = len(target)
    solved, logdet = _solve(gram, inner, noise)
    # target' (XX' + noise)^-1 target and log |XX' + noise|, from either matrix
    misfit = float(inner @ solved)
    if width is not None:
        misfit = (float(target @ target) - misfit) / noise
        logdet += (n - width) * float(np.log(noise))
    return -0.5 * (n * float(np.log(max(misfit, 1e-300))) + logdet)


def _solve(gram: Floats, right: Floats, noise: float) -> tuple[Floats, float]:
    factor = cho_factor(gram + noise * np.eye(len(gram)), lower=True)
    return cho_solve(factor, right), 2 * float(np.log(np.diag(factor[0])).sum())


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


_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17)
"""Upper bounds of the length classes, in characters; longer texts are another class."""
_CASES = ("none", "lower", "upper", "title", "mixed")
_TEXTS_AT_ONCE = 8192
"""Texts whose features are Python numbers at a time, which take ten times the memory of arrays."""
_SEPARATORS = frozenset("_-./\\:")


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
