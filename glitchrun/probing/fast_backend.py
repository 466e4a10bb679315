"""The fast backend: the interface of `Backend` over written-out forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.fast.buffers import KVCache, Workspace, empty_cache
from glitchrun.probing.fast.forward import cached_logits, shared_prefix_logits
from glitchrun.probing.fast.frozen import freeze_cache, frozen_suffix_logits
from glitchrun.probing.fast.llama_layout import LlamaLayout
from glitchrun.probing.logit_statistics import Statistics, check_finite, from_columns

_MIN_HALF_HEAD = 16
"""Triton multiplies matrices of at least 16 rows and columns."""


class FastBackend(Backend):
    """Runs a model of the Llama layout on plain tensors.

    On a CPU without matrix units for bfloat16, narrow and quantized weights are widened one matrix
    at a time and multiplied in float32. On two AVX-512 cores that was twice as fast as bfloat16,
    and no near-tie has to be re-evaluated in another arithmetic.
    """

    def __init__(self, model: LoadedModel, layout: LlamaLayout) -> None:
        super().__init__(model)
        self._layout = layout
        self._kernels = load_kernels(layout, self.device)
        self._prefix_caches: dict[tuple[tuple[int, ...], bool], KVCache] = {}
        self._workspaces: dict[torch.dtype, Workspace] = {}

    @property
    def has_kernels(self) -> bool:
        """Whether passes without a cache use GPU kernels."""
        return self._kernels is not None

    def disable_kernels(self) -> None:
        """Uses torch's own operations from now on."""
        self._kernels = None
        self._prefix_caches.clear()
        self._workspaces.clear()

    @property
    def arithmetic(self) -> torch.dtype:
        return arithmetic_on(self.device, self.model.compute_dtype)

    @torch.no_grad()
    def last_logits(
        self, prefix: Sequence[int], suffixes: Tensor, *, float32: bool = False
    ) -> Tensor:
        if self._kernels is None:
            return super().last_logits(prefix, suffixes, float32=float32)
        return check_finite(self._shared_prefix_logits(prefix, suffixes, float32).float())

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
        logits = self._shared_prefix_logits(prefix, suffixes, float32)[: len(targets)]
        return from_columns(self._kernels.row_statistics(logits, targets), targets)

    def _shared_prefix_logits(
        self, prefix: Sequence[int], suffixes: Tensor, float32: bool
    ) -> Tensor:
        """Logits `(B, V)` in the arithmetic of the pass."""
        ids = suffixes.to(self.device)
        cache = self._prefix_cache(prefix, float32)
        return shared_prefix_logits(self._layout, ids, cache, self._workspace(float32))

    @torch.no_grad()
    def start(self, prefix: Sequence[int], rows: int, *, float32: bool = False) -> KVCache:
        return self._prefix_cache(prefix, float32).repeat(rows)

    def _prefix_cache(self, prefix: Sequence[int], float32: bool) -> KVCache:
        """Keys and values of a prefix, for one row."""
        key = (tuple(prefix), float32)
        if key not in self._prefix_caches:
            workspace = self._workspace(float32)
            cache = empty_cache(self._layout, workspace.dtype, workspace.device)
            if prefix:
                ids = torch.tensor([list(prefix)], device=self.device)
                cached_logits(self._layout, ids, cache, workspace)
            self._prefix_caches[key] = cache
        return self._prefix_caches[key]

    @torch.no_grad()
    def step(self, ids: Tensor, cache: KVCache, *, float32: bool = False) -> tuple[Tensor, KVCache]:
        workspace = self._workspace(float32)
        logits = cached_logits(self._layout, ids.to(self.device), cache, workspace)
        return check_finite(logits.float()), cache

    @torch.no_grad()
    def select(self, cache: KVCache, rows: Tensor) -> KVCache:
        return cache.select(rows.to(self.device))

    @torch.no_grad()
    def freeze(self, prefix: Sequence[int], suffix: Sequence[int], tokens: Tensor) -> Any:
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        _, cache = self.step(ids, self.start(prefix, len(tokens)))
        return freeze_cache(cache, len(prefix), suffix[-1])

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        ids = tokens.to(self.device)
        logits = frozen_suffix_logits(self._layout, frozen, ids, self._workspace(False))
        return check_finite(logits.float())

    def _workspace(self, float32: bool) -> Workspace:
        dtype = torch.float32 if float32 else self.arithmetic
        return self._workspaces.setdefault(dtype, Workspace(dtype, self.device, self._kernels))


def arithmetic_on(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Returns the arithmetic of passes over weights of a dtype, written out as here."""
    if device.type == "cpu" and not _has_bfloat16_units():
        return torch.float32
    return dtype


def load_kernels(layout: LlamaLayout, device: torch.device) -> ModuleType | None:
    """Returns the module of Triton kernels, or None if they cannot run this model here."""
    halves = {layer.attention.head_dim // 2 for layer in layout.layers}
    if device.type != "cuda" or any(n < _MIN_HALF_HEAD or n & (n - 1) for n in halves):
        return None
    try:
        from glitchrun.probing.fast import triton_kernels
    except ImportError:  # CUDA builds of torch for Linux include Triton; others may not
        return None
    return triton_kernels


def _has_bfloat16_units() -> bool:
    """Whether this CPU has matrix units for bfloat16 (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
