"""What a run will hold in memory, against what its device has free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.weights import WIDTH, Weights, weights

STANDARD_ROWS = {"cpu": 64, "cuda": 512}
"""Rows that `batch_size: auto` takes at most, as `probing.memory` does."""
SAMPLING_ROWS = {"cpu": 256, "cuda": 512}
"""The same where continuations are sampled."""
_TIGHT = 0.8
"""Share of the free memory from which a run counts as tight: the estimate of what is computed
along the way is rough."""
_RUNTIME = {"cpu": 600_000_000, "cuda": 500_000_000}
"""Bytes of the process itself. CPU: resident size with torch, transformers, bitsandbytes, mlflow
and matplotlib imported, 598 MB measured. GPU: a CUDA context, by experience 0.3 to 0.5 GB."""
_LOGIT_COPIES = 6
"""Float32 tensors of the size of the logits that verdicts are computed from."""
_SETTLING_ROWS = 16
"""Rows of the float32 passes that settle verdicts of narrower arithmetic."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The most demanding pass of a step."""

    step: str
    batch: int | None
    """Rows of a forward pass; None where the run chooses by itself."""
    positions: int
    """Positions of a row: prompt and continuation."""
    gradient: bool = False
    samples: bool = False
    """Whether a row grows by one position a pass."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes, unless said otherwise."""

    parameters: int | None
    weights: Mapping[str, int]
    """By part: embeddings, head, linear, experts, routers, other, scales."""
    weight_bytes: int
    loading_bytes: int
    """Beyond the weights while they are loaded: two layers in 16 bits."""
    kv_cache_bytes: int
    activation_bytes: int
    """Of one layer over the batch, and the logits with what is computed from them."""
    float32_bytes: int
    """For settling close verdicts in float32 beside narrower weights, and the search's copy of the
    embeddings."""
    gradient_bytes: int
    """Activations of all layers, kept for one prompt's gradient."""
    runtime_bytes: int
    """The process itself; on a GPU its context."""
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


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What a step holds beside the weights."""

    kv_cache: int
    activations: int
    float32: int
    gradient: int

    @property
    def total(self) -> int:
        return self.kv_cache + self.activations + self.float32 + self.gradient


def estimate(
    header: Header, quantization: str, workloads: Sequence[Workload], device: DeviceMemory
) -> MemoryEstimate:
    """The estimate for a run whose steps are `workloads` (at least one), on `device`.

    Weights are counted to the byte from the headers. Buffers are bounds by formula, so that the
    verdict errs towards caution.
    """
    held = weights(header, quantization)
    runtime = _RUNTIME[device.kind]
    room = device.free - held.total - runtime
    planned = [(load, _rows(header, held, load, device, room)) for load in workloads]
    load, rows = max(planned, key=lambda item: _buffers(header, held, *item).total)
    buffers = _largest([_buffers(header, held, *item) for item in planned])
    loading = 2 * 2 * held.largest_layer
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
        batch=rows,
        step=load.step,
        largest_batch=_largest_batch(header, held, load, room),
    )


def _largest(found: Sequence[_Buffers]) -> _Buffers:
    """The most of each kind over the steps: what one step frees may not return to the system."""
    return _Buffers(
        kv_cache=max(buffers.kv_cache for buffers in found),
        activations=max(buffers.activations for buffers in found),
        float32=max(buffers.float32 for buffers in found),
        gradient=max(buffers.gradient for buffers in found),
    )


def _verdict(total: int, free: int) -> str:
    if total > free:
        return "no"
    return "tight" if total > _TIGHT * free else "fits"


def _rows(header: Header, held: Weights, load: Workload, device: DeviceMemory, room: int) -> int:
    """Rows of a pass: as asked for, else the largest power of two that fits in half the room."""
    if load.batch is not None:
        return load.batch
    rows = (SAMPLING_ROWS if load.samples else STANDARD_ROWS)[device.kind]
    while rows > 1 and rows * sum(_row(header, held, load.positions)) > room // 2:
        rows //= 2
    return rows


def _largest_batch(header: Header, held: Weights, load: Workload, room: int) -> int:
    fixed = _buffers(header, held, load, 0).total
    return max(0, room - fixed) // sum(_row(header, held, load.positions))


def _buffers(header: Header, held: Weights, load: Workload, rows: int) -> _Buffers:
    cache, activations = _row(header, held, load.positions)
    return _Buffers(
        kv_cache=rows * cache,
        activations=rows * activations,
        float32=_float32(header, held, load),
        gradient=_gradient(header, held, load.positions) if load.gradient else 0,
    )


def _row(header: Header, held: Weights, positions: int) -> tuple[int, int]:
    """Bytes one row takes in the key/value cache, and in everything computed beside it."""
    shape, width = header.shape, WIDTH[held.dtype]
    layer_cache = 2 * shape.kv_heads * shape.head_dim * positions * width
    # Appending to a layer's cache copies it: for a moment there is one layer more.
    cache = (shape.layers + 1) * layer_cache
    scores = 2 * shape.heads * positions * positions * 4
    layer = positions * width * (6 * shape.hidden + 3 * shape.intermediate * _paths(header))
    return cache, layer + scores + _LOGIT_COPIES * header.vocab * 4


def _paths(header: Header) -> int:
    """Feed-forward blocks that one position passes through."""
    return max(1, header.shape.active_experts)


def _float32(header: Header, held: Weights, load: Workload) -> int:
    """What narrower weights need widened: the largest matrix, the settling passes, the search."""
    if WIDTH[held.dtype] >= WIDTH["float32"]:
        return 0
    row = sum(_row(header, held, load.positions)) * WIDTH["float32"] // WIDTH[held.dtype]
    table = header.vocab * header.shape.hidden * 4 if load.gradient else 0
    return held.largest_matrix * 4 + _SETTLING_ROWS * row + table


def _gradient(header: Header, held: Weights, positions: int) -> int:
    """Activations that the backward pass of one prompt needs, over all layers, and the logits."""
    shape = header.shape
    attention = 2 * shape.heads * positions * positions
    layer = positions * (12 * shape.hidden + 6 * shape.intermediate * _paths(header)) + attention
    return shape.layers * layer * WIDTH["float32"] + _LOGIT_COPIES * header.vocab * 4
