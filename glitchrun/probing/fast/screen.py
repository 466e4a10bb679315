"""The frozen-suffix screen on plain tensors: two positions for each token, nothing copied for rows.

Keys and values of the prefix and of the frozen suffix are the same for every row, so attention to
them is one product for the whole batch; only the two positions that are run have keys of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from glitchrun.probing.fast.cache import Cache
from glitchrun.probing.fast.forward import (
    Rotation,
    add_mlp,
    add_projected,
    project,
    rms,
    rotate,
    rotation_of,
)
from glitchrun.probing.fast.shape import Attention, Shape
from glitchrun.probing.fast.workspace import Workspace


@dataclass(frozen=True, eq=False, slots=True)
class FrozenPrompt:
    """What every row of a screen shares."""

    last: int
    """The suffix's last id."""
    before: int
    """Positions before the token."""
    shared: list[tuple[Tensor, Tensor]]
    """For each layer keys and values of the prefix and the frozen suffix, `(groups, T, D)`."""

    @property
    def positions(self) -> tuple[int, int]:
        """Where the token and the last id stand."""
        return self.before, self.shared[0][0].shape[1] + 1


def frozen_prompt(cache: Cache, before: int, last: int) -> FrozenPrompt:
    """From a cache that holds prefix, token and suffix but its last id, for calibration tokens."""
    shared = [
        (_shared(keys, before, cache.length), _shared(values, before, cache.length))
        for keys, values in zip(cache.keys, cache.values, strict=True)
    ]
    return FrozenPrompt(last, before, shared)


def _shared(buffer: Tensor, before: int, length: int) -> Tensor:
    """Prefix and the mean over rows of what comes after the token, (groups, T, D)."""
    mean = buffer[:, :, before + 1 : length].mean(dim=0)
    return torch.cat([buffer[0, :, :before], mean], dim=1)


def screen_logits(shape: Shape, prompt: FrozenPrompt, tokens: Tensor, space: Workspace) -> Tensor:
    """Approximate next-token logits (B, V) for tokens (B,)."""
    ids = torch.stack([tokens, torch.full_like(tokens, prompt.last)], dim=1)
    x = F.embedding(ids.flatten(), shape.embedding).to(space.dtype)  # (2B, H)
    positions = torch.tensor(prompt.positions, device=tokens.device)
    rotation = rotation_of(shape, positions, x)
    for index, layer in enumerate(shape.layers):
        normed = rms(x, layer.norm, space)
        mixed = _attend(layer.attention, normed, rotation, prompt, index, space)
        add_projected(layer.attention.o, mixed, x, space)
        add_mlp(layer, x, space)
    last = x.view(len(tokens), 2, -1)[:, 1].contiguous()
    return project(shape.head, rms(last, shape.norm, space), space)


def _attend(
    attention: Attention,
    normed: Tensor,
    rotation: Rotation,
    prompt: FrozenPrompt,
    index: int,
    space: Workspace,
) -> Tensor:
    """What (2B, H) attends to: (2B, heads * D)."""
    rows, per_group = len(normed) // 2, attention.heads // attention.groups
    shape = (rows, 2, attention.groups, -1, attention.width)  # B, 2, groups, heads a group, D
    queries = _turned(attention.q, attention.q_norm, attention.heads, normed, rotation, space)
    own_keys = _turned(attention.k, attention.k_norm, attention.groups, normed, rotation, space)
    own_values = project(attention.v, normed, space).view(shape)[:, :, :, 0]  # B, 2, groups, D
    keys, values = prompt.shared[index]
    split = queries.view(shape)
    # groups, B * 2 * heads a group, D: one product with the shared keys for each group
    flat = split.permute(2, 0, 1, 3, 4).reshape(attention.groups, -1, attention.width)
    to_shared = (flat @ keys.transpose(1, 2)).view(attention.groups, rows, 2, per_group, -1)
    to_own = torch.einsum("bqghd,bkgd->gbqhk", split, own_keys.view(shape)[:, :, :, 0])
    scores = torch.cat([to_shared, to_own], dim=-1) * attention.scale
    _hide(scores, prompt, attention.window)
    weights = scores.softmax(dim=-1)
    there, own = weights[..., :-2], weights[..., -2:]
    mixed = (there.flatten(1, 3) @ values).view(attention.groups, rows, 2, per_group, -1)
    mixed = mixed + torch.einsum("gbqhk,bkgd->gbqhd", own, own_values)
    return mixed.permute(1, 2, 0, 3, 4).reshape(2 * rows, -1)


def _turned(
    linear: object, norm: object, heads: int, normed: Tensor, rotation: Rotation, space: Workspace
) -> Tensor:
    """Projected to heads, normed where the model does, and rotated: (B, 2, heads, D)."""
    x = project(linear, normed, space).view(len(normed) // 2, 2, heads, -1)
    if norm is not None:
        x = rms(x, norm, space, "heads")  # type: ignore[arg-type]
    return rotate(x, rotation, torch.empty_like(x))


def _hide(scores: Tensor, prompt: FrozenPrompt, window: int | None) -> None:
    """Takes away what a position may not see: (groups, B, 2, heads, T + 2), in place.

    The token sees what is before it and itself, the last id everything, within the window.
    """
    token, last = prompt.positions
    shared = [p for p in range(last) if p != token]
    places = torch.tensor([*shared, token, last], device=scores.device)
    for row, own in enumerate((token, last)):
        hidden = places > own
        if window is not None:
            hidden |= places <= own - window
        scores[:, :, row].masked_fill_(hidden, -torch.inf)
