"""Triton kernels for a GPU: attention with a shared prefix, the gated product, row statistics.

On an H100, a pass of a small model that consists of single tensor operations spends three quarters
of its time moving activations: rotation, copies of keys and values, attention masks, statistics.
Each kernel here reads its inputs once and writes its result once. Sums are taken in float32, and
products of float32 in float32 (no TF32).

`fast_backend.load_kernels` decides whether this module is imported. `backend_selection` compares
its results with those of transformers before it is used.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERY_ROWS = 64
_KEY_ROWS = 32
_GATED_BLOCK = 2048
_VOCABULARY_BLOCK = 4096


@triton.jit
def _rotated(first, second, cosine, sine, half: tl.constexpr, own, mask):  # type: ignore[no-untyped-def]
    """Both halves of rows with rotary embeddings, whose angles are at index `own` `(rows, 1)`."""
    lane = tl.arange(0, half)[None, :]
    angles = own * (2 * half) + lane
    cos_first = tl.load(cosine + angles, mask=mask, other=0.0).to(tl.float32)
    cos_second = tl.load(cosine + angles + half, mask=mask, other=0.0).to(tl.float32)
    sin_first = tl.load(sine + angles, mask=mask, other=0.0).to(tl.float32)
    sin_second = tl.load(sine + angles + half, mask=mask, other=0.0).to(tl.float32)
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (
        (a * cos_first - b * sin_first).to(first.dtype),
        (b * cos_second + a * sin_second).to(first.dtype),
    )


@triton.jit
def _attended(  # type: ignore[no-untyped-def]
    q_first, q_second, k_first, k_second, value, allowed, scale, best, total, mixed
):
    """Adds a block of keys to the running softmax (Milakov, Gimelshein 2018, arXiv 1805.02867)."""
    scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
    scores += tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
    scores = tl.where(allowed, scores * scale, -1e30)
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    weights = tl.where(allowed, tl.exp(scores - new_best[:, None]), 0.0)
    kept = tl.exp(best - new_best)
    total = total * kept + tl.sum(weights, axis=1)
    mixed = mixed * kept[:, None]
    mixed += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return new_best, total, mixed


@triton.jit
def _attend_kernel(  # type: ignore[no-untyped-def]
    queries, keys, values, prefix_keys, prefix_values, cosine, sine, out,
    prefix, window, scale, prefix_stride,
    steps, querying, per_kv_head, kv_heads,
    half: tl.constexpr, query_rows: tl.constexpr, key_rows: tl.constexpr,
):  # fmt: skip
    """A block of one row's queries of one KV head, over the prefix and the row's own keys.

    queries `(B * querying, kv_heads * per_kv_head * D)`; keys, values `(B * steps, kv_heads * D)`,
    not rotated yet; prefix_keys, prefix_values `(kv_heads, prefix, D)`, rotated, with KV heads
    `prefix_stride` apart; cosine, sine `(steps, D)`. Query i of a row is at position
    prefix + steps - querying + i.
    """
    row, kv_head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    head_dim: tl.constexpr = 2 * half
    lane = tl.arange(0, half)[None, :]
    query = block * query_rows + tl.arange(0, query_rows)
    head, step = query // querying, query % querying
    valid = (head < per_kv_head)[:, None]
    at = (row * querying + step) * (kv_heads * per_kv_head * head_dim) + (
        kv_head * per_kv_head + head
    ) * head_dim
    pointer = queries + at[:, None] + lane
    first = tl.load(pointer, mask=valid, other=0.0)
    second = tl.load(pointer + half, mask=valid, other=0.0)
    own = steps - querying + step
    first, second = _rotated(first, second, cosine, sine, half, own[:, None], valid)
    position = prefix + own

    best = tl.full([query_rows], -1e30, tl.float32)
    total = tl.zeros([query_rows], tl.float32)
    mixed = tl.zeros([query_rows, head_dim], tl.float32)
    wide = tl.arange(0, head_dim)[None, :]
    for start in range(0, prefix, key_rows):
        key = start + tl.arange(0, key_rows)
        known = (key < prefix)[:, None]
        base = kv_head * prefix_stride + key[:, None] * head_dim
        k_first = tl.load(prefix_keys + base + lane, mask=known, other=0.0)
        k_second = tl.load(prefix_keys + base + half + lane, mask=known, other=0.0)
        value = tl.load(prefix_values + base + wide, mask=known, other=0.0)
        allowed = (key < prefix)[None, :] & (key[None, :] > position[:, None] - window)
        best, total, mixed = _attended(
            first, second, k_first, k_second, value, allowed, scale, best, total, mixed
        )
    for start in range(0, steps, key_rows):
        key = start + tl.arange(0, key_rows)
        known = (key < steps)[:, None]
        base = (row * steps + key[:, None]) * (kv_heads * head_dim) + kv_head * head_dim
        k_first = tl.load(keys + base + lane, mask=known, other=0.0)
        k_second = tl.load(keys + base + half + lane, mask=known, other=0.0)
        k_first, k_second = _rotated(k_first, k_second, cosine, sine, half, key[:, None], known)
        value = tl.load(values + base + wide, mask=known, other=0.0)
        seen = prefix + key
        allowed = (seen[None, :] <= position[:, None]) & (
            seen[None, :] > position[:, None] - window
        )
        best, total, mixed = _attended(
            first, second, k_first, k_second, value, allowed, scale, best, total, mixed
        )
    mixed = mixed / tl.maximum(total, 1e-30)[:, None]
    tl.store(out + at[:, None] + wide, mixed.to(out.dtype.element_ty), mask=valid)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: tuple[Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    scale: float,
    window: int | None,
    out: Tensor,
) -> Tensor:
    """Rotates queries and keys, and attends to a shared prefix and to each row's own positions.

    Args:
        queries: `(B * A, num_heads * D)`, of the last A of S positions of each row, not rotated.
        keys: `(B * S, num_kv_heads * D)`, not rotated.
        values: `(B * S, num_kv_heads * D)`.
        prefix: Rotated keys and values of the positions before, `(num_kv_heads, P, D)`; P may be 0.
        rotation: Cosines and sines of the S positions, `(S, D)`.
        scale: Factor of the attention scores.
        window: Positions that a query attends to, itself included; None for all before it.
        out: `(B * A, num_heads * D)`, written to.

    Returns:
        `out`.
    """
    prefix_keys, prefix_values = prefix
    kv_heads, length, head_dim = prefix_keys.shape
    steps = len(rotation[0])
    rows = len(keys) // steps
    querying, per_kv_head = len(queries) // rows, queries.shape[1] // (kv_heads * head_dim)
    blocks = triton.cdiv(querying * per_kv_head, _query_rows(querying * per_kv_head))
    _attend_kernel[(rows, kv_heads, blocks)](
        queries, keys, values, prefix_keys, prefix_values,
        rotation[0].contiguous(), rotation[1].contiguous(), out,
        length, window or 1 << 30, scale, prefix_keys.stride(0),
        steps, querying, per_kv_head, kv_heads,
        half=head_dim // 2, query_rows=_query_rows(querying * per_kv_head), key_rows=_KEY_ROWS,
    )  # fmt: skip
    return out


def _query_rows(wanted: int) -> int:
    """Queries of a block: the next power of two, from 16 to 64."""
    return min(_QUERY_ROWS, max(16, triton.next_power_of_2(wanted)))


@triton.jit
def _gated_kernel(gate, up, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    x = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(up + at, (x / (1 + tl.exp(-x)) * y).to(up.dtype.element_ty), mask=inside)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Returns SiLU(gate) * up, which overwrites `up`; both contiguous, `(N, I)`."""
    size = up.numel()
    _gated_kernel[(triton.cdiv(size, _GATED_BLOCK),)](gate, up, size, block=_GATED_BLOCK)
    return up


@triton.jit
def _measure_kernel(  # type: ignore[no-untyped-def]
    logits, targets, out_p, out_rank, out_entropy, out_argmax, out_best, out_own, out_other,
    stride, size, block: tl.constexpr,
):  # fmt: skip
    """One row: one loop for the maximum, the sum, the rank and the best other token, and one for
    the entropy."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    target = tl.load(targets + row)
    own = tl.load(base + target).to(tl.float32)
    best, total, other = -float("inf"), 0.0, -float("inf")
    argmax, above = size, 0
    for start in range(0, size, block):
        at = start + tl.arange(0, block)
        x = tl.load(base + at, mask=at < size, other=-float("inf")).to(tl.float32)
        top = tl.max(x, axis=0)
        new_best = tl.maximum(best, top)
        lowest = tl.min(tl.where(x == top, at, size), axis=0)
        argmax = tl.where(top > best, lowest, argmax)
        total = total * tl.exp(best - new_best) + tl.sum(tl.exp(x - new_best), axis=0)
        best = new_best
        above += tl.sum((x > own).to(tl.int32), axis=0)
        other = tl.maximum(other, tl.max(tl.where(at == target, -float("inf"), x), axis=0))
    entropy = 0.0
    for start in range(0, size, block):
        at = start + tl.arange(0, block)
        x = tl.load(base + at, mask=at < size, other=-float("inf")).to(tl.float32)
        p = tl.exp(x - best) / total
        entropy -= tl.sum(tl.where(at < size, p * tl.log(p + 1e-6), 0.0), axis=0)
    tl.store(out_p + row, tl.exp(own - best) / total)
    tl.store(out_rank + row, above + 1)
    tl.store(out_entropy + row, entropy)
    tl.store(out_argmax + row, argmax)
    tl.store(out_best + row, best)
    tl.store(out_own + row, own)
    tl.store(out_other + row, other)


def row_statistics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Computes the columns of `logit_statistics.from_columns` in one launch.

    Args:
        logits: `(B, V)`.
        targets: Target ids, `(B,)`.

    Returns:
        Columns `(B,)`: p, entropy, best, own and other (the largest logit, the target's, and the
        largest of all others) in float32; rank (from 1) and argmax (the lowest id of the most
        likely tokens) as integers.
    """
    rows, size = logits.shape
    is_integer = {"p": 0, "rank": 1, "entropy": 0, "argmax": 1, "best": 0, "own": 0, "other": 0}
    columns: dict[str, Any] = {
        name: torch.empty(
            rows, dtype=torch.int32 if integer else torch.float32, device=logits.device
        )
        for name, integer in is_integer.items()
    }
    _measure_kernel[(rows,)](
        logits, targets, *columns.values(), logits.stride(0), size, block=_VOCABULARY_BLOCK
    )
    return columns
