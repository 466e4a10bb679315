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
            wide = _likely_first((scaled[row] - total[row]).cpu().numpy(), sampling.top_p)
        else:
            wide = log_p.double().cpu().numpy(), ids.cpu().numpy()
        token, doubt = _draw(
            *wide,
            key,
            position,
            sampling.top_p,
            rounding / sampling.temperature,
        )
        chosen.append(token)
        unclear.append(doubt)
    return chosen, unclear


def _likely_first(
    log_p: NDArray[np.float32], top_p: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Every candidate that a nucleus can reach, most likely first, equal ones by id.

    One sort of keys that hold the bits of a (negative) log-probability above the id: 12 ms for
    250,000 candidates, where torch's stable sort took 110. Those left out before it hold at most
    half of what the nucleus leaves out.
    """
    ids = np.flatnonzero(log_p >= np.log(max(1 - top_p, 1e-300) / (2 * len(log_p))))
    # Of floats that are not positive, the bits ascend as the values fall.
    bits = np.minimum(log_p[ids], np.float32(-0.0)).view(np.uint32).astype(np.uint64)
    keys = np.sort((bits << np.uint64(32)) | ids.astype(np.uint64))
    ids = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return log_p[ids].astype(np.float64), ids


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
