"""A forward pass over the Llama shape, written out on plain tensors.

What makes it fast: only the positions after the shared prefix are run; in the last layer only the
last position goes on once its keys and values are known; every product is one large 2-D one, added
to the residual stream in place; scratch memory is used again by every layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glitchrun.probing.fast.cache import Cache, mask
from glitchrun.probing.fast.experts import add_experts
from glitchrun.probing.fast.shape import Attention, Dense, Layer, Norm, Shape
from glitchrun.probing.fast.workspace import Workspace

_WIDENED_ROWS = 16384
"""Rows of a narrow matrix widened at a time: a head of 250,000 would be a gigabyte."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (S, D) of the positions of a pass."""


def last_logits(shape: Shape, ids: Tensor, cache: Cache, space: Workspace) -> Tensor:
    """Next-token logits (B, V) after appending ids (B, S) to a cache, in `space.dtype`."""
    rows, steps = ids.shape
    x = F.embedding(ids.flatten(), shape.embedding).to(space.dtype)  # (B * S, H)
    positions = torch.arange(cache.length, cache.length + steps, device=x.device)
    rotation = rotation_of(shape, positions, x)
    *body, final = enumerate(shape.layers)
    for index, layer in body:
        _attend(layer, x, rotation, cache, index, space)
        add_mlp(layer, x, space)
    x = _finish(final, x.view(rows, steps, -1), rotation, cache, space)
    cache.length += steps
    return project(shape.head, rms(x, shape.norm, space), space)


def rotation_of(shape: Shape, positions: Tensor, like: Tensor) -> Rotation:
    """Cosines and sines for positions (S,), in the dtype of `like`."""
    cosine, sine = shape.rotary(like[:1, None], positions[None])
    return cosine[0], sine[0]


def _finish(
    final: tuple[int, Layer], x: Tensor, rotation: Rotation, cache: Cache, space: Workspace
) -> Tensor:
    """The last layer for (B, S, H): the other positions only give keys and values. (B, H)"""
    index, layer = final
    rows, steps, _ = x.shape
    normed = rms(x.flatten(0, 1), layer.norm, space)
    keys, values = _remember(layer.attention, normed, rotation, cache, index, steps, space)
    last = x[:, -1].contiguous()
    queries = project(layer.attention.q, normed.view(rows, steps, -1)[:, -1].contiguous(), space)
    rotation = (rotation[0][-1:], rotation[1][-1:])
    _add_attention(layer.attention, last, queries, rotation, (keys, values), space)
    add_mlp(layer, last, space)
    return last


def _attend(
    layer: Layer, x: Tensor, rotation: Rotation, cache: Cache, index: int, space: Workspace
) -> None:
    """Adds attention to the residual stream (B * S, H)."""
    attention, steps = layer.attention, len(rotation[0])
    normed = rms(x, layer.norm, space)
    known = _remember(attention, normed, rotation, cache, index, steps, space)
    queries = project(attention.q, normed, space, space.get("queries", len(x), _size(attention)))
    _add_attention(attention, x, queries, rotation, known, space)


def _size(attention: Attention) -> int:
    return attention.heads * attention.width


def _remember(
    attention: Attention,
    normed: Tensor,
    rotation: Rotation,
    cache: Cache,
    index: int,
    steps: int,
    space: Workspace,
) -> tuple[Tensor, Tensor]:
    """Puts keys and values into the cache; returns all of the layer's, (B, groups, T, D)."""
    size = attention.groups * attention.width
    keys = project(attention.k, normed, space, space.get("keys", len(normed), size))
    values = project(attention.v, normed, space, space.get("values", len(normed), size))
    keys = _heads(keys, steps, attention.groups)
    if attention.k_norm:
        keys = rms(keys, attention.k_norm, space, "heads")
    values = _heads(values, steps, attention.groups)
    rotated = rotate(keys, rotation, space.get("rotated", *keys.shape))
    return cache.append(index, rotated.transpose(1, 2), values.transpose(1, 2))


def _add_attention(
    attention: Attention,
    x: Tensor,
    queries: Tensor,
    rotation: Rotation,
    known: tuple[Tensor, Tensor],
    space: Workspace,
) -> None:
    """Adds what queries (N, heads * D) make of keys and values (B, groups, T, D) to x (N, H)."""
    split = _heads(queries, len(rotation[0]), attention.heads)
    if attention.q_norm:
        split = rms(split, attention.q_norm, space, "heads")
    rotated = rotate(split, rotation, space.get("rotated", *split.shape))
    length = known[0].shape[2]
    mixed = F.scaled_dot_product_attention(
        rotated.transpose(1, 2),
        *known,
        attn_mask=mask(len(rotation[0]), length, attention.window, x.device),
        scale=attention.scale,
        enable_gqa=attention.heads != attention.groups,
    )
    add_projected(attention.o, mixed.transpose(1, 2).reshape(len(x), -1), x, space)


def _heads(x: Tensor, steps: int, heads: int) -> Tensor:
    """(B * S, heads * D) to (B, S, heads, D)."""
    return x.view(len(x) // steps, steps, heads, -1)


def add_mlp(layer: Layer, x: Tensor, space: Workspace) -> None:
    """Adds the MLP, or the experts, to the residual stream (N, H)."""
    mlp, normed = layer.mlp, rms(x, layer.mlp_norm, space)
    if not isinstance(mlp, Dense):
        add_experts(mlp, normed, x)
        return
    inner = space.get("inner", len(x), mlp.size)
    gate = project(mlp.gate, normed, space, inner)
    up = project(mlp.up, normed, space, space.get("up", len(x), mlp.size))
    add_projected(mlp.down, _gated(mlp, gate, up, space), x, space)


def _gated(mlp: Dense, gate: Tensor, up: Tensor, space: Workspace) -> Tensor:
    """The activation of `gate` times `up`; both are used up."""
    if mlp.silu and space.kernels is not None:
        product: Tensor = space.kernels.gated(gate, up)
        return product
    activated = F.silu(gate, inplace=True) if mlp.silu else mlp.act(gate)
    return torch.mul(activated, up, out=up)


def rms(x: Tensor, norm: Norm, space: Workspace, name: str = "normed") -> Tensor:
    """RMS norm over the last dimension of (..., H), its mean taken in float32.

    Lives in `space` under `name`.
    """
    if x.is_cuda:  # one kernel there; on a CPU torch has none that is faster than the steps below
        return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.epsilon)
    wide = x if x.dtype == torch.float32 else x.float()
    mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean.add_(norm.epsilon).rsqrt_().to(x.dtype)
    return torch.mul(x, scale, out=space.get(name, *x.shape)).mul_(norm.weight.to(x.dtype))


def normed_heads(
    x: Tensor, norm: Norm | None, attention: Attention, space: Workspace, name: str
) -> Tensor:
    """(N, heads * D) with the norm of each head applied, where there is one; as (N, heads * D)."""
    if norm is None:
        return x
    return rms(x.view(len(x), -1, attention.width), norm, space, name).view(len(x), -1)


def rotate(x: Tensor, rotation: Rotation, out: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of (B, S, heads, D)."""
    cosine, sine = (part[:, None] for part in rotation)  # (S, 1, D)
    half = x.shape[-1] // 2
    torch.mul(x, cosine, out=out)
    out[..., :half].addcmul_(x[..., half:], sine[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sine[..., half:])
    return out


def project(linear: Any, x: Tensor, space: Workspace, out: Tensor | None = None) -> Tensor:
    """A linear layer of (N, K) in the dtype of `x`, whatever its weights are stored in: (N, R).

    `out` is used where that saves memory; the result is what is returned.
    """
    if not isinstance(linear, nn.Linear):
        return linear(x)  # a quantized layer: it multiplies in the dtype of x
    if linear.weight.dtype == x.dtype:
        out = torch.mm(x, linear.weight.t(), out=out)
    else:
        out = out if out is not None else x.new_empty(len(x), len(linear.weight))
        _multiply_widened(linear.weight, x, space, out)
    return out if linear.bias is None else out.add_(linear.bias.to(x.dtype))


def _multiply_widened(weight: Tensor, x: Tensor, space: Workspace, out: Tensor) -> None:
    """Puts `x` times `weight` (R, K), widened some rows at a time, into `out` (N, R)."""
    for start in range(0, len(weight), _WIDENED_ROWS):
        part = weight[start : start + _WIDENED_ROWS]
        wide = space.get("weight", *part.shape).copy_(part)
        if len(part) == len(weight):
            torch.mm(x, wide.t(), out=out)
        else:
            out[:, start : start + len(part)] = x @ wide.t()


def add_projected(linear: Any, x: Tensor, total: Tensor, space: Workspace) -> None:
    """Adds a linear layer of (N, K) to `total` (N, R)."""
    if not isinstance(linear, nn.Linear):
        total.add_(linear(x))
        return
    weight = linear.weight
    if weight.dtype != x.dtype:
        weight = space.get("weight", *weight.shape).copy_(weight)
    total.addmm_(x, weight.t())
    if linear.bias is not None:
        total.add_(linear.bias.to(x.dtype))
