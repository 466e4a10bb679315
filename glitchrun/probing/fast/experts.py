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
    if _can_group(mlp, x):
        _add_grouped(mlp, x, weights, chosen, total)
    else:
        _add_in_turn(mlp, x, weights, chosen, total)


def _add_in_turn(mlp: Experts, x: Tensor, weights: Tensor, chosen: Tensor, total: Tensor) -> None:
    """One expert after the other. The counts are the only thing that waits for a GPU."""
    order = chosen.flatten().argsort(stable=True)  # (N * K,) slots, by expert
    counts = chosen.flatten().bincount(minlength=len(mlp.router)).tolist()
    for expert, slots in enumerate(order.split(counts)):
        if len(slots) == 0:
            continue
        rows = slots // chosen.shape[1]
        gate, up = _matrix(mlp.experts, "gate_up_proj", x[rows], expert).chunk(2, dim=-1)
        result = _matrix(mlp.experts, "down_proj", mlp.act(gate) * up, expert)
        total.index_add_(0, rows, result * weights.flatten()[slots, None].to(x.dtype))


def _can_group(mlp: Experts, x: Tensor) -> bool:
    """Whether torch multiplies all experts in one launch: bfloat16 on a GPU."""
    weight = mlp.experts.gate_up_proj
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and is_float(weight)
        and weight.dtype == x.dtype
        and hasattr(F, "grouped_mm")
    )


def _add_grouped(mlp: Experts, x: Tensor, weights: Tensor, chosen: Tensor, total: Tensor) -> None:
    """All experts together, without a transfer to the CPU."""
    chosen, by_number = chosen.sort(dim=-1)
    weights = weights.gather(-1, by_number)
    order = chosen.flatten().argsort(stable=True)
    ends = chosen.flatten().bincount(minlength=len(mlp.router)).cumsum(0).to(torch.int32)
    taken = x[order // chosen.shape[1]]  # (N * K, H)
    both = F.grouped_mm(taken, mlp.experts.gate_up_proj.transpose(1, 2), offs=ends)
    gate, up = both.chunk(2, dim=-1)
    mixed = F.grouped_mm(mlp.act(gate) * up, mlp.experts.down_proj.transpose(1, 2), offs=ends)
    mixed = mixed * weights.flatten()[order, None].to(x.dtype)
    back = torch.empty_like(mixed)
    back[order] = mixed
    total.add_(back.view(len(x), -1, x.shape[-1]).sum(dim=1))


def _matrix(experts: Any, name: str, x: Tensor, expert: int) -> Tensor:
    weight = getattr(experts, name)
    if is_float(weight):
        return F.linear(x, weight[expert].to(x.dtype))
    return weight.multiply(x, expert)  # quantized: in the dtype of x
