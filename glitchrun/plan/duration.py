"""Bounds on a run's duration after its model is loaded, from bounds on its work and low speeds.

How much a search or a stopping rule will leave undone is unknown before the run, so the lower bound
is the time of a run that finds nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.weight_bytes import part_of
from glitchrun.plan.work import StepWork

_FLOPS = {"cpu": 8e9, "cuda": 3e12}
"""Least floating-point operations per second. CPU, per core: two cores reached 35 to 195 GFLOP/s
with SmolLM2 in float32, and less with int8 and int4, whose weights are dequantized in every pass.
GPU: an old small card."""
_BANDWIDTH = {"cpu": 2e9, "cuda": 1e11}
"""Least bytes of weights read per second, by the whole device."""
_SUFFIX_POSITIONS = 48
"""Most positions of a prompt after its shared prefix, which is computed only once."""
_RERUN_SHARE = 0.2
"""Largest share of prompts and continuations that are near-ties and run again; 2 to 12 % were
seen."""
_GRADIENT_PASSES = 3
"""Forward passes that take as long as one gradient."""
_EMPTY_RUN = 0.01
"""Seconds to prepare a run and to write an empty record."""
_STEP = 10.0
"""Seconds to start and finish a step, without its vocabulary."""
_ENTRY = 1e-3
"""Seconds per vocabulary entry: text, category and features took half of that."""
_PASS = 0.05
"""Seconds per pass outside matrix products, including a line of the ledger."""
_LAYER = 2e-3
"""Seconds per layer of a pass outside matrix products."""
_ITEM = 0.02
"""Seconds to prepare and read one prompt, continuation or new token; for very small models this is
nearly all of the time."""


def seconds(
    header: Header, estimate: MemoryEstimate, work: Sequence[StepWork]
) -> tuple[float, float]:
    """The least and the most seconds that a run takes after its model is loaded."""
    return _EMPTY_RUN, sum(_step(header, estimate, item) for item in work)


def _step(header: Header, estimate: MemoryEstimate, work: StepWork) -> float:
    """Most seconds of one step: the longer of computing and reading weights, and the overhead."""
    kind = "cuda" if estimate.device.startswith("cuda") else "cpu"
    reruns = 1 + _RERUN_SHARE
    generated = work.new_tokens * reruns
    prompts = (work.prompts + work.continuations) * reruns + work.gradients * _GRADIENT_PASSES
    passes = (prompts + generated) / max(1, estimate.batch) + work.gradients * _GRADIENT_PASSES + 1
    speed = _FLOPS[kind] * (_cores() if kind == "cpu" else 1)
    compute = 2 * _active_parameters(header) * (prompts * _SUFFIX_POSITIONS + generated) / speed
    reading = passes * estimate.weight_bytes / _BANDWIDTH[kind]
    overhead = passes * (_PASS + _LAYER * header.dims.num_layers) + _ITEM * (prompts + generated)
    return max(compute, reading) + overhead + _STEP + _ENTRY * header.vocab


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _active_parameters(header: Header) -> float:
    """Parameters that one position is multiplied with; of the experts only the active ones."""
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
