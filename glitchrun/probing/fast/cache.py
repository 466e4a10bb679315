"""Keys and values of a batch of equally long rows, in buffers that grow in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glitchrun.plan.batch_sizes import CACHE_HEADROOM
from glitchrun.probing.fast.shape import Shape


@dataclass(slots=True)
class Cache:
    """For each layer keys and values, `(B, groups, capacity, D)`, of which `length` are filled."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds `(B, groups, S, D)` after the filled positions; returns all of that layer's.

        `length` is moved by the caller once every layer has been appended to.
        """
        end = self.length + keys.shape[2]
        if end > self.keys[layer].shape[2]:
            self.keys[layer] = _longer(self.keys[layer], end)
            self.values[layer] = _longer(self.values[layer], end)
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> Cache:
        """The given rows, `(N,)`, each as often as it is named, with room for more positions."""
        return Cache(
            [_selected(keys, rows, self.length) for keys in self.keys],
            [_selected(values, rows, self.length) for values in self.values],
            self.length,
        )

    def repeat(self, rows: int) -> Cache:
        """The first row so many times, with room for more positions."""
        return Cache(
            [_repeated(keys, rows, self.length) for keys in self.keys],
            [_repeated(values, rows, self.length) for values in self.values],
            self.length,
        )


def _longer(buffer: Tensor, end: int) -> Tensor:
    rows, groups, capacity, width = buffer.shape
    longer = buffer.new_empty(rows, groups, end + CACHE_HEADROOM, width)
    longer[:, :, :capacity] = buffer
    return longer


def _selected(buffer: Tensor, rows: Tensor, length: int) -> Tensor:
    _, groups, _, width = buffer.shape
    made = buffer.new_empty(len(rows), groups, length + CACHE_HEADROOM, width)
    torch.index_select(buffer[:, :, :length], 0, rows, out=made[:, :, :length])
    return made


def _repeated(buffer: Tensor, rows: int, length: int) -> Tensor:
    _, groups, _, width = buffer.shape
    made = buffer.new_empty(rows, groups, length + CACHE_HEADROOM, width)
    made[:, :, :length] = buffer[:1, :, :length]
    return made


def empty(shape: Shape, dtype: torch.dtype, device: torch.device) -> Cache:
    """A cache for one row with nothing in it."""

    def buffers() -> list[Tensor]:
        parts = [layer.attention for layer in shape.layers]
        sizes = [(1, part.groups, 0, part.width) for part in parts]
        return [torch.empty(size, dtype=dtype, device=device) for size in sizes]

    return Cache(buffers(), buffers())


def mask(queries: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of `length` positions each of the last `queries` may see, `(queries, length)`.

    None where one query may see all.
    """
    if queries == 1 and (window is None or length <= window):
        return None
    own = torch.arange(length - queries, length, device=device)[:, None]
    seen = torch.arange(length, device=device)[None, :]
    allowed = seen <= own
    return allowed if window is None else allowed & (seen > own - window)
