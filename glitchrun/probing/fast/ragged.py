"""The pass over rows of different prompts and lengths, one position each, for continuous batching.

Rows share the keys and values of their prompts' prefixes: those are kept once for each prefix, and
attention to them is one product for all rows. Each row keeps only its own positions, in a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glitchrun.probing.fast.buffers import KVCache, Workspace
from glitchrun.probing.fast.forward import embed, head_logits
from glitchrun.probing.fast.layers import (
    Rotation,
    add_mlp,
    add_output,
    cap,
    project,
    rms_norm,
    rotate,
    rotation_of,
)
from glitchrun.probing.fast.llama_layout import AttentionLayout, LlamaLayout, RmsNorm


@dataclass(frozen=True, slots=True)
class Slots:
    """Keys and values of the own positions of rows, those after the shared prefix."""

    keys: list[Tensor]
    """For each layer `(slots, num_kv_heads, capacity, D)`."""
    values: list[Tensor]
    """As `keys`."""

    @property
    def size(self) -> int:
        """Number of slots."""
        return len(self.keys[0])

    def copy(self, source: Slots, origins: Sequence[int], slots: Sequence[int], end: int) -> None:
        """Copies the first `end` positions of slots `origins` of `source`, which may be this, to
        `slots`."""
        if not slots:
            return
        device = self.keys[0].device
        there, here = (torch.tensor(list(some), device=device) for some in (origins, slots))
        for new, old in ((self.keys, source.keys), (self.values, source.values)):
            for to, of in zip(new, old, strict=True):
                to[here, :, :end] = of[there, :, :end]

    def fill(self, cache: KVCache, start: int, slots: Sequence[int]) -> None:
        """Copies the positions of a cache from `start` on, one row to each slot."""
        here = torch.tensor(list(slots), device=self.keys[0].device)
        for new, old in ((self.keys, cache.keys), (self.values, cache.values)):
            for to, of in zip(new, old, strict=True):
                to[here, :, : cache.length - start] = of[:, :, start : cache.length]


def empty_slots(
    layout: LlamaLayout, slots: int, capacity: int, like: Tensor, *, zeros: bool
) -> Slots:
    """Returns slots with room for `capacity` positions, of the kind of `like` `(..., D)`.

    Attention needs finite values even at positions that a row ignores. With `zeros` the slots can
    therefore be attended to at once. Without it, memory is used only when it is written to.
    """
    parts = [layer.attention for layer in layout.layers]
    sizes = [(slots, part.num_kv_heads, capacity, part.head_dim) for part in parts]
    make = like.new_zeros if zeros else like.new_empty
    return Slots([make(size) for size in sizes], [make(size) for size in sizes])


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """The keys and values of several prefixes, one after the other."""

    keys: list[Tensor]
    """For each layer `(num_kv_heads, P, D)`, P positions of all prefixes together."""
    values: list[Tensor]
    """As `keys`."""
    owner: Tensor
    """`(P,)` the number of the prefix of each position."""
    position: Tensor
    """`(P,)` each position within its prefix."""


def join_prefixes(caches: Sequence[KVCache]) -> SharedPrefixes:
    """Returns the prefixes of some caches of one row, numbered in this order."""
    layers = range(len(caches[0].keys))
    device = caches[0].keys[0].device
    lengths = [cache.length for cache in caches]
    return SharedPrefixes(
        [torch.cat([one.keys[i][0, :, : one.length] for one in caches], dim=1) for i in layers],
        [torch.cat([one.values[i][0, :, : one.length] for one in caches], dim=1) for i in layers],
        torch.arange(len(caches)).repeat_interleave(torch.tensor(lengths)).to(device),
        torch.cat([torch.arange(length) for length in lengths]).to(device),
    )


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Where the rows of a pass are in their prompts; row i has slot i. `(R,)` each."""

    prefix: Tensor
    """The number of the row's prefix."""
    start: Tensor
    """Length of that prefix."""
    own: Tensor
    """Positions that the slot has before this pass."""
    length: int
    """Positions of the longest slot after this pass."""


def ragged_logits(
    layout: LlamaLayout,
    ids: Tensor,
    places: RowPlaces,
    slots: Slots,
    prefixes: SharedPrefixes,
    workspace: Workspace,
) -> Tensor:
    """Appends one id to each row.

    Args:
        layout: The model.
        ids: Token ids, `(R,)`.
        places: Where the rows are.
        slots: Own keys and values, appended to.
        prefixes: Keys and values of all prefixes.
        workspace: Scratch memory, which the result is part of.

    Returns:
        Next-token logits `(R, V)`, in `workspace.dtype`.
    """
    x = embed(layout, ids, workspace)  # (R, H)
    rotations = rotation_of(layout, places.start + places.own, x)
    hidden: dict[int | None, Tensor] = {}
    for index, layer in enumerate(layout.layers):
        attention = layer.attention
        if attention.window not in hidden:
            hidden[attention.window] = _hidden(places, prefixes, attention.window)
        normed = rms_norm(x, layer.norm, workspace)
        kept = (slots.keys[index], slots.values[index])
        _append(attention, normed, rotations[attention.rope], kept, places.own, workspace)
        mixed = _attend(
            attention,
            _heads(attention.q, attention.q_norm, normed, rotations[attention.rope], workspace),
            (prefixes.keys[index], prefixes.values[index]),
            (kept[0][: len(ids)], kept[1][: len(ids)]),
            hidden[attention.window],
            workspace,
        )
        add_output(attention.o, attention.out_norm, mixed, x, workspace)
        add_mlp(layer, x, workspace)
    out = None
    if isinstance(layout.head, nn.Linear):  # a new tensor would cost page faults in every pass
        out = workspace.get("logits", len(ids), len(layout.head.weight))
    return head_logits(layout, x, workspace, out)


def _hidden(places: RowPlaces, prefixes: SharedPrefixes, window: int | None) -> Tensor:
    """`(R, 1, 1, P + length)` the positions of all prefixes, and own ones, that a row ignores."""
    own = torch.arange(places.length, device=places.own.device)
    hidden = torch.cat([prefixes.owner != places.prefix[:, None], own > places.own[:, None]], dim=1)
    if window is not None:
        query = (places.start + places.own)[:, None]
        key = torch.cat(
            [prefixes.position.expand(len(query), -1), places.start[:, None] + own], dim=1
        )
        hidden |= key <= query - window
    return hidden[:, None, None]


def _heads(
    linear: object, norm: RmsNorm | None, normed: Tensor, rotation: Rotation, workspace: Workspace
) -> Tensor:
    """Projects `(R, H)` to `(R, heads, D)`, applies the norm of each head, and rotates."""
    head_dim = rotation[0].shape[-1]
    x = project(linear, normed, workspace).view(1, len(normed), -1, head_dim)
    if norm is not None:
        x = rms_norm(x, norm, workspace, "heads")
    return rotate(x, rotation, workspace.get("rotated", *x.shape))[0]


def _append(
    attention: AttentionLayout,
    normed: Tensor,
    rotation: Rotation,
    kept: tuple[Tensor, Tensor],
    own: Tensor,
    workspace: Workspace,
) -> None:
    """Writes the keys and values of `(R, H)` to position `own` of each slot."""
    rows = torch.arange(len(normed), device=own.device)
    kept[0][rows, :, own] = _heads(attention.k, attention.k_norm, normed, rotation, workspace)
    values = project(attention.v, normed, workspace)
    kept[1][rows, :, own] = values.view(len(normed), attention.num_kv_heads, -1)


def _attend(
    attention: AttentionLayout,
    queries: Tensor,
    shared: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    hidden: Tensor,
    workspace: Workspace,
) -> Tensor:
    """Attention of queries `(R, num_heads, D)` to all prefixes and to the row's own positions.

    Args:
        attention: Sizes, scale and cap.
        queries: Rotated; overwritten.
        shared: Keys and values `(num_kv_heads, P, D)`.
        own: Keys and values `(R, num_kv_heads, capacity, D)`.
        hidden: `(R, 1, 1, P + T)` what each row ignores.
        workspace: Scratch memory.

    Returns:
        `(R, num_heads * D)`.
    """
    rows, heads, head_dim = queries.shape
    num_kv_heads, shared_length = attention.num_kv_heads, shared[0].shape[1]
    length = hidden.shape[-1] - shared_length
    grouped = queries.mul_(attention.scale).view(rows, num_kv_heads, -1, head_dim)  # R kv g D
    by_head = grouped.transpose(0, 1).reshape(num_kv_heads, -1, head_dim)  # kv (R g) D
    by_row = grouped.flatten(0, 1)  # (R kv) g D
    own_keys, own_values = (part.flatten(0, 1)[:, :length] for part in own)  # (R kv) T D
    scores = workspace.get("scores", *grouped.shape[:3], shared_length + length)
    shared_scores = (by_head @ shared[0].transpose(1, 2)).view(
        num_kv_heads, rows, -1, shared_length
    )
    scores[..., :shared_length] = shared_scores.transpose(0, 1)
    scores[..., shared_length:] = (by_row @ own_keys.transpose(1, 2)).view(
        rows, num_kv_heads, -1, length
    )
    weights = cap(scores, attention.softcap).masked_fill_(hidden, -torch.inf).softmax(dim=-1)
    own_weights = weights[..., shared_length:].reshape(rows * num_kv_heads, -1, length)
    mixed = (own_weights @ own_values).view(grouped.shape)
    shared_weights = weights[..., :shared_length].transpose(0, 1)  # kv R g P
    from_shared = shared_weights.reshape(num_kv_heads, -1, shared_length) @ shared[1]
    mixed += from_shared.view(num_kv_heads, rows, -1, head_dim).transpose(0, 1)
    return mixed.view(rows, heads * head_dim)
