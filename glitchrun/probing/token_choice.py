"""Chooses the next token of sampled continuations: greedy, or Gumbel-max within a nucleus.

Random numbers depend on what they are for, not on when they are drawn. The score of candidate
token i at position t of an attempt adds a hash of (seed, token, probe, attempt, t, i) to the
log-probability of i. Batch composition, order and interruptions therefore cannot change a choice;
only rounding can, and `choose_tokens` reports where it might have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LIKELY = 1e-3
"""Candidates of at least this probability are collected first. They rarely miss any part of a
nucleus."""
_ROWS = 8
"""Rows whose candidates are collected together on a CPU."""
_MOST = 128
"""Candidates that are collected at first on a GPU."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is sampled."""

    temperature: float = 0.7
    """Divides the logits before the softmax; 0 is greedy."""
    top_p: float = 0.9
    """Probability mass of the nucleus (Holtzman et al. 2019, arXiv 1904.09751)."""


def choose_tokens(
    logits: Tensor,
    rows: Sequence[int],
    keys: Sequence[int],
    positions: Sequence[int],
    params: SamplingParams,
    rounding: float,
) -> tuple[list[int], list[bool]]:
    """Chooses one token for each draw; several draws may use the same row of logits.

    Args:
        logits: `(R, V)`, float32.
        rows: `(A,)` the row of each draw.
        keys: `(A,)` the `rng_key` of each draw.
        positions: `(A,)` index of each chosen token within its continuation, from 0.
        params: Temperature and nucleus.
        rounding: How far rounding may move a logit, as a share of the largest logit of its row.

    Returns:
        `(A,)` token ids, and `(A,)` whether the draw is a near-tie: another token came within
        rounding of being chosen.
    """
    row_of, key_array = np.asarray(rows), np.asarray(keys, dtype=np.uint64)
    if params.temperature == 0:
        top = logits.topk(2, dim=-1)
        columns = [*logits.aminmax(dim=-1), *top.values.unbind(1), top.indices[:, 0]]
        low, high, first, second, ids = _to_cpu(torch.stack([one.double() for one in columns]))
        tied = first - second < rounding * _scale(low, high)
        return ids.astype(np.int64)[row_of].tolist(), tied[row_of].tolist()
    likely = (_likely_by_rows if logits.device.type == "cpu" else _likely_at_once)(
        logits, params.temperature
    )
    slack = rounding * likely.scale[row_of] / params.temperature
    position = np.asarray(positions, dtype=np.uint64)
    chosen, near_ties = np.empty(len(row_of), np.int64), np.empty(len(row_of), bool)
    for nuclei in _nuclei(logits, likely, np.unique(row_of), params):
        draws = np.flatnonzero(np.isin(row_of, nuclei.rows))
        index = np.searchsorted(nuclei.rows, row_of[draws])
        chosen[draws], near_ties[draws] = _gumbel_max(
            nuclei, index, key_array[draws], position[draws], params.top_p, slack[draws]
        )
    return chosen.tolist(), near_ties.tolist()


def _scale(low: Floats, high: Floats) -> Floats:
    """The absolute value of the largest logit, to which rounding is relative; at least 1."""
    return np.maximum(np.maximum(-low, high), 1.0).astype(np.float64)


def _to_cpu(block: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = block.cpu().numpy()
    return found


def _gumbel_max(
    nuclei: _Nuclei, index: Ids, keys: Keys, positions: Keys, top_p: float, slack: Floats
) -> tuple[Ids, NDArray[np.bool_]]:
    """Draws from nucleus `index` `(A,)` each. `slack` `(A,)` is the rounding in scaled logits."""
    limit = top_p + slack[:, None]
    last, next_ = nuclei.edge(top_p)  # (R,) each
    least, most = (
        last[index] - 2 * slack,
        next_[index] + 2 * slack,
    )  # those across may change places
    may_be_in = (nuclei.mass_above < limit.max()) | (
        nuclei.log_p >= last[:, None] - 2 * slack.max()
    )
    width = max(1, int(may_be_in.sum(axis=1).max()))
    ids: Ids = nuclei.ids[index, :width]  # (A, width)
    log_p: Floats = nuclei.log_p[index, :width]
    mass_above: Floats = nuclei.mass_above[index, :width]
    noisy = log_p + gumbel_noise(keys[:, None], positions[:, None], ids)
    score = np.where((mass_above < limit) | (log_p >= least[:, None]), noisy, -np.inf)
    in_nucleus = np.where(mass_above < top_p, score, -np.inf)
    draws, best = np.arange(len(index)), in_nucleus.argmax(axis=1)
    winner, winner_mass = in_nucleus[draws, best], mass_above[draws, best]
    score[draws, best] = -np.inf
    clear = winner - score.max(axis=1) > 2 * slack
    # Rounding could push it out of the nucleus: by its mass, or by its order.
    at_edge = (winner_mass > top_p - slack) & (winner_mass > 0) | (log_p[draws, best] <= most)
    return ids[draws, best], ~clear | at_edge


# Likely candidates ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Likely:
    """Candidates that are likely, listed row by row."""

    scale: Floats
    """(R,) what rounding is relative to."""
    total: NDArray[np.float32]
    """(R,) logsumexp of the scaled logits."""
    row: Ids
    """(N,)"""
    ids: Ids
    """(N,)"""
    log_p: NDArray[np.float32]
    """(N,)"""


def _likely_by_rows(logits: Tensor, temperature: float) -> _Likely:
    """Those of at least `_LIKELY`, for `(R, V)` on a CPU.

    A few rows at a time stay in the cache of a core: 256 rows took 52 ms, and 142 ms at once.
    """
    scaled, parts = torch.empty_like(logits[:_ROWS]), []
    for start in range(0, len(logits), _ROWS):
        some = logits[start : start + _ROWS]
        part = torch.div(some, temperature, out=scaled[: len(some)])
        total = part.logsumexp(dim=-1)
        is_likely = part >= (total + np.log(_LIKELY))[:, None]
        row, ids = np.divmod(np.flatnonzero(is_likely.numpy()), logits.shape[1])
        scale = _scale(some.amin(dim=-1).numpy(), some.amax(dim=-1).numpy())
        log_p = part.numpy()[row, ids] - total.numpy()[row]
        parts.append((scale, total.numpy(), row + start, ids, log_p))
    return _Likely(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _likely_at_once(logits: Tensor, temperature: float) -> _Likely:
    """The `_MOST` most likely, for `(R, V)` on a GPU, in one transfer."""
    scaled = logits / temperature
    total = scaled.logsumexp(dim=-1, keepdim=True)
    top = scaled.topk(min(_MOST, logits.shape[1]), dim=-1)
    bounds = [one[:, None].double() for one in logits.aminmax(dim=-1)]
    columns = [*bounds, total.double(), (top.values - total).double(), top.indices.double()]
    block = _to_cpu(torch.cat(columns, dim=1))  # float64 represents every float32 and every id
    log_p, ids = np.split(block[:, 3:], 2, axis=1)
    row = np.repeat(np.arange(len(block)), log_p.shape[1])
    return _Likely(
        _scale(block[:, 0], block[:, 1]),
        block[:, 2].astype(np.float32),
        row,
        ids.ravel().astype(np.int64),
        log_p.ravel().astype(np.float32),
    )


# Nuclei ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Nuclei:
    """Candidates of R rows, most likely first, equally likely ones by id, padded to one length."""

    rows: Ids
    """(R,) row numbers, ascending."""
    ids: Ids
    """(R, K)"""
    log_p: Floats
    """(R, K), -inf in the padding."""
    mass_above: Floats
    """(R, K) total probability of the candidates before this one; infinite in the padding."""

    def edge(self, top_p: float) -> tuple[Floats, Floats]:
        """`(R,)` log-probabilities of the last candidate in each nucleus and of the next one, -inf
        if there is none."""
        size = np.maximum((self.mass_above < top_p).sum(axis=1), 1)
        rows, has_next = np.arange(len(size)), size < self.log_p.shape[1]
        next_ = self.log_p[rows, np.minimum(size, self.log_p.shape[1] - 1)]
        return self.log_p[rows, size - 1], np.where(has_next, next_, -np.inf)


def _nuclei(
    logits: Tensor, likely: _Likely, rows: Ids, params: SamplingParams
) -> Iterator[_Nuclei]:
    """Yields candidates that contain the nucleus and a little more, for some rows of `(R, V)`.

    Rows whose likely candidates suffice come first, together; then each other row alone.
    """
    padded = _padded(len(logits), likely.row, likely.ids, likely.log_p)
    enough = np.exp(padded.log_p[rows]).sum(axis=1) >= params.top_p + 1e-3
    if enough.any():
        some = rows[enough]
        yield _Nuclei(some, padded.ids[some], padded.log_p[some], padded.mass_above[some])
    for wide in rows[~enough]:
        scaled = _to_cpu(logits[wide] / params.temperature)
        log_p, order = _sorted_candidates(scaled - likely.total[wide], params.top_p)
        yield _Nuclei(np.array([wide]), order[None], log_p[None], _mass_above(log_p[None]))


def _padded(rows: int, row: Ids, ids: Ids, log_p: NDArray[np.float32]) -> _Nuclei:
    """Sorts candidates listed row by row, `(N,)` each, and pads every row to one length."""
    counts = np.bincount(row, minlength=rows)
    column = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    keys = np.full((rows, max(1, int(counts.max()))), np.iinfo(np.uint64).max, dtype=np.uint64)
    keys[row, column] = _sort_keys(log_p, ids)
    keys.sort(axis=1)
    sorted_log_p, order = _unpack_sort_keys(keys)
    sorted_log_p[np.arange(keys.shape[1])[None] >= counts[:, None]] = -np.inf
    return _Nuclei(np.arange(rows), order, sorted_log_p, _mass_above(sorted_log_p))


def _mass_above(log_p: Floats) -> Floats:
    p = np.exp(log_p)  # (R, K)
    before = np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, axis=1)[:, :-1]], axis=1)
    return np.where(np.isneginf(log_p), np.inf, before)


def _sorted_candidates(log_p: NDArray[np.float32], top_p: float) -> tuple[Floats, Ids]:
    """Every candidate that a nucleus can reach, most likely first, equally likely ones by id.

    It sorts keys that contain the bits of a (negative) log-probability above the id: 12 ms for
    250,000 candidates, where torch's stable sort took 110 ms. The candidates dropped before the
    sort have at most half of the mass that the nucleus leaves out.
    """
    ids = np.flatnonzero(log_p >= np.log(max(1 - top_p, 1e-300) / (2 * len(log_p))))
    return _unpack_sort_keys(np.sort(_sort_keys(log_p[ids], ids)))


def _sort_keys(log_p: NDArray[np.float32], ids: Ids) -> Keys:
    # For floats that are not positive, the bits ascend as the values descend.
    bits = np.minimum(log_p, np.float32(-0.0)).view(np.uint32).astype(np.uint64)
    return (bits << np.uint64(32)) | ids.astype(np.uint64)


def _unpack_sort_keys(keys: Keys) -> tuple[Floats, Ids]:
    log_p = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return log_p.astype(np.float64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


# Random numbers -------------------------------------------------------------------------------


def rng_key(seed: int, token_id: int, probe: str, attempt: int) -> int:
    """Returns the 64-bit key of one attempt's random numbers."""
    text = f"{seed}\0{token_id}\0{probe}\0{attempt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def gumbel_noise(keys: int | Keys, positions: int | Keys, candidates: Ids) -> Floats:
    """Returns standard Gumbel noise for candidate token ids at one position.

    The candidate with the largest log-probability plus noise is a sample from the distribution
    (Gumbel-max trick: Maddison, Tarlow, Minka 2014, arXiv 1411.0030).

    Args:
        keys: The `rng_key` of each attempt, `(A, 1)`, or one for all.
        positions: Index of each token within its continuation, `(A, 1)`, or one for all.
        candidates: Token ids, `(A, K)` or `(K,)`.

    Returns:
        float64 in the shape to which `keys` and `candidates` broadcast.
    """
    with np.errstate(over="ignore"):
        start = (
            np.asarray(keys, dtype=np.uint64)
            + (np.asarray(positions, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        )
        mixed = _splitmix(_splitmix(start) + candidates.astype(np.uint64) * _GOLDEN)
    uniform = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    return -np.log(-np.log(uniform))


def _splitmix(x: Keys | np.uint64) -> Keys:
    # The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
    y = np.asarray(x)
    y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return y ^ (y >> np.uint64(31))
