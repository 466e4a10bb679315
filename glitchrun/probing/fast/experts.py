"""A mixture of experts on plain tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glitchrun.probing.fast.shape import Experts, is_float


def add_experts(mlp: Experts, x: Tensor, total: Tensor) -> None:
    """Adds the chosen experts' mixture for (N, H) to `total` (N, H).

    Each position adds up its experts in the order of their numbers, whatever else is in the batch.
    """
    odds = F.linear(x, mlp.router.to(x.dtype)).float().softmax(dim=-1)
    weights, chosen = odds.topk(mlp.chosen, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    for expert in chosen.unique().tolist():
        rows, slots = torch.where(chosen == expert)
        gate, up = _matrix(mlp.experts, "gate_up_proj", x[rows], expert).chunk(2, dim=-1)
        result = _matrix(mlp.experts, "down_proj", mlp.act(gate) * up, expert)
        total.index_add_(0, rows, result * weights[rows, slots, None].to(x.dtype))


def _matrix(experts: Any, name: str, x: Tensor, expert: int) -> Tensor:
    weight = getattr(experts, name)
    if is_float(weight):
        return F.linear(x, weight[expert].to(x.dtype))
    return weight.multiply(x, expert)  # quantized: in the dtype of x
