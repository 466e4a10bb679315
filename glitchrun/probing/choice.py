"""The next token of a sampled continuation, and whether rounding could have changed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glitchrun.probing.noise import gumbel

_HEAD = 256
"""Candidates looked at first: the nucleus is rarely larger."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How continuations are drawn. temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.9


def choose(
    logits: Tensor, keys: list[int], position: int, sampling: Sampling, rounding: float
) -> tuple[list[int], list[bool]]:
    """The next token of each row.

    Args:
        logits: `(B, V)`, float32.
        keys: Each row's `noise.stream`.
        position: Index of the token to choose within the continuation.
        sampling: Temperature and nucleus.
        rounding: Difference in logits below which two candidates count as undecided.

    Returns:
        Ids, and for each row whether another token came within `rounding` of being chosen.
    """
    if sampling.temperature == 0:
        top = logits.topk(2, dim=-1)
        close = (top.values[:, 0] - top.values[:, 1]) < rounding
        return top.indices[:, 0].tolist(), close.tolist()
    scaled = logits / sampling.temperature
    total = scaled.logsumexp(dim=-1)
    values, indices = scaled.topk(min(_HEAD, scaled.shape[-1]), dim=-1)
    chosen: list[int] = []
    unclear: list[bool] = []
    for row, key in enumerate(keys):
        log_p, ids = values[row] - total[row], indices[row]
        if float(log_p.exp().sum()) < sampling.top_p + 1e-3:
            ordered = scaled[row].sort(descending=True, stable=True)
            log_p, ids = ordered.values - total[row], ordered.indices
        token, doubt = _draw(
            log_p.double().cpu().numpy(),
            ids.cpu().numpy(),
            key,
            position,
            sampling.top_p,
            rounding / sampling.temperature,
        )
        chosen.append(token)
        unclear.append(doubt)
    return chosen, unclear


def _draw(
    log_p: NDArray[np.float64],
    ids: NDArray[np.int64],
    key: int,
    position: int,
    top_p: float,
    rounding: float,
) -> tuple[int, bool]:
    """One draw from a nucleus. `log_p` `(K,)` falls; `rounding` is in scaled logits."""
    before = np.concatenate([[0.0], np.cumsum(np.exp(log_p))[:-1]])  # mass above each candidate
    inside = before < top_p
    maybe = before < top_p + rounding
    ids, log_p, inside = ids[maybe], log_p[maybe], inside[maybe]
    score = log_p + gumbel(key, position, ids)
    within = np.where(inside, score, -np.inf)
    best = int(within.argmax())
    rivals = np.delete(score, best)
    clear = rivals.size == 0 or within[best] - rivals.max() > 2 * rounding
    edge = before[maybe][best] > top_p - rounding  # rounding could push the choice out
    return int(ids[best]), bool(not clear or (edge and before[maybe][best] > 0))
