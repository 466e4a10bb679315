"""The fast backend: the interface of `Backend` over written-out forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import psutil
import torch
from torch import Tensor

from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.arithmetic import Arithmetic, choose, converted
from glitchrun.probing.backend import Backend
from glitchrun.probing.fast.buffers import KVCache, Workspace, empty_cache
from glitchrun.probing.fast.forward import cached_logits, shared_prefix_logits
from glitchrun.probing.fast.frozen import FrozenCache, freeze_cache, frozen_suffix_logits
from glitchrun.probing.fast.llama_layout import LlamaLayout
from glitchrun.probing.fast.ragged import RowPlaces, SharedPrefixes, Slots, ragged_logits
from glitchrun.probing.logit_statistics import Statistics, check_finite, from_columns, scores

_MIN_HALF_HEAD = 16
"""Triton multiplies matrices of at least 16 rows and columns."""
_COPIES = 4
"""A screen gets a copy of the weights in its own format if this many would fit into free memory."""


@dataclass(frozen=True, eq=False, slots=True)
class FrozenPrompt:
    """A frozen suffix, and the weights to screen with."""

    cache: FrozenCache
    layout: LlamaLayout
    dtype: torch.dtype
    """The dtype of activations."""


class FastBackend(Backend):
    """Runs a model of the Llama layout on plain tensors.

    On a CPU, narrow and quantized weights are widened one matrix at a time and multiplied in
    float32 where that is faster, so that no near-tie has to be re-evaluated in another arithmetic.
    """

    def __init__(
        self, model: LoadedModel, layout: LlamaLayout, arithmetic: Arithmetic | None = None
    ) -> None:
        super().__init__(model)
        self._layout = layout
        self.chosen = arithmetic or choose(layout, model.compute_dtype, model.device)
        """The arithmetic of passes and of screens."""
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
        return self.chosen.passes

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
    def select(self, cache: KVCache, rows: Tensor, *, used_up: bool = False) -> KVCache:
        rows = rows.to(self.device)
        return cache.take(rows) if used_up else cache.select(rows)

    @property
    def layout(self) -> LlamaLayout:
        """The model's layers."""
        return self._layout

    @torch.no_grad()
    def ragged_step(
        self, ids: Tensor, places: RowPlaces, slots: Slots, prefixes: SharedPrefixes
    ) -> Tensor:
        """Appends an id to each row; see `ragged_logits`. Returns `(R, V)` in float32."""
        workspace = self._workspace(False)
        logits = ragged_logits(self._layout, ids, places, slots, prefixes, workspace)
        return check_finite(logits.float())

    @torch.no_grad()
    def freeze(
        self,
        prefix: Sequence[int],
        suffix: Sequence[int],
        tokens: Tensor,
        *,
        coarse: bool = False,
    ) -> Any:
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        _, cache = self.step(ids, self.start(prefix, len(tokens)))
        frozen = freeze_cache(cache, len(prefix), suffix[-1])
        format_ = self.chosen.screen if coarse else _name(self.arithmetic)
        if format_ == _name(self.arithmetic) or not self._has_room():
            return FrozenPrompt(frozen, self._layout, self.arithmetic)
        dtype = torch.bfloat16 if format_ == "bfloat16" else torch.float32
        pairs = [(keys.to(dtype), values.to(dtype)) for keys, values in frozen.keys_values]
        layout = self._layout if format_ == "float32" else converted(self._layout, format_)
        return FrozenPrompt(replace(frozen, keys_values=pairs), layout, dtype)

    def _has_room(self) -> bool:
        """Whether there is room for a copy of the weights, which has at most two bytes for each."""
        numel = sum(tensor.numel() for tensor in self.model.module.parameters())
        return bool(_COPIES * 2 * numel < psutil.virtual_memory().available)

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        return check_finite(self._screened(frozen, tokens).float())

    @torch.no_grad()
    def screen_scores(self, frozen: Any, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return scores(self._screened(frozen, tokens)[:count], tokens[:count])

    def _screened(self, frozen: FrozenPrompt, tokens: Tensor) -> Tensor:
        """Approximate logits `(B, V)` in the arithmetic of the screen."""
        ids, workspace = tokens.to(self.device), self._workspace_of(frozen.dtype)
        return frozen_suffix_logits(frozen.layout, frozen.cache, ids, workspace)

    def _workspace(self, float32: bool) -> Workspace:
        return self._workspace_of(torch.float32 if float32 else self.arithmetic)

    def _workspace_of(self, dtype: torch.dtype) -> Workspace:
        return self._workspaces.setdefault(dtype, Workspace(dtype, self.device, self._kernels))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_kernels(layout: LlamaLayout, device: torch.device) -> ModuleType | None:
    """Returns the module of Triton kernels, or None if they cannot run this model here."""
    halves = {layer.attention.head_dim // 2 for layer in layout.layers}
    if device.type != "cuda" or any(n < _MIN_HALF_HEAD or n & (n - 1) for n in halves):
        return None
    if any(layer.attention.softcap is not None for layer in layout.layers):
        return None
    try:
        from glitchrun.probing.fast import triton_kernels
    except ImportError:  # CUDA builds of torch for Linux include Triton; others may not
        return None
    return triton_kernels
