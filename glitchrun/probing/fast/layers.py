"""The parts of a layer of the Llama layout, written out on plain tensors.

Every product is one large 2-D product, its result is added to the residual stream in place, and the
scratch memory of a `Workspace` is reused by every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glitchrun.plan.passes import WIDENED_BYTES
from glitchrun.probing.fast.buffers import Workspace
from glitchrun.probing.fast.llama_layout import (
    AttentionLayout,
    ExpertsLayout,
    LayerLayout,
    LlamaLayout,
    MlpLayout,
    RmsNorm,
)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the positions of a pass, `(S, D)` each."""
Rotations = Mapping[str, Rotation]
"""The rotation of each of a model's rotary embeddings."""


# Norms and rotary embeddings ------------------------------------------------------------------


def rms_norm(x: Tensor, norm: RmsNorm, workspace: Workspace, name: str = "normed") -> Tensor:
    """Returns the RMS norm over the last dimension of `(..., H)`, its mean taken in float32.

    Args:
        x: `(..., H)`.
        norm: Weight and epsilon.
        workspace: Owns the result under `name`.
        name: Name of the scratch tensor.
    """
    weight = (norm.weight.float() + norm.offset if norm.offset else norm.weight).to(x.dtype)
    if x.is_cuda:  # one kernel there; on a CPU torch has none that is faster than the steps below
        return F.rms_norm(x, (x.shape[-1],), weight, norm.epsilon)
    wide = x if x.dtype == torch.float32 else x.float()
    mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean.add_(norm.epsilon).rsqrt_().to(x.dtype)
    return torch.mul(x, scale, out=workspace.get(name, *x.shape)).mul_(weight)


def norm_heads(
    x: Tensor, norm: RmsNorm | None, attention: AttentionLayout, workspace: Workspace, name: str
) -> Tensor:
    """Returns `(N, heads * D)` with the norm of each head applied, if there is one."""
    if norm is None:
        return x
    heads = x.view(len(x), -1, attention.head_dim)
    return rms_norm(heads, norm, workspace, name).view(len(x), -1)


def rotation_of(layout: LlamaLayout, positions: Tensor, like: Tensor) -> Rotations:
    """Returns cosines and sines `(S, D)` of positions `(S,)`, in the dtype of `like`."""
    found = {}
    for name in {layer.attention.rope for layer in layout.layers}:
        cosine, sine = layout.rotary(like[:1, None], positions[None], name)
        found[name] = cosine[0], sine[0]
    return found


def cap(x: Tensor, limit: float | None) -> Tensor:
    """Returns limit * tanh(x / limit) of logits `(N, V)` or scores, in place; x without a limit."""
    return x if limit is None else x.div_(limit).tanh_().mul_(limit)


def rotate(x: Tensor, rotation: Rotation, out: Tensor) -> Tensor:
    """Applies rotary position embeddings (Su et al. 2021, arXiv 2104.09864).

    Args:
        x: `(B, S, heads, D)`.
        rotation: Cosines and sines, `(S, D)`.
        out: Receives the result, in the shape of `x`.
    """
    cosine, sine = (part[:, None] for part in rotation)  # (S, 1, D)
    half = x.shape[-1] // 2
    torch.mul(x, cosine, out=out)
    out[..., :half].addcmul_(x[..., half:], sine[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sine[..., half:])
    return out


def split_heads(x: Tensor, steps: int, heads: int) -> Tensor:
    """Returns `(B * S, heads * D)` as `(B, S, heads, D)`, where S is `steps`."""
    return x.view(len(x) // steps, steps, heads, -1)


def attention_mask(
    queries: int, length: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Returns which of `length` positions each of the last `queries` attends to.

    Returns:
        `(queries, length)`, or None if a single query attends to all.
    """
    if queries == 1 and (window is None or length <= window):
        return None
    own = torch.arange(length - queries, length, device=device)[:, None]
    keys = torch.arange(length, device=device)[None, :]
    allowed = keys <= own
    return allowed if window is None else allowed & (keys > own - window)


# Linear layers --------------------------------------------------------------------------------


def project(linear: Any, x: Tensor, workspace: Workspace, out: Tensor | None = None) -> Tensor:
    """Returns a linear layer of `(N, K)`, computed in the dtype of `x`.

    Args:
        linear: Its weights `(R, K)` may have any dtype, or be quantized.
        x: `(N, K)`.
        workspace: Scratch memory.
        out: `(N, R)`, used if that saves memory. Only the returned tensor has the result.
    """
    if not isinstance(linear, nn.Linear):
        return linear(x)  # a quantized layer: it multiplies in the dtype of x
    if linear.weight.dtype == x.dtype:
        out = torch.mm(x, linear.weight.t(), out=out)
    else:
        out = out if out is not None else x.new_empty(len(x), len(linear.weight))
        _multiply_widened(linear.weight, x, workspace, out)
    return out if linear.bias is None else out.add_(linear.bias.to(x.dtype))


def _multiply_widened(weight: Tensor, x: Tensor, workspace: Workspace, out: Tensor) -> None:
    """Writes `x` times `weight` `(R, K)`, widened some rows at a time, to `out` `(N, R)`."""
    for start, part in _blocks(weight):
        wide = workspace.get("weight", *part.shape).copy_(part)
        if len(part) == len(weight):
            torch.mm(x, wide.t(), out=out)
        else:
            out[:, start : start + len(part)] = x @ wide.t()


def _blocks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the rows of a narrow matrix `(R, K)`, each with its first row."""
    rows = max(1, WIDENED_BYTES // (4 * weight.shape[1]))
    return ((start, weight[start : start + rows]) for start in range(0, len(weight), rows))


def add_projected(linear: Any, x: Tensor, total: Tensor, workspace: Workspace) -> None:
    """Adds a linear layer of `(N, K)` to `total` `(N, R)`."""
    if not isinstance(linear, nn.Linear):
        total.add_(linear(x))
        return
    if linear.weight.dtype == x.dtype:
        total.addmm_(x, linear.weight.t())
    else:
        for start, part in _blocks(linear.weight):
            wide = workspace.get("weight", *part.shape).copy_(part)
            total[:, start : start + len(part)].addmm_(x, wide.t())
    if linear.bias is not None:
        total.add_(linear.bias.to(x.dtype))


def add_output(
    linear: Any, norm: RmsNorm | None, x: Tensor, total: Tensor, workspace: Workspace
) -> None:
    """Adds a linear layer of `(N, K)`, normed if there is a norm, to `total` `(N, R)`."""
    if norm is None:
        add_projected(linear, x, total, workspace)
    else:
        out = project(linear, x, workspace, workspace.get("output", *total.shape))
        total.add_(rms_norm(out, norm, workspace, "normed output"))


# MLPs and experts -----------------------------------------------------------------------------


def add_mlp(layer: LayerLayout, x: Tensor, workspace: Workspace) -> None:
    """Adds a layer's MLP, or its experts, to the residual stream `(N, H)`."""
    mlp, normed = layer.mlp, rms_norm(x, layer.mlp_norm, workspace)
    if isinstance(mlp, ExpertsLayout):
        _add_experts(mlp, normed, x, workspace)
    else:
        add_gated(mlp, normed, x, workspace)


def add_gated(mlp: MlpLayout, normed: Tensor, x: Tensor, workspace: Workspace) -> None:
    """Adds a gated MLP of `normed` `(N, H)` to the residual stream x `(N, H)`."""
    size = mlp.intermediate_size
    gate = project(mlp.gate, normed, workspace, workspace.get("inner", len(x), size))
    up = project(mlp.up, normed, workspace, workspace.get("up", len(x), size))
    add_output(mlp.down, mlp.out_norm, _gated(mlp, gate, up, workspace), x, workspace)


def _gated(mlp: MlpLayout, gate: Tensor, up: Tensor, workspace: Workspace) -> Tensor:
    """act(gate) * up; both are overwritten."""
    if mlp.is_silu and workspace.kernels is not None:
        product: Tensor = workspace.kernels.gated(gate, up)
        return product
    activated = F.silu(gate, inplace=True) if mlp.is_silu else mlp.act(gate)
    return torch.mul(activated, up, out=up)


def _add_experts(mlp: ExpertsLayout, x: Tensor, total: Tensor, workspace: Workspace) -> None:
    """Adds the mixture of experts of x `(N, H)` to `total` `(N, H)`.

    Each position sums its experts in the order of their numbers, whatever else is in the batch.
    """
    weights, expert_ids = route(mlp.router, mlp.top_k, x)
    if _can_group(mlp, x):
        _add_experts_grouped(mlp, x, weights, expert_ids, total)
    else:
        _add_experts_in_turn(mlp, x, weights, expert_ids, total, workspace)


def route(router: Tensor, top_k: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Selects the experts of each position.

    Args:
        router: `(E, H)`.
        top_k: Number of experts per position, K.
        x: `(N, H)`, after the norm.

    Returns:
        The experts' weights, float32, and their numbers: `(N, K)` each.
    """
    probabilities = F.linear(x, router.to(x.dtype)).float().softmax(dim=-1)  # (N, E)
    weights, expert_ids = probabilities.topk(top_k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), expert_ids


def _add_experts_in_turn(
    mlp: ExpertsLayout,
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    total: Tensor,
    workspace: Workspace,
) -> None:
    """One expert after the other. Only the counts wait for a GPU."""
    order = expert_ids.flatten().argsort(stable=True)  # (N * K,) slots, by expert
    counts = expert_ids.flatten().bincount(minlength=len(mlp.router)).tolist()
    for expert, slots in enumerate(order.split(counts)):
        if len(slots) == 0:
            continue
        rows = slots // expert_ids.shape[1]
        both = _expert_matmul(mlp.experts.gate_up_proj, x[rows], expert, workspace)
        gate, up = both.chunk(2, dim=-1)
        result = _expert_matmul(mlp.experts.down_proj, mlp.act(gate) * up, expert, workspace)
        total.index_add_(0, rows, result * weights.flatten()[slots, None].to(x.dtype))


def _can_group(mlp: ExpertsLayout, x: Tensor) -> bool:
    """Whether torch multiplies all experts in one launch: bfloat16 on a GPU."""
    weight = mlp.experts.gate_up_proj
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and isinstance(weight, Tensor)
        and weight.dtype == x.dtype
        and hasattr(F, "grouped_mm")
    )


def _add_experts_grouped(
    mlp: ExpertsLayout, x: Tensor, weights: Tensor, expert_ids: Tensor, total: Tensor
) -> None:
    """All experts together, without a transfer to the CPU."""
    expert_ids, by_number = expert_ids.sort(dim=-1)
    weights = weights.gather(-1, by_number)
    order = expert_ids.flatten().argsort(stable=True)  # (N * K,)
    ends = expert_ids.flatten().bincount(minlength=len(mlp.router)).cumsum(0).to(torch.int32)
    grouped = x[order // expert_ids.shape[1]]  # (N * K, H)
    both = F.grouped_mm(grouped, mlp.experts.gate_up_proj.transpose(1, 2), offs=ends)
    gate, up = both.chunk(2, dim=-1)
    mixed = F.grouped_mm(mlp.act(gate) * up, mlp.experts.down_proj.transpose(1, 2), offs=ends)
    mixed = mixed * weights.flatten()[order, None].to(x.dtype)
    by_slot = torch.empty_like(mixed)
    by_slot[order] = mixed
    total.add_(by_slot.view(len(x), -1, x.shape[-1]).sum(dim=1))


def _expert_matmul(weight: Any, x: Tensor, expert: int, workspace: Workspace) -> Tensor:
    if isinstance(weight, Tensor) and weight.dtype in _FLOATS:
        if weight.dtype == x.dtype:
            return F.linear(x, weight[expert])
        out = x.new_empty(len(x), weight.shape[1])
        _multiply_widened(weight[expert], x, workspace, out)
        return out
    return weight.multiply(x, expert)  # quantized: in the dtype of x
