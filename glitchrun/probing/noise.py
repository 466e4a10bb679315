"""Random numbers that depend on what they are for, not on when they are drawn.

An attempt's continuation is a function of (seed, token, probe, attempt): position t of it takes,
for each candidate token i, a number that is a hash of all of these. Batch, order and interruptions
cannot reach it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream(seed: int, token_id: int, probe: str, attempt: int) -> int:
    """The 64-bit key of one attempt's random numbers."""
    text = f"{seed}\0{token_id}\0{probe}\0{attempt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def gumbel(
    keys: int | NDArray[np.uint64], position: int, candidates: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Gumbel noise for candidate token ids at one position, in the shape of the two broadcast.

    The token with the largest log-probability plus noise is a sample from the distribution
    (the Gumbel-max trick: Maddison, Tarlow, Minka 2014, arXiv 1411.0030).
    """
    with np.errstate(over="ignore"):
        start = np.asarray(keys, dtype=np.uint64) + np.uint64(position + 1) * _GOLDEN
        mixed = _splitmix(_splitmix(start) + candidates.astype(np.uint64) * _GOLDEN)
    uniform = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    return -np.log(-np.log(uniform))


def _splitmix(x: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    y = np.asarray(x)
    y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return y ^ (y >> np.uint64(31))
