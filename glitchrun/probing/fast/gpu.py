"""A forward pass on a GPU over suffixes behind one shared prefix, of which nothing is kept.

Verification needs the last logits and no more. So the keys and values of the prefix are read where
they are instead of being copied for every row, and those of the suffix live for one layer only.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from glitchrun.probing.fast.cache import Cache
from glitchrun.probing.fast.forward import (
    Rotation,
    add_mlp,
    add_projected,
    normed_heads,
    project,
    rms,
    rotation_of,
)
from glitchrun.probing.fast.shape import Attention, Shape
from glitchrun.probing.fast.workspace import Workspace

_LEAST_HALF = 16
"""Triton multiplies matrices of at least 16 rows and columns."""


def load_kernels(shape: Shape, device: torch.device) -> ModuleType | None:
    """The module of Triton kernels; None where they cannot run this shape on this device."""
    halves = {layer.attention.width // 2 for layer in shape.layers}
    if device.type != "cuda" or any(n < _LEAST_HALF or n & (n - 1) for n in halves):
        return None
    try:
        from glitchrun.probing.fast import kernels
    except ImportError:  # CUDA builds of torch for Linux bring Triton; others need not
        return None
    return kernels


def last_logits_behind(shape: Shape, ids: Tensor, prefix: Cache, space: Workspace) -> Tensor:
    """Next-token logits after each row of ids behind a prefix.

    Args:
        shape: The model.
        ids: Token ids, `(B, S)`.
        prefix: Keys and values of one row; stays as it is.
        space: Scratch memory whose `kernels` are loaded.

    Returns:
        `(B, V)`, in `space.dtype`.
    """
    rows, steps = ids.shape
    x = F.embedding(ids.flatten(), shape.embedding).to(space.dtype)  # (B * S, H)
    positions = torch.arange(prefix.length, prefix.length + steps, device=x.device)
    rotation = rotation_of(shape, positions, x)
    final = len(shape.layers) - 1
    for index, layer in enumerate(shape.layers):
        normed = rms(x, layer.norm, space)
        asked = normed
        if index == final:  # the other positions only give keys and values
            asked = _last_of_rows(normed, rows)
            x = _last_of_rows(x, rows)
        mixed = _attend(layer.attention, asked, normed, rotation, prefix, index, space)
        add_projected(layer.attention.o, mixed, x, space)
        add_mlp(layer, x, space)
    return project(shape.head, rms(x, shape.norm, space), space)


def _last_of_rows(x: Tensor, rows: int) -> Tensor:
    """(B * S, H) to (B, H)."""
    return x.view(rows, -1, x.shape[-1])[:, -1].contiguous()


def _attend(
    attention: Attention,
    asked: Tensor,
    normed: Tensor,
    rotation: Rotation,
    prefix: Cache,
    index: int,
    space: Workspace,
) -> Tensor:
    """What queries of `asked` (N, H) attend to among the prefix and `normed` (B * S, H)."""
    size = attention.groups * attention.width
    queries = project(
        attention.q,
        asked,
        space,
        space.get("queries", len(asked), attention.heads * attention.width),
    )
    keys = project(attention.k, normed, space, space.get("keys", len(normed), size))
    values = project(attention.v, normed, space, space.get("values", len(normed), size))
    queries = normed_heads(queries, attention.q_norm, attention, space, "normed queries")
    keys = normed_heads(keys, attention.k_norm, attention, space, "normed keys")
    known = prefix.keys[index], prefix.values[index]
    mixed: Tensor = space.kernels.attend(  # type: ignore[union-attr]
        queries,
        keys,
        values,
        (known[0][0, :, : prefix.length], known[1][0, :, : prefix.length]),
        rotation,
        attention.scale,
        attention.window,
        space.get("mixed", *queries.shape),
    )
    return mixed
