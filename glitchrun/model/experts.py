"""The forward pass of fused experts whose matrices are quantized.

transformers 5 keeps a layer's experts as 3-D parameters and lets the computation be chosen by name
(`experts_implementation`); this is one more such choice, for every architecture that offers it
(its experts class carries `@use_experts_implementation`). Background: bitsandbytes issue 1849,
fused experts are skipped in silence by its own integration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from glitchrun.model.quantized import QuantizedMatrices

IMPLEMENTATION = "glitchrun_quantized"
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def register() -> None:
    """Make the implementation known to transformers; calling it again changes nothing."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, quantized_experts_forward)


def is_fused_weight(module: Any, name: str) -> bool:
    """Whether parameter `name` of `module` is a stack of expert matrices that can be quantized."""
    parameter = getattr(module, name, None)
    return (
        name in _WEIGHTS
        and hasattr(module, "is_transposed")  # set by @use_experts_implementation
        and isinstance(parameter, nn.Parameter)
        and parameter.dim() == 3
    )


def put_quantized(
    module: Any, name: str, weights: torch.Tensor, kind: type[QuantizedMatrices]
) -> None:
    """Hold `weights` (experts, rows, columns) quantized in place of the parameter `name`."""
    rows_first = weights.transpose(1, 2) if module.is_transposed else weights
    delattr(module, name)
    setattr(module, name, kind.quantize(rows_first))
    # Otherwise transformers would initialize the module's weights, which are no tensors any more.
    module._is_hf_initialized = True


def quantized_experts_forward(
    self: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' mixture for `hidden` (N, H), with chosen experts and weights (N, K): (N, H).

    One expert's matrix exists in floats at a time, and only for experts that a row chose. Each row
    adds up its experts in the order of their numbers, whatever else is in the batch.
    """
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert in top_k_index.unique().tolist():
        if expert >= self.num_experts:  # a slot that chose none
            continue
        rows, slots = torch.where(top_k_index == expert)
        result = _one_expert(self, hidden[rows], expert)
        weighted = result.float() * top_k_weights[rows, slots, None].float()
        total = total.index_add(0, rows, weighted)
    return total.to(hidden.dtype)


def _one_expert(self: Any, x: torch.Tensor, expert: int) -> torch.Tensor:
    """What `expert` makes of the rows `x` (n, H)."""
    inward = "gate_up_proj" if self.has_gate else "up_proj"
    inner = _project(self, inward, x, expert)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    result = _project(self, "down_proj", inner, expert)
    return self.post_expert_norm(result) if self.has_post_expert_norm else result


def _project(self: Any, name: str, x: torch.Tensor, expert: int) -> torch.Tensor:
    product: torch.Tensor = getattr(self, name).multiply(x, expert)
    return product + getattr(self, f"{name}_bias")[expert] if self.has_bias else product
