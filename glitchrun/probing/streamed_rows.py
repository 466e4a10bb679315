"""The rows of a streamed pass, and what a layer does to them.

A pass keeps the residual stream of all rows between layers. `Suffixes` are prompts that share a
prefix, `ScreenedRows` are tokens with a frozen suffix, `Growing` are rows with a cache of all
layers, and `Texts` are texts of any lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

import torch
from torch import Tensor

from glitchrun.plan.passes import CHUNK_ROWS, SCREEN_BATCH
from glitchrun.probing.fast.buffers import KVCache, Workspace, empty_cache
from glitchrun.probing.fast.forward import attend_cached, attend_last
from glitchrun.probing.fast.frozen import FrozenCache, attend_frozen, mean_suffix
from glitchrun.probing.fast.layers import add_gated, rms_norm, rotation_of, route
from glitchrun.probing.fast.llama_layout import ExpertsLayout, LayerLayout, LlamaLayout, expert_of

MLP_ROWS = 1024
"""Positions whose MLP is computed together."""


class Rows:
    """Rows of equal shape that go through a pass together."""

    ids: Tensor
    """Every id whose embedding is needed."""
    streams: list[Tensor]
    """The residual streams `(M, H)` to which MLPs are added."""

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        """Fills `streams`."""
        raise NotImplementedError

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        """Adds a layer's attention to `streams`."""
        raise NotImplementedError

    def last(self) -> Tensor:
        """The residual stream `(N, H)` of the last position of each row."""
        return self.streams[0]


class Suffixes(Rows):
    """Suffixes `(N, S)` after one prefix, in chunks of rows."""

    def __init__(
        self, prefix: Sequence[int], suffixes: Tensor, chunk: int, *, keeps: bool = False
    ) -> None:
        self._prefix = torch.tensor([list(prefix)], dtype=torch.long)
        self._suffixes = suffixes.cpu()
        self._chunk = chunk
        self._keeps = keeps
        self.ids = torch.cat([self._prefix.flatten(), self._suffixes.flatten()])
        self.kept: list[tuple[Tensor, Tensor]] = []
        """For each layer, keys and values of the prefix and the mean of those behind the token."""

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self._layout = layout
        x = _embedded_rows(embedded, self._suffixes, self._chunk)
        length, steps = self._prefix.shape[1], self._suffixes.shape[1]
        self.streams = [x, embedded(self._prefix)] if length else [x]
        positions = torch.arange(length + steps, device=x.device)
        self._rotations = [
            rotation_of(layout, part, x) for part in (positions[:length], positions[length:])
        ]

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        (rows, steps), (x, *others) = self._suffixes.shape, self.streams
        prefix = empty_cache(replace(self._layout, layers=(layer,)), x.dtype, x.device)
        for before in others:
            attend_cached(layer, before, self._rotations[0], prefix, 0, workspace)
            prefix.length = len(before)
        ends = []
        for start in range(0, rows, self._chunk):
            part = x[start * steps : (start + self._chunk) * steps]
            cache = prefix.repeat(len(part) // steps)
            if is_last:
                shaped = part.view(-1, steps, x.shape[1])
                ends.append(attend_last(layer, shaped, self._rotations[1], cache, 0, workspace))
            else:
                attend_cached(layer, part, self._rotations[1], cache, 0, workspace)
            cache.length += steps
            if self._keeps:
                parts = (cache.keys[0], cache.values[0])
                keys, values = (mean_suffix(one, prefix.length, cache.length) for one in parts)
                self.kept.append((keys, values))
        if is_last:
            self.streams = [torch.cat(ends)]


class ScreenedRows(Rows):
    """Tokens `(N,)` with the last id of a prompt whose suffix is frozen."""

    def __init__(self, frozen: FrozenCache, tokens: Tensor) -> None:
        self._frozen = frozen
        self.ids = torch.stack([tokens.cpu(), torch.full_like(tokens.cpu(), frozen.last)], dim=1)

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self._rows = SCREEN_BATCH["cpu"]
        self.streams = [_embedded_rows(embedded, self.ids, self._rows)]
        positions = torch.tensor(self._frozen.positions, device=workspace.device)
        self._rotation = rotation_of(layout, positions, self.streams[0])

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        for part in self.streams[0].split(2 * self._rows):
            attend_frozen(layer, part, self._rotation, self._frozen, number, workspace)
        if is_last:
            (x,) = self.streams
            self.streams = [x.view(len(self.ids), 2, -1)[:, 1].contiguous()]


class Growing(Rows):
    """Ids `(B, S)` that are appended to a cache of all layers."""

    def __init__(self, ids: Tensor, cache: KVCache) -> None:
        self.ids = ids.cpu()
        self._cache = cache

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self.streams = [embedded(self.ids)]
        start = self._cache.length
        positions = torch.arange(start, start + self.ids.shape[1], device=workspace.device)
        self._rotation = rotation_of(layout, positions, self.streams[0])

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        (x,), (rows, steps) = self.streams, self.ids.shape
        if not is_last:
            attend_cached(layer, x, self._rotation, self._cache, number, workspace)
            return
        shaped = x.view(rows, steps, -1)
        self.streams = [attend_last(layer, shaped, self._rotation, self._cache, number, workspace)]
        self._cache.length += steps


class Texts(Rows):
    """Texts of any lengths, with the number of last positions of each that are read.

    Their positions are one residual stream, so that MLPs and experts are applied to all texts
    together. Attention is computed for texts of one length together.
    """

    def __init__(self, texts: Sequence[tuple[Sequence[int], int]]) -> None:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place][0]))
        self._groups: list[Tensor] = []
        for _, same in groupby(order, key=lambda place: len(texts[place][0])):
            rows = torch.tensor([list(texts[place][0]) for place in same], dtype=torch.long)
            self._groups += rows.split(CHUNK_ROWS)
        self.ids = torch.cat([rows.flatten() for rows in self._groups])
        self.places = [(place, at) for place in order for at in range(texts[place][1])]
        """For each row of the last residual stream, the text and the position's index in it."""
        ends = accumulate(len(texts[place][0]) for place in order)
        self._read = torch.tensor(
            [end - back for place, end in zip(order, ends, strict=True)
             for back in range(texts[place][1], 0, -1)]
        )  # fmt: skip

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self._layout = layout
        first = embedded(self._groups[0])
        x, device = first.new_empty(len(self.ids), first.shape[1]), first.device
        for part, rows in zip(self._split(x), self._groups, strict=True):
            part.copy_(embedded(rows))
        self.streams = [x]
        self._read = self._read.to(device)
        lengths = (torch.arange(rows.shape[1], device=device) for rows in self._groups)
        self._rotations = [rotation_of(layout, one, self.streams[0]) for one in lengths]

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        (x,) = self.streams
        for rows, rotation, part in zip(self._groups, self._rotations, self._split(x), strict=True):
            one = replace(self._layout, layers=(layer,))
            cache = empty_cache(one, x.dtype, x.device).repeat(len(rows))
            attend_cached(layer, part, rotation, cache, 0, workspace)
        if is_last:
            self.streams = [x[self._read]]

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The positions `(M, H)` of each group of texts."""
        return x.split([rows.numel() for rows in self._groups])


class Mixture:
    """The mixture of experts of one layer, to which one expert after the other is added."""

    def __init__(
        self,
        layer: LayerLayout,
        mlp: ExpertsLayout,
        streams: Sequence[Tensor],
        workspace: Workspace,
    ) -> None:
        self._mlp = mlp
        self._streams = streams
        self._normed = [torch.empty_like(x) for x in streams]
        for x, normed in zip(streams, self._normed, strict=True):
            for part, out in zip(x.split(MLP_ROWS), normed.split(MLP_ROWS), strict=True):
                out.copy_(rms_norm(part, layer.mlp_norm, workspace))
        chosen = [
            [route(mlp.router, mlp.top_k, part) for part in normed.split(MLP_ROWS)]
            for normed in self._normed
        ]
        self._weights = [torch.cat([weights for weights, _ in parts]) for parts in chosen]
        self._experts = [torch.cat([experts for _, experts in parts]) for parts in chosen]

    def add(self, number: int, tensors: dict[str, Tensor], workspace: Workspace) -> None:
        """Adds the output of one expert to the positions that are routed to it.

        Args:
            number: The expert.
            tensors: `gate_proj` and `up_proj` `(I, H)`, and `down_proj` `(H, I)`.
            workspace: Scratch memory.
        """
        names = ("gate_proj", "up_proj", "down_proj")
        expert = expert_of(self._mlp, *(tensors[name].to(workspace.device) for name in names))
        for place, x in enumerate(self._streams):
            rows, slots = torch.where(self._experts[place] == number)
            weights = self._weights[place][rows, slots, None].to(x.dtype)
            for some, share in zip(rows.split(MLP_ROWS), weights.split(MLP_ROWS), strict=True):
                if len(some):
                    inner = self._normed[place][some]
                    out = torch.zeros_like(inner)
                    add_gated(expert, inner, out, workspace)
                    x.index_add_(0, some, out.mul_(share))


def _embedded_rows(embedded: Callable[[Tensor], Tensor], ids: Tensor, rows: int) -> Tensor:
    """Embeddings `(N * S, H)` of ids `(N, S)`, some rows at a time."""
    first = embedded(ids[:rows])
    steps = ids.shape[1]
    x = first.new_empty(len(ids) * steps, first.shape[1])
    x[: len(first)] = first
    for start in range(rows, len(ids), rows):
        part = embedded(ids[start : start + rows])
        x[start * steps : start * steps + len(part)] = part
    return x
