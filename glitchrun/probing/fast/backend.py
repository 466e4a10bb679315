"""The fast backend: the generic one's interface over a written-out forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend, finite
from glitchrun.probing.fast.cache import Cache, empty
from glitchrun.probing.fast.forward import last_logits
from glitchrun.probing.fast.gpu import last_logits_behind, load_kernels
from glitchrun.probing.fast.screen import frozen_prompt, screen_logits
from glitchrun.probing.fast.shape import Shape
from glitchrun.probing.fast.workspace import Workspace
from glitchrun.probing.statistics import Statistics, from_columns


class FastBackend(Backend):
    """Runs a model of the Llama shape on plain tensors.

    On a CPU without matrix units for bfloat16, narrow and quantized weights are widened one matrix
    at a time and multiplied in float32: on two AVX-512 cores that was twice as fast as bfloat16,
    and no verdict has to be decided again.
    """

    def __init__(self, model: LoadedModel, shape: Shape) -> None:
        super().__init__(model)
        self._shape = shape
        self._kernels = load_kernels(shape, self.device)
        self._filled: dict[tuple[tuple[int, ...], bool], Cache] = {}
        self._spaces: dict[torch.dtype, Workspace] = {}

    @property
    def has_kernels(self) -> bool:
        """Whether passes that keep nothing take kernels of their own."""
        return self._kernels is not None

    def leave_out_kernels(self) -> None:
        """Go on with torch's own operations alone."""
        self._kernels = None
        self._filled.clear()
        self._spaces.clear()

    @property
    def arithmetic(self) -> torch.dtype:
        if self.device.type == "cpu" and not _has_narrow_units():
            return torch.float32
        return self.model.compute_dtype

    @torch.no_grad()
    def last_logits(
        self, prefix: Sequence[int], suffixes: Tensor, *, float32: bool = False
    ) -> Tensor:
        if self._kernels is None:
            return super().last_logits(prefix, suffixes, float32=float32)
        return finite(self._behind(prefix, suffixes, float32).float())

    @torch.no_grad()
    def statistics(
        self,
        prefix: Sequence[int],
        suffixes: Tensor,
        targets: Tensor,
        *,
        float32: bool = False,
    ) -> Statistics:
        if self._kernels is None:
            return super().statistics(prefix, suffixes, targets, float32=float32)
        logits = self._behind(prefix, suffixes, float32)[: len(targets)]
        return from_columns(self._kernels.row_statistics(logits, targets), targets)

    def _behind(self, prefix: Sequence[int], suffixes: Tensor, float32: bool) -> Tensor:
        """Logits `(B, V)` in the arithmetic of the pass, keeping no keys and values."""
        ids = suffixes.to(self.device)
        before = self._prefix(prefix, float32)
        return last_logits_behind(self._shape, ids, before, self._space(float32))

    @torch.no_grad()
    def start(self, prefix: Sequence[int], rows: int, *, float32: bool = False) -> Cache:
        return self._prefix(prefix, float32).repeat(rows)

    def _prefix(self, prefix: Sequence[int], float32: bool) -> Cache:
        """Keys and values of a prefix, for one row."""
        key = (tuple(prefix), float32)
        if key not in self._filled:
            self._filled[key] = self._fill(prefix, float32)
        return self._filled[key]

    def _fill(self, prefix: Sequence[int], float32: bool) -> Cache:
        space = self._space(float32)
        cache = empty(self._shape, space.dtype, space.device)
        if prefix:
            ids = torch.tensor([list(prefix)], device=self.device)
            last_logits(self._shape, ids, cache, space)
        return cache

    @torch.no_grad()
    def step(self, ids: Tensor, cache: Cache, *, float32: bool = False) -> tuple[Tensor, Cache]:
        logits = last_logits(self._shape, ids.to(self.device), cache, self._space(float32))
        return finite(logits.float()), cache

    @torch.no_grad()
    def select(self, cache: Cache, rows: Tensor) -> Cache:
        return cache.select(rows.to(self.device))

    @torch.no_grad()
    def freeze(self, prefix: Sequence[int], suffix: Sequence[int], tokens: Tensor) -> Any:
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        _, cache = self.step(ids, self.start(prefix, len(tokens)))
        return frozen_prompt(cache, len(prefix), suffix[-1])

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        ids = tokens.to(self.device)
        return finite(screen_logits(self._shape, frozen, ids, self._space(False)).float())

    def _space(self, float32: bool) -> Workspace:
        dtype = torch.float32 if float32 else self.arithmetic
        return self._spaces.setdefault(dtype, Workspace(dtype, self.device, self._kernels))


def _has_narrow_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in units of their own (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
