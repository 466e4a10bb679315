"""Between which times a run will end: orders of magnitude, from the work and typical speeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.memory import MemoryEstimate
from glitchrun.plan.weights import part_of
from glitchrun.plan.work import StepWork


@dataclass(frozen=True, slots=True)
class Speed:
    """(slowest, fastest) of what a device reaches in practice."""

    flops: tuple[float, float]
    """Floating-point operations per second, over the whole device."""
    bandwidth: tuple[float, float]
    """Bytes per second of weights read."""


# CPU: 35 to 195 GFLOP/s were measured on two cores with SmolLM2 in float32; quantized weights are
# put together again for every pass, which costs several times as much. GPU: from an old small card
# to a current large one.
SPEEDS = {
    "cpu": Speed(flops=(1e10, 2e11), bandwidth=(2e9, 4e10)),
    "cuda": Speed(flops=(3e12, 4e14), bandwidth=(1e11, 3e12)),
}
# A prompt without its shared prefix, and with all of it.
_SUFFIX_POSITIONS = (16, 128)
_BACKWARD = 3
"""A gradient costs about three forward passes."""


def seconds(
    header: Header, estimate: MemoryEstimate, work: Sequence[StepWork]
) -> tuple[float, float]:
    """(at best, at worst) seconds of a run after its model is loaded.

    At best a twentieth of the bounds on continuations is generated: an attempt ends when the token
    is said or the model stops. Repeats are counted at worst only.
    """
    speed = SPEEDS["cuda" if estimate.device.startswith("cuda") else "cpu"]
    fast = sum(_step(header, estimate, item, 0, speed) for item in work)
    slow = sum(_step(header, estimate, item, 1, speed) for item in work)
    return fast, slow


def _step(
    header: Header, estimate: MemoryEstimate, work: StepWork, worst: int, speed: Speed
) -> float:
    rows = max(1, estimate.batch)
    positions = _SUFFIX_POSITIONS[worst]
    share = 1.0 if worst else 0.05
    again = 2 if worst else 1
    generated = work.new_tokens * share * again
    row_positions = (
        work.prompts * positions * again
        + work.gradients * _BACKWARD * positions
        + work.continuations * positions * again
        + generated
    )
    passes = work.prompts / rows + work.gradients * _BACKWARD + generated / rows
    compute = 2 * _active_parameters(header) * row_positions / speed.flops[1 - worst]
    reading = passes * estimate.weight_bytes / speed.bandwidth[1 - worst]
    return max(compute, reading)


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
