"""The forward passes over the Llama layout whose suffixes are run as a whole.

`cached_logits` appends to a KV cache, for sampling and for verification on a CPU.
`shared_prefix_logits` keeps nothing and needs GPU kernels, for verification on a GPU.

What makes them fast: only positions after the shared prefix are run, and in the last layer only the
last position continues once its keys and values are known.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glitchrun.probing.fast.buffers import KVCache, Workspace
from glitchrun.probing.fast.layers import (
    Rotation,
    Rotations,
    add_mlp,
    add_output,
    attention_mask,
    cap,
    norm_heads,
    project,
    rms_norm,
    rotate,
    rotation_of,
    split_heads,
)
from glitchrun.probing.fast.llama_layout import AttentionLayout, LayerLayout, LlamaLayout

# 1. Behind a KV cache -------------------------------------------------------------------------


def cached_logits(layout: LlamaLayout, ids: Tensor, cache: KVCache, workspace: Workspace) -> Tensor:
    """Appends ids `(B, S)` to a cache; returns next-token logits `(B, V)` in `workspace.dtype`."""
    rows, steps = ids.shape
    x = embed(layout, ids, workspace)  # (B * S, H)
    positions = torch.arange(cache.length, cache.length + steps, device=x.device)
    rotations = rotation_of(layout, positions, x)
    *body, final = enumerate(layout.layers)
    for index, layer in body:
        attend_cached(layer, x, rotations, cache, index, workspace)
        add_mlp(layer, x, workspace)
    last = attend_last(final[1], x.view(rows, steps, -1), rotations, cache, final[0], workspace)
    add_mlp(final[1], last, workspace)
    cache.length += steps
    return head_logits(layout, last, workspace)


def embed(layout: LlamaLayout, ids: Tensor, workspace: Workspace) -> Tensor:
    """Returns the residual stream `(B * S, H)` before the first layer, for ids `(B, S)`."""
    x = F.embedding(ids.flatten(), layout.embedding).to(workspace.dtype)
    if layout.embedding_scale is not None:
        x.mul_(torch.tensor(layout.embedding_scale, dtype=x.dtype))
    return x


def head_logits(
    layout: LlamaLayout, x: Tensor, workspace: Workspace, out: Tensor | None = None
) -> Tensor:
    """Returns logits `(B, V)` of the residual stream `(B, H)` after the last layer.

    Args:
        layout: The model.
        x: The residual stream.
        workspace: Scratch memory.
        out: `(B, V)`, used if that saves memory. Only the returned tensor has the result.
    """
    logits = project(layout.head, rms_norm(x, layout.norm, workspace), workspace, out)
    return cap(logits, layout.softcap)


def attend_last(
    layer: LayerLayout,
    x: Tensor,
    rotations: Rotations,
    cache: KVCache,
    index: int,
    workspace: Workspace,
) -> Tensor:
    """Attention of the last layer; positions before the last only give keys and values.

    Args:
        layer: The last layer.
        x: The residual stream, `(B, S, H)`.
        rotations: Cosines and sines of the S positions, by rotary embedding.
        cache: Keys and values of the positions before; these are appended to it.
        index: The layer's place in the cache.
        workspace: Scratch memory.

    Returns:
        The residual stream of the last positions, `(B, H)`.
    """
    rows, steps, _ = x.shape
    rotation = rotations[layer.attention.rope]
    normed = rms_norm(x.flatten(0, 1), layer.norm, workspace)
    keys_values = _append(layer.attention, normed, rotation, cache, index, workspace)
    last = x[:, -1].contiguous()
    last_normed = normed.view(rows, steps, -1)[:, -1].contiguous()
    queries = project(layer.attention.q, last_normed, workspace)
    rotation = (rotation[0][-1:], rotation[1][-1:])
    _add_attention(layer.attention, last, queries, rotation, keys_values, workspace)
    return last


def attend_cached(
    layer: LayerLayout,
    x: Tensor,
    rotations: Rotations,
    cache: KVCache,
    index: int,
    workspace: Workspace,
) -> None:
    """Adds a layer's attention to the residual stream `(B * S, H)`.

    Args:
        layer: The layer.
        x: The residual stream, changed in place.
        rotations: Cosines and sines of the S positions, by rotary embedding.
        cache: Keys and values of the positions before; these are appended to it. The caller
            increments its length once every layer has run.
        index: The layer's place in the cache.
        workspace: Scratch memory.
    """
    attention, rotation = layer.attention, rotations[layer.attention.rope]
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
    mask = attention_mask(len(rotation[0]), length, attention.window, x.device)
    if attention.softcap is None:
        mixed = F.scaled_dot_product_attention(
            rotated.transpose(1, 2),
            *keys_values,
            attn_mask=mask,
            scale=attention.scale,
            enable_gqa=attention.num_heads != attention.num_kv_heads,
        )
    else:
        mixed = _attend_capped(attention, rotated.transpose(1, 2), *keys_values, mask)
    flat = mixed.transpose(1, 2).reshape(len(x), -1)
    add_output(attention.o, attention.out_norm, flat, x, workspace)


def _attend_capped(
    attention: AttentionLayout, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention with a soft cap, which torch's own function does not have.

    Args:
        attention: Sizes, scale and cap.
        queries: `(B, num_heads, S, D)`.
        keys: `(B, num_kv_heads, T, D)`.
        values: As `keys`.
        mask: `(S, T)`, where a query attends; None for everywhere.

    Returns:
        `(B, num_heads, S, D)`.
    """
    grouped = queries.unflatten(1, (attention.num_kv_heads, -1))  # (B, kv, group, S, D)
    scores = (grouped * attention.scale) @ keys[:, :, None].transpose(-1, -2)
    cap(scores, attention.softcap)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    weights = scores.float().softmax(dim=-1).to(values.dtype)
    return (weights @ values[:, :, None]).flatten(1, 2)


# 2. Behind a shared prefix, on a GPU ----------------------------------------------------------


def shared_prefix_logits(
    layout: LlamaLayout, ids: Tensor, prefix: KVCache, workspace: Workspace
) -> Tensor:
    """Returns next-token logits after a prefix and each row of ids.

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
    x = embed(layout, ids, workspace)  # (B * S, H)
    positions = torch.arange(prefix.length, prefix.length + steps, device=x.device)
    rotations = rotation_of(layout, positions, x)
    final = len(layout.layers) - 1
    for index, layer in enumerate(layout.layers):
        normed = rms_norm(x, layer.norm, workspace)
        querying = normed
        if index == final:  # positions before the last only give keys and values
            querying = _last_of_rows(normed, rows)
            x = _last_of_rows(x, rows)
        rotation = rotations[layer.attention.rope]
        mixed = _attend_shared(
            layer.attention, querying, normed, rotation, prefix, index, workspace
        )
        add_output(layer.attention.o, layer.attention.out_norm, mixed, x, workspace)
        add_mlp(layer, x, workspace)
    return head_logits(layout, x, workspace)


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
