"""Memory of a model: bytes by dtype and device, the peak while it loads, and how to keep it low."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from glitchrun.model.quantized_layers import QuantizedMatrices

_LARGE_SHARE = 0.01
"""Share of a model's bytes from which an unquantized weight is reported."""
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"  # proc(5): writing 5 resets the peak resident set size

# Thresholds of glibc's heap in bytes, mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_WHILE_LOADING = 256 * 1024
_MMAP_AFTERWARDS = 4 * 1024 * 1024
_TRIM_AFTERWARDS = 32 * 1024 * 1024
"""Free memory at the heap's end that stays with the process for the next operation of a pass."""
_SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"

# The classes and scales of checkpoints that bitsandbytes quantized on disk.
_FOREIGN_CODES = {"Params4bit": "int4", "Int8Params": "int8"}
_SCALES = ("absmax", "nested absmax", "offset", "SCB")


def bytes_by_dtype(module: Any) -> dict[str, int]:
    """Bytes of a module's weights and buffers by storage dtype, the largest first.

    Each storage counts once, so tied weights do too. Quantized codes count as `int4` or `int8`,
    their scales as `quantization scales`, and everything else under torch's name of its dtype. The
    1 KB table of bitsandbytes that all int4 matrices of a process share is not included.
    """
    found: dict[str, int] = {}
    for _, kind, tensor in _storages(module):
        found[kind] = found.get(kind, 0) + tensor.untyped_storage().nbytes()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def bytes_by_device(module: Any) -> dict[tuple[str, str], int]:
    """As `bytes_by_dtype`, by (device, dtype). The device of offloaded weights is `meta`."""
    found: dict[tuple[str, str], int] = {}
    for _, kind, tensor in _storages(module):
        key = (str(tensor.device), kind)
        found[key] = found.get(key, 0) + tensor.untyped_storage().nbytes()
    return dict(sorted(found.items(), key=lambda item: (item[0][0], -item[1])))


def left_unquantized(module: Any) -> tuple[str, ...]:
    """Names of float matrices with at least 1 % of the model's bytes, largest first.

    Input embedding and head are never quantized and not included.
    """
    total = sum(bytes_by_dtype(module).values())
    found = [
        (tensor.nbytes, name)
        for name, kind, tensor in _storages(module, skip=_embedding_storages(module))
        if tensor.is_floating_point() and tensor.dim() > 1 and "quantization" not in kind
    ]
    return tuple(name for size, name in sorted(found, reverse=True) if size >= _LARGE_SHARE * total)


def _embedding_storages(module: Any) -> set[int]:
    """Storages of the input embedding and the head."""
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    return {end.weight.untyped_storage().data_ptr() for end in ends if end is not None}


def _storages(module: Any, skip: set[int] | None = None) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield (name, kind, tensor) of every storage once."""
    seen = set(skip or ())
    for prefix, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, tensor in [*own, *_foreign_scales(part)]:
            # Offloaded tensors have no address, so each counts by its identity.
            is_offloaded = tensor.device.type == "meta"
            address = -id(tensor) if is_offloaded else tensor.untyped_storage().data_ptr()
            if address not in seen:
                seen.add(address)
                yield f"{prefix}.{name}".lstrip("."), _kind(part, name, tensor), tensor


def _kind(part: Any, name: str, tensor: torch.Tensor) -> str:
    if isinstance(part, QuantizedMatrices):
        return part.scheme if name == part.CODES else "quantization scales"
    foreign = type(tensor).__name__
    if foreign in _FOREIGN_CODES:
        return _FOREIGN_CODES[foreign]
    return "quantization scales" if name in _SCALES else str(tensor.dtype).removeprefix("torch.")


def _foreign_scales(part: Any) -> list[tuple[str, torch.Tensor]]:
    """Scales that bitsandbytes stores apart from its parameters, where torch does not list them."""
    weight = getattr(part, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        nested = state.state2.absmax if state.nested else None
        found = {"absmax": state.absmax, "nested absmax": nested, "offset": state.offset}
        return [(name, tensor) for name, tensor in found.items() if tensor is not None]
    scale = getattr(weight, "SCB", None)
    scale = getattr(getattr(part, "state", None), "SCB", None) if scale is None else scale
    return [] if scale is None else [("SCB", scale)]


def watch_peak(device: torch.device) -> Callable[[], int]:
    """Start a measurement; the returned function gives the peak increase of memory in bytes.

    On the CPU it is that of the resident set, mapped pages of files included. On a GPU it is that
    of torch's allocator, summed over all GPUs.
    """
    if device.type == "cuda":
        return _watch_cuda()
    start = psutil.Process().memory_info().rss
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    return lambda: max(0, _high_water() - start)


def reset_peaks() -> None:
    """Start a new measurement of peak memory on every device; read it with `peaks`."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)


def peaks() -> dict[str, int]:
    """Peak bytes since `reset_peaks`: of the process (`cpu`) and of tensors on each `cuda:N`."""
    gpus = range(torch.cuda.device_count())
    return {"cpu": _high_water()} | {f"cuda:{n}": torch.cuda.max_memory_allocated(n) for n in gpus}


def _watch_cuda() -> Callable[[], int]:
    devices = range(torch.cuda.device_count())
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    start = sum(torch.cuda.memory_allocated(device) for device in devices)
    return lambda: sum(torch.cuda.max_memory_allocated(device) for device in devices) - start


def _high_water() -> int:
    if not _STATUS.exists():  # not Linux: there is only the current size
        return int(psutil.Process().memory_info().rss)
    match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


@contextmanager
def low_memory() -> Iterator[None]:
    """Load one parameter after another, and return freed memory to the system at once.

    transformers reads ahead on threads, so all experts of a checkpoint would be in memory together
    with the fused stacks. glibc keeps freed blocks of up to 32 MiB in its heap, in gaps too small
    for the next tensor: a Mixtral of 215 MB, 56 MB in int4, peaked at 147 MB instead of
    88 MB. Blocks above the mmap threshold are pages of their own and are returned when freed.
    """
    before = os.environ.get(_SEQUENTIAL)
    os.environ[_SEQUENTIAL] = "1"
    _set_heap(mmap_threshold=_MMAP_WHILE_LOADING, trim_threshold=_MMAP_WHILE_LOADING)
    try:
        yield
    finally:
        # glibc raises its own threshold with the blocks that are freed, and a long scan then grew
        # to 17 GB. Fixed, large blocks keep pages of their own. Smaller ones, such as the output of
        # attention for a batch, come from the heap, because fresh pages took as long as the
        # operation.
        _set_heap(mmap_threshold=_MMAP_AFTERWARDS, trim_threshold=_TRIM_AFTERWARDS)
        if before is None:
            del os.environ[_SEQUENTIAL]
        else:
            os.environ[_SEQUENTIAL] = before


def _set_heap(*, mmap_threshold: int, trim_threshold: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
            mallopt(_M_TRIM_THRESHOLD, trim_threshold)
