"""What a run will hold in memory, against what its device has free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.passes import Buffers, Passes, Workload
from glitchrun.plan.weight_bytes import QUANTIZED, weights

_TIGHT = 0.8
"""Share of the free memory from which a run counts as tight: the estimate of what is computed
along the way is rough."""
_RUNTIME = {"cpu": 850_000_000, "cuda": 500_000_000}
"""Bytes of the process itself. CPU: torch, transformers, bitsandbytes, mlflow and matplotlib take
598 MB; runs of a model of 9 MB peaked at 700 to 830 MB, threads, figures and heap included. GPU: a
CUDA context, by experience 0.3 to 0.5 GB."""

_ENTRY = 2000
"""Bytes of a vocabulary's entry in the tokenizer (1,000) and in what is known of it (800): piece,
text, category, rank. Measured with 262,144 entries."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes, unless said otherwise."""

    parameters: int | None
    weights: Mapping[str, int]
    """By part: embeddings, head, linear, experts, routers, other, scales."""
    weight_bytes: int
    loading_bytes: int
    """Beyond the weights while they are loaded: two layers in 16 bits, and the whole model in 16
    bits where an adapter is merged into it before it is quantized."""
    kv_cache_bytes: int
    activation_bytes: int
    """Of one layer over the batch, and the logits with what is computed from them."""
    float32_bytes: int
    """For settling close verdicts in float32 beside narrower weights, and the search's tables over
    the vocabulary: copies of the embeddings, features, what controls are drawn by."""
    gradient_bytes: int
    """Activations of all layers, kept for one prompt's gradient."""
    runtime_bytes: int
    """The process itself with the vocabulary's entries; on a GPU its context."""
    total_bytes: int
    device: str
    free_bytes: int
    memory_source: str
    verdict: str
    """fits, tight (more than 80 % of what is free) or no."""
    batch: int
    """Rows of a forward pass in the step that takes most."""
    step: str
    """Which step that is."""
    largest_batch: int
    """Rows that would still fit; 0 where not even one does."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def estimate(
    header: Header, quantization: str, workloads: Sequence[Workload], device: DeviceMemory
) -> MemoryEstimate:
    """The estimate for a run whose steps are `workloads` (at least one), on `device`.

    Weights are counted to the byte from the headers. Buffers are bounds by formula, so that the
    verdict errs towards caution.
    """
    held = weights(header, quantization)
    runtime = _RUNTIME[device.kind]
    if device.kind == "cpu":
        runtime += _ENTRY * header.vocab
    room = device.free - held.total - runtime
    passes = Passes(header, held, device.kind)
    planned = [(load, passes.rows(load, room)) for load in workloads]
    load, count = max(planned, key=lambda item: passes.buffers(*item).total)
    buffers = _largest([passes.buffers(*item) for item in planned])
    loading = 2 * 2 * held.largest_layer
    if header.adapter and quantization in QUANTIZED:
        loading += weights(header, "bfloat16").total
    total = runtime + held.total + max(loading, buffers.total)
    return MemoryEstimate(
        parameters=held.parameters,
        weights=held.parts,
        weight_bytes=held.total,
        loading_bytes=loading,
        kv_cache_bytes=buffers.kv_cache,
        activation_bytes=buffers.activations,
        float32_bytes=buffers.float32,
        gradient_bytes=buffers.gradient,
        runtime_bytes=runtime,
        total_bytes=total,
        device=device.device,
        free_bytes=device.free,
        memory_source=device.source,
        verdict=_verdict(total, device.free),
        batch=count,
        step=load.step,
        largest_batch=passes.largest_batch(load, room),
    )


def _largest(found: Sequence[Buffers]) -> Buffers:
    """The most of each kind over the steps: what one step frees may not return to the system."""
    return Buffers(
        kv_cache=max(buffers.kv_cache for buffers in found),
        activations=max(buffers.activations for buffers in found),
        float32=max(buffers.float32 for buffers in found),
        gradient=max(buffers.gradient for buffers in found),
    )


def _verdict(total: int, free: int) -> str:
    if total > free:
        return "no"
    return "tight" if total > _TIGHT * free else "fits"
