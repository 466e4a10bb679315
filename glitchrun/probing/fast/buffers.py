"""Tensors that passes write into: the KV cache and scratch memory."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from glitchrun.plan.passes import CACHE_HEADROOM
from glitchrun.probing.fast.llama_layout import LlamaLayout


@dataclass(slots=True)
class KVCache:
    """Keys and values of a batch of equally long rows, in buffers that grow in place."""

    keys: list[Tensor]
    """For each layer `(B, num_kv_heads, capacity, D)`, of which `length` positions are filled."""
    values: list[Tensor]
    """As `keys`."""
    length: int = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values `(B, num_kv_heads, S, D)` after the filled positions of a layer.

        The caller increments `length` once every layer has been appended to.

        Returns:
            All keys and values of the layer, `(B, num_kv_heads, length + S, D)`.
        """
        end = self.length + keys.shape[2]
        if end > self.keys[layer].shape[2]:
            self.keys[layer] = _longer(self.keys[layer], end)
            self.values[layer] = _longer(self.values[layer], end)
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> KVCache:
        """Returns a new cache of the rows at indices `(R,)`, with room for more positions."""
        return KVCache(
            [_selected(keys, rows, self.length) for keys in self.keys],
            [_selected(values, rows, self.length) for values in self.values],
            self.length,
        )

    def take(self, rows: Tensor) -> KVCache:
        """Returns `select(rows)` for `(R,)`, but frees this cache layer by layer: it is used up."""
        taken = KVCache([], [], self.length)
        for old, new in ((self.keys, taken.keys), (self.values, taken.values)):
            while old:
                new.append(_selected(old.pop(0), rows, self.length))
        return taken

    def repeat(self, rows: int) -> KVCache:
        """Returns a new cache of `rows` copies of the first row, with room for more positions."""
        return KVCache(
            [_repeated(keys, rows, self.length) for keys in self.keys],
            [_repeated(values, rows, self.length) for values in self.values],
            self.length,
        )


def empty_cache(layout: LlamaLayout, dtype: torch.dtype, device: torch.device) -> KVCache:
    """Returns a cache of one row and no positions."""

    def buffers() -> list[Tensor]:
        parts = [layer.attention for layer in layout.layers]
        sizes = [(1, part.num_kv_heads, 0, part.head_dim) for part in parts]
        return [torch.empty(size, dtype=dtype, device=device) for size in sizes]

    return KVCache(buffers(), buffers())


def _longer(buffer: Tensor, end: int) -> Tensor:
    rows, num_kv_heads, capacity, head_dim = buffer.shape
    longer = buffer.new_empty(rows, num_kv_heads, end + CACHE_HEADROOM, head_dim)
    longer[:, :, :capacity] = buffer
    return longer


def _selected(buffer: Tensor, rows: Tensor, length: int) -> Tensor:
    _, num_kv_heads, _, head_dim = buffer.shape
    out = buffer.new_empty(len(rows), num_kv_heads, length + CACHE_HEADROOM, head_dim)
    torch.index_select(buffer[:, :, :length], 0, rows, out=out[:, :, :length])
    return out


def _repeated(buffer: Tensor, rows: int, length: int) -> Tensor:
    _, num_kv_heads, _, head_dim = buffer.shape
    out = buffer.new_empty(rows, num_kv_heads, length + CACHE_HEADROOM, head_dim)
    out[:, :, :length] = buffer[:1, :, :length]
    return out


class Workspace:
    """Named scratch tensors that every layer of a pass reuses; they grow on demand.

    A fresh tensor of some megabytes costs page faults at its first use. On a CPU they take as long
    as the elementwise operation that fills it.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, kernels: ModuleType | None = None
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.kernels = kernels
        """The module `triton_kernels`, or None if they cannot run here."""
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, *size: int) -> Tensor:
        """Returns a contiguous tensor of the given size, such as `(B, S, H)`.

        Its contents are undefined, and the tensor that `name` returned before is overwritten.
        """
        numel = torch.Size(size).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < numel:
            self._buffers[name] = buffer = torch.empty(numel, dtype=self.dtype, device=self.device)
        return buffer[:numel].view(size)
