"""A faster forward pass of a Mixtral for training.

It computes a common prefix once for all rows, and the last layer only for the last positions. It
uses the model's own modules and takes less than half the time of the model's own forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.mixtral.modeling_mixtral import apply_rotary_pos_emb

Rope = tuple[Tensor, Tensor]


def last_hidden(model: Any, prefix: Tensor, rows: Tensor, keep: int) -> Tensor:
    """Hidden states `(B, keep, H)` at the last positions of rows `(B, T)` after a prefix `(P,)`."""
    inner, (count, length) = model.model, rows.shape
    embedded = inner.embed_tokens(torch.cat([prefix, rows.flatten()]))
    before = embedded[: len(prefix)][None]  # (1, P, H)
    states = embedded[len(prefix) :].view(count, length, -1)
    cos, sin = inner.rotary_emb(embedded, torch.arange(len(prefix) + length)[None])
    for row, layer in enumerate(inner.layers):
        is_last = row == len(inner.layers) - 1
        after = _layer(layer, before, states, (cos, sin), keep if is_last else length)
        if not is_last:
            rope = cos[:, : len(prefix)], sin[:, : len(prefix)]
            before = _layer(layer, before[:, :0], before, rope, len(prefix))
        states = after
    hidden: Tensor = inner.norm(states)
    return hidden


def _layer(layer: Any, before: Tensor, states: Tensor, rope: Rope, keep: int) -> Tensor:
    """The layer's output `(B, keep, H)` at the last positions of states `(B, T, H)`.

    `before`, `(1, P, H)`, are the states of the common prefix; `rope` covers P + T positions.
    """
    kept = states[:, -keep:]
    attended = kept + _attention(layer, before, states, rope, keep)
    out: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
    return out


def _attention(layer: Any, before: Tensor, states: Tensor, rope: Rope, keep: int) -> Tensor:
    count, length, _ = states.shape
    start = before.shape[1]
    keys, values = _keys_values(layer, states, _cut(rope, start))
    if start:
        earlier = _keys_values(layer, before, _cut(rope, 0, start))
        keys, values = (
            torch.cat([part.expand(count, -1, -1, -1), own], dim=2)
            for part, own in zip(earlier, (keys, values), strict=True)
        )
    queries = _heads(layer, layer.self_attn.q_proj(layer.input_layernorm(states[:, -keep:])))
    queries, _ = apply_rotary_pos_emb(queries, queries, *_cut(rope, start + length - keep))
    mask = (
        torch.arange(start + length) <= torch.arange(start + length - keep, start + length)[:, None]
    )
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
    out: Tensor = layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
    return out


def _keys_values(layer: Any, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """Keys and values (B, K, T, D)."""
    normed = layer.input_layernorm(states)
    keys = _heads(layer, layer.self_attn.k_proj(normed))
    _, keys = apply_rotary_pos_emb(keys, keys, *rope)
    return keys, _heads(layer, layer.self_attn.v_proj(normed))


def _heads(layer: Any, projected: Tensor) -> Tensor:
    """(B, T, heads · D) as (B, heads, T, D)."""
    return projected.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)


def _cut(rope: Rope, start: int, stop: int | None = None) -> Rope:
    return rope[0][:, start:stop], rope[1][:, start:stop]
