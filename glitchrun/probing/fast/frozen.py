"""The forward pass with a frozen suffix, for screening: it runs two positions per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glitchrun.probing.fast.buffers import KVCache, Workspace
from glitchrun.probing.fast.forward import embed, head_logits
from glitchrun.probing.fast.layers import (
    Rotation,
    Rotations,
    add_mlp,
    add_output,
    cap,
    project,
    rms_norm,
    rotate,
    rotation_of,
)
from glitchrun.probing.fast.llama_layout import AttentionLayout, LayerLayout, LlamaLayout, RmsNorm


@dataclass(frozen=True, eq=False, slots=True)
class FrozenCache:
    """The parts that all rows of a screen share: prefix, frozen suffix and last id."""

    last: int
    """The suffix's last id."""
    prefix_length: int
    keys_values: list[tuple[Tensor, Tensor]]
    """For each layer, keys and values of the prefix and of the frozen suffix,
    `(num_kv_heads, T, D)`."""

    @property
    def positions(self) -> tuple[int, int]:
        """The positions of the token and of the last id."""
        return self.prefix_length, self.keys_values[0][0].shape[1] + 1


def freeze_cache(cache: KVCache, prefix_length: int, last: int) -> FrozenCache:
    """Averages a cache of prefix, calibration token and suffix over its rows.

    Args:
        cache: One row per calibration token; without the last id of the suffix.
        prefix_length: Positions before the token.
        last: The last id of the suffix.
    """
    keys_values = [
        (
            mean_suffix(keys, prefix_length, cache.length),
            mean_suffix(values, prefix_length, cache.length),
        )
        for keys, values in zip(cache.keys, cache.values, strict=True)
    ]
    return FrozenCache(last, prefix_length, keys_values)


def mean_suffix(buffer: Tensor, prefix_length: int, length: int) -> Tensor:
    """Returns keys or values of the prefix, and the mean of those after the token.

    Args:
        buffer: Those of one layer, `(B, num_kv_heads, capacity, D)`.
        prefix_length: Positions before the token.
        length: Positions that are filled.

    Returns:
        `(num_kv_heads, length - 1, D)`.
    """
    mean = buffer[:, :, prefix_length + 1 : length].mean(dim=0)
    return torch.cat([buffer[0, :, :prefix_length], mean], dim=1)  # (num_kv_heads, T, D)


def frozen_suffix_logits(
    layout: LlamaLayout, frozen: FrozenCache, tokens: Tensor, workspace: Workspace
) -> Tensor:
    """Returns approximate next-token logits `(B, V)` for tokens `(B,)`.

    Only the token and the last id are run. The keys and values of all other positions are the same
    for every row, so attention to them is one product for the whole batch.
    """
    ids = torch.stack([tokens, torch.full_like(tokens, frozen.last)], dim=1)
    x = embed(layout, ids, workspace)  # (2B, H)
    positions = torch.tensor(frozen.positions, device=tokens.device)
    rotations = rotation_of(layout, positions, x)
    for index, layer in enumerate(layout.layers):
        attend_frozen(layer, x, rotations, frozen, index, workspace)
        add_mlp(layer, x, workspace)
    last = x.view(len(tokens), 2, -1)[:, 1].contiguous()
    return head_logits(layout, last, workspace)


def attend_frozen(
    layer: LayerLayout,
    x: Tensor,
    rotations: Rotations,
    frozen: FrozenCache,
    index: int,
    workspace: Workspace,
) -> None:
    """Adds a layer's attention to the residual stream `(2B, H)` of a screen.

    Args:
        layer: The layer.
        x: The residual stream of each row's token and last id, changed in place.
        rotations: Cosines and sines of these two positions, by rotary embedding.
        frozen: Keys and values of the other positions, `(num_kv_heads, T, D)` for each layer.
        index: The layer's place in `frozen`.
        workspace: Scratch memory.
    """
    normed = rms_norm(x, layer.norm, workspace)
    attention = layer.attention
    rotation = rotations[attention.rope]
    mixed = _attend_frozen(attention, normed, rotation, frozen, index, workspace)
    add_output(attention.o, attention.out_norm, mixed, x, workspace)


def _attend_frozen(
    attention: AttentionLayout,
    normed: Tensor,
    rotation: Rotation,
    frozen: FrozenCache,
    index: int,
    workspace: Workspace,
) -> Tensor:
    """Attention of `(2B, H)` to the frozen positions and to the two of its own row.

    Returns `(2B, num_heads * D)`. In the letters of the products, b is the row, q the query, k the
    key, g the KV head, h the query head of that KV head, and d the dimension.
    """
    num_kv_heads, head_dim = attention.num_kv_heads, attention.head_dim
    rows, per_kv_head = len(normed) // 2, attention.num_heads // num_kv_heads
    size = (rows, 2, num_kv_heads, -1, head_dim)  # b q g h d
    queries = _rotated_heads(attention.q, attention.q_norm, normed, rotation, workspace, head_dim)
    own_keys = _rotated_heads(attention.k, attention.k_norm, normed, rotation, workspace, head_dim)
    own_values = project(attention.v, normed, workspace).view(size)[:, :, :, 0]  # b k g d
    keys, values = frozen.keys_values[index]
    split = queries.view(size)
    # g, b * q * h, d: one product with the frozen keys per KV head
    flat = split.permute(2, 0, 1, 3, 4).reshape(num_kv_heads, -1, head_dim)
    to_frozen = (flat @ keys.transpose(1, 2)).view(num_kv_heads, rows, 2, per_kv_head, -1)
    to_own = torch.einsum("bqghd,bkgd->gbqhk", split, own_keys.view(size)[:, :, :, 0])
    scores = torch.cat([to_frozen, to_own], dim=-1) * attention.scale
    _mask_scores(cap(scores, attention.softcap), frozen, attention.window)
    weights = scores.float().softmax(dim=-1).to(values.dtype)  # 4 times as fast as in bfloat16
    frozen_weights, own_weights = weights[..., :-2], weights[..., -2:]
    mixed = (frozen_weights.flatten(1, 3) @ values).view(num_kv_heads, rows, 2, per_kv_head, -1)
    mixed = mixed + torch.einsum("gbqhk,bkgd->gbqhd", own_weights, own_values)
    return mixed.permute(1, 2, 0, 3, 4).reshape(2 * rows, -1)


def _rotated_heads(
    linear: object,
    norm: RmsNorm | None,
    normed: Tensor,
    rotation: Rotation,
    workspace: Workspace,
    head_dim: int,
) -> Tensor:
    """Projects `(2B, H)` to `(B, 2, heads, D)`, applies the norm of each head, and rotates."""
    x = project(linear, normed, workspace).view(len(normed) // 2, 2, -1, head_dim)
    if norm is not None:
        x = rms_norm(x, norm, workspace, "heads")
    return rotate(x, rotation, torch.empty_like(x))


def _mask_scores(scores: Tensor, frozen: FrozenCache, window: int | None) -> None:
    """Masks scores `(num_kv_heads, B, 2, heads, T + 2)` in place.

    The token attends to what is before it and to itself, the last id to everything, both only
    within the window.
    """
    token, last = frozen.positions
    shared = [p for p in range(last) if p != token]
    keys = torch.tensor([*shared, token, last], device=scores.device)
    for query, own in enumerate((token, last)):
        hidden = keys > own
        if window is not None:
            hidden |= keys <= own - window
        scores[:, :, query].masked_fill_(hidden, -torch.inf)
