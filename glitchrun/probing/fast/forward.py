"""The three forward passes over the Llama layout.

`cached_logits` appends to a KV cache, for sampling and for verification on a CPU.
`shared_prefix_logits` keeps nothing and needs GPU kernels, for verification on a GPU.
`frozen_suffix_logits` runs two positions per token, for screening.

What makes them fast: only positions behind the shared prefix are run, and in the last layer only
the last position continues once its keys and values are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from glitchrun.probing.fast.buffers import KVCache, Workspace
from glitchrun.probing.fast.layers import (
    Rotation,
    add_mlp,
    add_projected,
    attention_mask,
    norm_heads,
    project,
    rms_norm,
    rotate,
    rotation_of,
    split_heads,
)
from glitchrun.probing.fast.llama_layout import AttentionLayout, LayerLayout, LlamaLayout, RmsNorm

# 1. Behind a KV cache -------------------------------------------------------------------------


def cached_logits(layout: LlamaLayout, ids: Tensor, cache: KVCache, workspace: Workspace) -> Tensor:
    """Appends ids `(B, S)` to a cache; returns next-token logits `(B, V)` in `workspace.dtype`."""
    rows, steps = ids.shape
    x = F.embedding(ids.flatten(), layout.embedding).to(workspace.dtype)  # (B * S, H)
    positions = torch.arange(cache.length, cache.length + steps, device=x.device)
    rotation = rotation_of(layout, positions, x)
    *body, final = enumerate(layout.layers)
    for index, layer in body:
        _attend_cached(layer, x, rotation, cache, index, workspace)
        add_mlp(layer, x, workspace)
    x = _last_layer(final, x.view(rows, steps, -1), rotation, cache, workspace)  # (B, H)
    cache.length += steps
    return project(layout.head, rms_norm(x, layout.norm, workspace), workspace)


def _last_layer(
    final: tuple[int, LayerLayout],
    x: Tensor,
    rotation: Rotation,
    cache: KVCache,
    workspace: Workspace,
) -> Tensor:
    """The last layer for `(B, S, H)`; positions before the last only give keys and values.

    Returns `(B, H)`.
    """
    index, layer = final
    rows, steps, _ = x.shape
    normed = rms_norm(x.flatten(0, 1), layer.norm, workspace)
    keys_values = _append(layer.attention, normed, rotation, cache, index, workspace)
    last = x[:, -1].contiguous()
    last_normed = normed.view(rows, steps, -1)[:, -1].contiguous()
    queries = project(layer.attention.q, last_normed, workspace)
    rotation = (rotation[0][-1:], rotation[1][-1:])
    _add_attention(layer.attention, last, queries, rotation, keys_values, workspace)
    add_mlp(layer, last, workspace)
    return last


def _attend_cached(
    layer: LayerLayout,
    x: Tensor,
    rotation: Rotation,
    cache: KVCache,
    index: int,
    workspace: Workspace,
) -> None:
    """Adds attention to the residual stream `(B * S, H)`."""
    attention = layer.attention
    normed = rms_norm(x, layer.norm, workspace)
    keys_values = _append(attention, normed, rotation, cache, index, workspace)
    size = attention.num_heads * attention.head_dim
    queries = project(attention.q, normed, workspace, workspace.get("queries", len(x), size))
    _add_attention(attention, x, queries, rotation, keys_values, workspace)


def _append(
    attention: AttentionLayout,
    normed: Tensor,
    rotation: Rotation,
    cache: KVCache,
    index: int,
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """Appends the keys and values of `(B * S, H)` to the cache of a layer.

    Returns all of the layer's, `(B, num_kv_heads, T, D)`.
    """
    steps = len(rotation[0])
    keys, values = _keys_values(attention, normed, workspace)
    keys = split_heads(keys, steps, attention.num_kv_heads)
    if attention.k_norm:
        keys = rms_norm(keys, attention.k_norm, workspace, "heads")
    values = split_heads(values, steps, attention.num_kv_heads)
    rotated = rotate(keys, rotation, workspace.get("rotated", *keys.shape))
    return cache.append(index, rotated.transpose(1, 2), values.transpose(1, 2))


def _keys_values(
    attention: AttentionLayout, normed: Tensor, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """Keys and values of `(N, H)`, `(N, num_kv_heads * D)` each, without norm and rotation."""
    size = attention.num_kv_heads * attention.head_dim
    keys = project(attention.k, normed, workspace, workspace.get("keys", len(normed), size))
    values = project(attention.v, normed, workspace, workspace.get("values", len(normed), size))
    return keys, values


def _add_attention(
    attention: AttentionLayout,
    x: Tensor,
    queries: Tensor,
    rotation: Rotation,
    keys_values: tuple[Tensor, Tensor],
    workspace: Workspace,
) -> None:
    """Adds attention of queries `(N, num_heads * D)` to keys and values `(B, num_kv_heads, T, D)`
    to the residual stream x `(N, H)`."""
    split = split_heads(queries, len(rotation[0]), attention.num_heads)
    if attention.q_norm:
        split = rms_norm(split, attention.q_norm, workspace, "heads")
    rotated = rotate(split, rotation, workspace.get("rotated", *split.shape))
    length = keys_values[0].shape[2]
    mixed = F.scaled_dot_product_attention(
        rotated.transpose(1, 2),
        *keys_values,
        attn_mask=attention_mask(len(rotation[0]), length, attention.window, x.device),
        scale=attention.scale,
        enable_gqa=attention.num_heads != attention.num_kv_heads,
    )
    add_projected(attention.o, mixed.transpose(1, 2).reshape(len(x), -1), x, workspace)


# 2. Behind a shared prefix, on a GPU ----------------------------------------------------------


def shared_prefix_logits(
    layout: LlamaLayout, ids: Tensor, prefix: KVCache, workspace: Workspace
) -> Tensor:
    """Returns next-token logits after each row of ids behind a prefix.

    Verification needs the last logits and nothing else. So the prefix's keys and values are read
    where they are, not copied for every row, and those of the suffix live for one layer only.

    Args:
        layout: The model.
        ids: Token ids, `(B, S)`.
        prefix: Keys and values of one row; unchanged.
        workspace: Scratch memory whose `kernels` are loaded.

    Returns:
        `(B, V)`, in `workspace.dtype`.
    """
    rows, steps = ids.shape
    x = F.embedding(ids.flatten(), layout.embedding).to(workspace.dtype)  # (B * S, H)
    positions = torch.arange(prefix.length, prefix.length + steps, device=x.device)
    rotation = rotation_of(layout, positions, x)
    final = len(layout.layers) - 1
    for index, layer in enumerate(layout.layers):
        normed = rms_norm(x, layer.norm, workspace)
        querying = normed
        if index == final:  # positions before the last only give keys and values
            querying = _last_of_rows(normed, rows)
            x = _last_of_rows(x, rows)
        mixed = _attend_shared(
            layer.attention, querying, normed, rotation, prefix, index, workspace
        )
        add_projected(layer.attention.o, mixed, x, workspace)
        add_mlp(layer, x, workspace)
    return project(layout.head, rms_norm(x, layout.norm, workspace), workspace)


def _last_of_rows(x: Tensor, rows: int) -> Tensor:
    return x.view(rows, -1, x.shape[-1])[:, -1].contiguous()  # (B * S, H) to (B, H)


def _attend_shared(
    attention: AttentionLayout,
    querying: Tensor,
    normed: Tensor,
    rotation: Rotation,
    prefix: KVCache,
    index: int,
    workspace: Workspace,
) -> Tensor:
    """Attention of `querying` `(N, H)` to the prefix and to `normed` `(B * S, H)`.

    Returns `(N, num_heads * D)`.
    """
    size = attention.num_heads * attention.head_dim
    queries = project(
        attention.q, querying, workspace, workspace.get("queries", len(querying), size)
    )
    keys, values = _keys_values(attention, normed, workspace)
    queries = norm_heads(queries, attention.q_norm, attention, workspace, "normed queries")
    keys = norm_heads(keys, attention.k_norm, attention, workspace, "normed keys")
    mixed: Tensor = workspace.kernels.attend(  # type: ignore[union-attr]
        queries,
        keys,
        values,
        (
            prefix.keys[index][0, :, : prefix.length],
            prefix.values[index][0, :, : prefix.length],
        ),
        rotation,
        attention.scale,
        attention.window,
        workspace.get("mixed", *queries.shape),
    )
    return mixed


# 3. With a frozen suffix ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class FrozenCache:
    """What all rows of a screen share: prefix, frozen suffix and last id."""

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
        (_frozen(keys, prefix_length, cache.length), _frozen(values, prefix_length, cache.length))
        for keys, values in zip(cache.keys, cache.values, strict=True)
    ]
    return FrozenCache(last, prefix_length, keys_values)


def _frozen(buffer: Tensor, prefix_length: int, length: int) -> Tensor:
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
    x = F.embedding(ids.flatten(), layout.embedding).to(workspace.dtype)  # (2B, H)
    positions = torch.tensor(frozen.positions, device=tokens.device)
    rotation = rotation_of(layout, positions, x)
    for index, layer in enumerate(layout.layers):
        normed = rms_norm(x, layer.norm, workspace)
        mixed = _attend_frozen(layer.attention, normed, rotation, frozen, index, workspace)
        add_projected(layer.attention.o, mixed, x, workspace)
        add_mlp(layer, x, workspace)
    last = x.view(len(tokens), 2, -1)[:, 1].contiguous()
    return project(layout.head, rms_norm(last, layout.norm, workspace), workspace)


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
    _mask_scores(scores, frozen, attention.window)
    weights = scores.softmax(dim=-1)
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
