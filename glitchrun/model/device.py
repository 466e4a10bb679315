"""Which device a model goes to, and how much memory loading it took there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch

from glitchrun.errors import PreflightError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"  # proc(5): writing 5 resets the peak resident set size


def pick_device(name: str) -> torch.device:
    """`auto` | `cpu` | `cuda` | `cuda:N` as a device that is there; `auto` prefers cuda:0.

    Raises PreflightError for a GPU that is not there.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = 0 if name in ("auto", "cuda") else _cuda_index(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise PreflightError(
            f"model.device {name!r}: this machine has {count} usable CUDA devices (torch "
            f"{torch.__version__}); use device: auto or cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda", index)


def _cuda_index(name: str) -> int:
    match = re.fullmatch(r"cuda:(\d+)", name)
    if match is None:
        raise PreflightError(f"model.device {name!r}: expected auto, cpu, cuda or cuda:N")
    return int(match[1])


def check_devices(max_memory: Mapping[str, str | int] | None) -> None:
    """Raises PreflightError where `max_memory` names a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    absent = [key for key in max_memory or {} if str(key).isdigit() and int(key) >= count]
    if absent:
        raise PreflightError(
            f"model.max_memory names the GPU {absent[0]}, and this machine has {count} usable CUDA "
            f"devices (torch {torch.__version__}); take it out, or install a CUDA build of torch"
        )


def watch_peak(device: torch.device) -> Callable[[], int]:
    """Start watching; the returned function gives the bytes by which memory use peaked since.

    On the CPU the high-water mark of the resident set (pages of mapped files count), on a GPU the
    allocator's over all GPUs, above what was in use at the start.
    """
    if device.type == "cuda":
        return _watch_cuda()
    start = psutil.Process().memory_info().rss
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    return lambda: max(0, _high_water() - start)


def start_peaks() -> None:
    """Begins a new measurement of the most memory in use, on every device."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)


def peaks() -> dict[str, int]:
    """Most bytes in use since `start_peaks`: of this whole process under `cpu`, of tensors under
    each `cuda:N`."""
    gpus = range(torch.cuda.device_count())
    return {"cpu": _high_water()} | {f"cuda:{n}": torch.cuda.max_memory_allocated(n) for n in gpus}


def _watch_cuda() -> Callable[[], int]:
    devices = range(torch.cuda.device_count())
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    start = sum(torch.cuda.memory_allocated(device) for device in devices)
    return lambda: sum(torch.cuda.max_memory_allocated(device) for device in devices) - start


def _high_water() -> int:
    if not _STATUS.exists():  # not Linux: the current size is the best there is
        return int(psutil.Process().memory_info().rss)
    match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
