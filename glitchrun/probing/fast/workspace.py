"""Buffers that every layer of a pass uses again."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


class Workspace:
    """Named scratch tensors, grown when a larger one is asked for.

    A fresh tensor of some megabytes costs page faults at its first use, as long on a CPU as the
    elementwise operation that fills it.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, kernels: ModuleType | None = None
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.kernels = kernels
        """`fast.kernels` where a GPU can run them."""
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape. What it held, and what `name` gave before, is lost."""
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers[name] = buffer = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size].view(shape)
