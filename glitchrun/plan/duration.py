"""Between which times a run will end: orders of magnitude, from the work and typical speeds."""

from __future__ import annotations

import os
from collections.abc import Sequence

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.memory import MemoryEstimate
from glitchrun.plan.weights import part_of
from glitchrun.plan.work import StepWork

# (slowest, fastest) floating-point operations a second. CPU, for each core: 35 to 195 GFLOP/s were
# measured on two cores with SmolLM2 in float32, and less where weights are put together again for
# every pass (int8, int4). GPU: from an old small card to a current large one.
_FLOPS = {"cpu": (8e9, 1e11), "cuda": (3e12, 4e14)}
# (slowest, fastest) bytes of weights read a second, over the whole device.
_BANDWIDTH = {"cpu": (2e9, 4e10), "cuda": (1e11, 3e12)}
_POSITIONS = (16, 48)
"""(least, most) positions of a prompt behind its shared prefix."""
_REPEATED = (0.0, 0.2)
"""(least, most) share of prompts and continuations done once more; 2 to 12 % were seen."""
_GENERATED = (0.05, 1.0)
"""(least, most) share of the bound on generated tokens: an attempt ends when the token is said."""
_BACKWARD = 3
"""A gradient costs about three forward passes."""


def seconds(
    header: Header, estimate: MemoryEstimate, work: Sequence[StepWork]
) -> tuple[float, float]:
    """(at best, at worst) seconds of a run after its model is loaded."""
    kind = "cuda" if estimate.device.startswith("cuda") else "cpu"
    parameters = _active_parameters(header)
    ends = [
        sum(_step(parameters, estimate, item, kind, worst) for item in work) for worst in (0, 1)
    ]
    return ends[0], ends[1]


def _step(
    parameters: float, estimate: MemoryEstimate, work: StepWork, kind: str, worst: int
) -> float:
    """Seconds of one step: what takes longer of multiplying and of reading the weights."""
    again = 1 + _REPEATED[worst]
    generated = work.new_tokens * _GENERATED[worst] * again
    prompts = (work.prompts + work.continuations) * again + work.gradients * _BACKWARD
    passes = (prompts + generated) / max(1, estimate.batch) + work.gradients * _BACKWARD
    speed = _FLOPS[kind][1 - worst] * (_cores() if kind == "cpu" else 1)
    compute = 2 * parameters * (prompts * _POSITIONS[worst] + generated) / speed
    return max(compute, passes * estimate.weight_bytes / _BANDWIDTH[kind][1 - worst])


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _active_parameters(header: Header) -> float:
    """Weights that one position is multiplied with; of the experts only those it passes through."""
    shape = header.shape
    share = shape.active_experts / shape.experts if shape.experts else 1.0
    total = 0.0
    for name, info in header.tensors.items():
        part = part_of(header, name, info)
        if part in ("linear", "routers"):
            total += info.numel
        elif part == "experts":
            total += info.numel * share
    return total
