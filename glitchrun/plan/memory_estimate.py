"""Estimates the memory of a run and compares it with the free memory of its device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.packed_weights import becomes_floats, stored_format
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.passes import Buffers, Passes
from glitchrun.plan.weight_bytes import QUANTIZED, active_parameters, weights
from glitchrun.spec.strategy import Workload

_TIGHT = 0.8
"""A run that needs more than this share of the free memory is called tight, because activations are
estimated roughly."""
_RUNTIME = {"cpu": 850_000_000, "cuda": 500_000_000}
"""Bytes of the process itself. CPU: torch, transformers, bitsandbytes, mlflow and matplotlib take
598 MB; runs of a 9 MB model peaked at 700 to 830 MB with threads, figures and heap. GPU: a CUDA
context, which takes 0.3 to 0.5 GB."""
_STREAMING = 700_000_000
"""The same without an allowance, for a streamed model on a CPU: with 32,000 vocabulary entries a
process peaked at 770 MB besides its passes, mapped libraries (180 MB) included."""

_ENTRY = 2000
"""Bytes per vocabulary entry: 1,000 in the tokenizer and 800 for piece, text, category and rank.
Measured with 262,144 entries."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory that a run needs; in bytes unless a field says otherwise."""

    parameters: int
    """Number of parameters, whatever number of bits each of them has."""
    stored_format: str | None
    """The format in which weights are quantized on disk, see
    `glitchrun.checkpoint.packed_weights.stored_format`; None for floats."""
    becomes_floats: bool
    """Whether such weights are converted to floats while they are loaded."""
    active_parameters: float
    """Parameters that one position is multiplied with; of the experts only the active ones."""
    weights: Mapping[str, int]
    """By part: embeddings, head, linear, experts, routers, other, scales."""
    weight_bytes: int
    loading_bytes: int
    """Needed in addition to the weights while they are loaded: two layers in 16 bits, and the whole
    model in 16 bits if an adapter is merged before the model is quantized."""
    kv_cache_bytes: int
    activation_bytes: int
    """Activations of one layer over the batch, the logits, and what is computed from them."""
    float32_bytes: int
    """Float32 passes that decide near-ties of narrower weights, and tables over the vocabulary:
    copies of the embeddings, features, and what controls are matched by."""
    gradient_bytes: int
    """Activations of all layers for the gradient of one prompt."""
    runtime_bytes: int
    """The process itself with the vocabulary; on a GPU the CUDA context."""
    total_bytes: int
    device: str
    free_bytes: int
    memory_source: str
    verdict: str
    """fits, tight (more than 80 % of the free memory) or no."""
    batch: int
    """Rows of a forward pass in the step that needs the most memory."""
    step: str
    """Id of that step."""
    largest_batch: int
    """Largest number of rows that fits; 0 if not even one does."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def estimate(
    header: Header, quantization: str, workloads: Sequence[Workload], device: DeviceMemory
) -> MemoryEstimate:
    """Estimates the memory of a run.

    Weights are counted to the byte from the headers. Buffers are upper bounds, so that the verdict
    errs on the side of caution.

    Args:
        header: The model's checkpoint.
        quantization: As in the spec.
        workloads: The passes of the run's steps; at least one.
        device: Where the model will be placed.
    """
    held = weights(header, quantization, device.kind, device.capability)
    runtime = process_bytes(header, device.kind)
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
        stored_format=stored_format(header),
        becomes_floats=becomes_floats(header, device.kind, device.capability),
        active_parameters=active_parameters(header),
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
        verdict=verdict(total, device.free),
        batch=count,
        step=load.step,
        largest_batch=passes.largest_batch(load, room),
    )


def _largest(found: Sequence[Buffers]) -> Buffers:
    """The largest of each kind over all steps: freed memory may not return to the system."""
    return Buffers(
        kv_cache=max(buffers.kv_cache for buffers in found),
        activations=max(buffers.activations for buffers in found),
        float32=max(buffers.float32 for buffers in found),
        gradient=max(buffers.gradient for buffers in found),
    )


def process_bytes(header: Header, kind: str, *, streamed: bool = False) -> int:
    """Bytes of the process itself with the vocabulary's texts; on a GPU of its context."""
    runtime = _STREAMING if streamed and kind == "cpu" else _RUNTIME[kind]
    return runtime + (_ENTRY * header.vocab if kind == "cpu" else 0)


def verdict(total: int, free: int) -> str:
    """`fits`, `tight` or `no`, for bytes needed and bytes free."""
    if total > free:
        return "no"
    return "tight" if total > _TIGHT * free else "fits"
