"""How long a run takes at most after its model is loaded, from its bounds and slow speeds.

What a search, a sampled attempt or a stopping rule will leave undone is not known before the run,
so the lower bound is only what a run takes that finds nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.weight_bytes import part_of
from glitchrun.plan.work import StepWork

_FLOPS = {"cpu": 8e9, "cuda": 3e12}
"""Floating-point operations a second at least. CPU, for each core: 35 to 195 GFLOP/s were measured
on two cores with SmolLM2 in float32, and less where weights are put together again for every pass
(int8, int4). GPU: an old small card."""
_BANDWIDTH = {"cpu": 2e9, "cuda": 1e11}
"""Bytes of weights read a second at least, over the whole device."""
_POSITIONS = 48
"""Most positions of a prompt behind its shared prefix."""
_REPEATED = 0.2
"""Most prompts and continuations done once more, as a share; 2 to 12 % were seen."""
_BACKWARD = 3
"""A gradient costs about three forward passes."""
_LEAST = 0.01
"""Seconds to prepare a run and to write its record, even of nothing."""
_STEP = 10.0
"""Seconds to set a step up and to wind it up, beside its vocabulary."""
_ROW = 1e-3
"""Seconds for each row of the vocabulary: its text, category and features took half of that."""
_PASS = 0.05
"""Seconds of a pass that no multiplication accounts for, a line of the ledger included."""
_LAYER = 2e-3
"""The same for each layer of a pass."""
_ITEM = 0.02
"""Seconds for each prompt, continuation or new token, to make it and to read it: what is left of a
model so small that it takes no time itself."""


def seconds(
    header: Header, estimate: MemoryEstimate, work: Sequence[StepWork]
) -> tuple[float, float]:
    """(least, most) seconds of a run after its model is loaded."""
    return _LEAST, sum(_step(header, estimate, item) for item in work)


def _step(header: Header, estimate: MemoryEstimate, work: StepWork) -> float:
    """Seconds of one step: what takes longer of multiplying and of reading the weights, and what
    surrounds it."""
    kind = "cuda" if estimate.device.startswith("cuda") else "cpu"
    again = 1 + _REPEATED
    generated = work.new_tokens * again
    prompts = (work.prompts + work.continuations) * again + work.gradients * _BACKWARD
    passes = (prompts + generated) / max(1, estimate.batch) + work.gradients * _BACKWARD + 1
    speed = _FLOPS[kind] * (_cores() if kind == "cpu" else 1)
    compute = 2 * _active_parameters(header) * (prompts * _POSITIONS + generated) / speed
    reading = passes * estimate.weight_bytes / _BANDWIDTH[kind]
    around = passes * (_PASS + _LAYER * header.dims.num_layers) + _ITEM * (prompts + generated)
    return max(compute, reading) + around + _STEP + _ROW * header.vocab


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _active_parameters(header: Header) -> float:
    """Weights that one position is multiplied with; of the experts only those it passes through."""
    dims = header.dims
    share = dims.top_k / dims.num_experts if dims.num_experts else 1.0
    total = 0.0
    for name, info in header.tensors.items():
        part = part_of(header, name, info)
        if part in ("linear", "routers"):
            total += info.numel
        elif part == "experts":
            total += info.numel * share
    return total
