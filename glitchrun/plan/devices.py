"""Free memory of a device, found without torch: nvidia-smi, /proc/meminfo and control groups."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from glitchrun.errors import PreflightError

_MIB = 1024**2
_NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where v2 writes "max"
_ABSENT = "there is no"
_RESERVED = 250_000_000
"""Bytes of a process that RLIMIT_DATA counts, but that are not in use: 98 MB in one with 8 threads,
and what oneDNN reserves for products in bfloat16."""
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a device, or of all devices in `max_memory` together."""

    device: str
    """`cpu`, `cuda:0`, or `cuda:0 + cuda:1 + cpu` for a model on several devices."""
    free: int
    """Bytes that can still be allocated."""
    total: int
    """Bytes in total."""
    source: str
    """Where the numbers come from, or why there are none, as text for the user."""
    capability: float | None = None
    """CUDA compute capability of the first device, such as 8.9; None where it is not known."""

    @property
    def kind(self) -> str:
        """`cuda` or `cpu`: the kind of the first device."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def is_absent(self) -> bool:
        """Whether it is a GPU that does not exist; a limit of 0 does not make a GPU absent."""
        return self.kind == "cuda" and not self.total and self.source.startswith(_ABSENT)


def device_memory(device: str, max_memory: Mapping[str, str | int] | None = None) -> DeviceMemory:
    """Free memory on the device where the model will be placed.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        max_memory: Limit by device; the result is then the sum over these devices (and `disk`),
            each up to its limit. If one of them does not exist, nothing is free, because loading
            fails.

    Raises:
        PreflightError: a limit is not a size.
    """
    if max_memory:
        return _spread([_limited(name, limit) for name, limit in max_memory.items()])
    if device == "auto":
        gpus = visible_gpus()
        return gpus[0] if gpus else _cpu()
    return _cpu() if device == "cpu" else _gpu(device)


def parse_size(value: str | int) -> int:
    """Bytes of a size such as `20GiB`, `512MB` or a plain number, as accelerate writes
    `max_memory`.

    Raises:
        PreflightError: the value is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(value), re.IGNORECASE)
    if match is None:
        raise PreflightError(f"model.max_memory: {value!r} is not a size such as 20GiB or 512MB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def _limited(name: str, limit: str | int) -> DeviceMemory:
    if name == "disk":
        usage = shutil.disk_usage(tempfile.gettempdir())
        most = parse_size(limit)
        return DeviceMemory(
            "disk", min(usage.free, most), min(usage.total, most), "free space for temporary files"
        )
    found = _cpu() if name == "cpu" else _gpu(f"cuda:{name}")
    if found.is_absent:
        return found
    most = parse_size(limit)
    return replace(found, free=min(found.free, most), total=min(found.total, most))


def _spread(parts: list[DeviceMemory]) -> DeviceMemory:
    """The sum of the parts; 0 if one does not exist, because loading then fails."""
    absent = [part for part in parts if part.is_absent]
    if absent:
        named = " + ".join(part.device for part in absent)
        return DeviceMemory(named, 0, 0, f"max_memory: {absent[0].source}; remove it")
    return DeviceMemory(
        device=" + ".join(part.device for part in parts),
        free=sum(part.free for part in parts),
        total=sum(part.total for part in parts),
        source="max_memory; " + "; ".join(dict.fromkeys(part.source for part in parts)),
        capability=parts[0].capability,
    )


def _cpu() -> DeviceMemory:
    return DeviceMemory("cpu", *main_memory())


def _gpu(device: str) -> DeviceMemory:
    index = int(device.partition(":")[2] or 0)
    gpus = visible_gpus()
    if index < len(gpus):
        return gpus[index]
    return DeviceMemory(device, 0, 0, f"{_ABSENT} {device} here: {_why_no_gpu(len(gpus))}")


def _why_no_gpu(count: int) -> str:
    if count:
        return f"{count} CUDA devices are visible"
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    if not torch_has_cuda():
        return "the installed torch is a build without CUDA"
    return "nvidia-smi lists no device"


def torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build, judged by the libraries in its package."""
    found = importlib.util.find_spec("torch")
    places = found.submodule_search_locations if found else None
    return any(any(Path(place, "lib").glob("*torch_cuda*")) for place in places or ())


def visible_gpus() -> list[DeviceMemory]:
    """NVIDIA devices that torch can use, numbered according to CUDA_VISIBLE_DEVICES."""
    if not torch_has_cuda():
        return []
    rows = _nvidia_smi()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        rows = _chosen(rows, chosen)
    return [
        DeviceMemory(f"cuda:{number}", free * _MIB, total * _MIB, f"nvidia-smi: {name}", capability)
        for number, (_, _, name, free, total, capability) in enumerate(rows)
    ]


_GpuRow = tuple[str, str, str, int, int, float | None]
_GPU_FIELDS = "index,uuid,name,memory.free,memory.total"


def _nvidia_smi() -> list[_GpuRow]:
    """(index, uuid, name, free MiB, total MiB, compute capability) of every device; empty if
    nvidia-smi fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    for fields in (f"{_GPU_FIELDS},compute_cap", _GPU_FIELDS):  # old drivers lack the last
        try:
            answer = subprocess.run(
                [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
        except subprocess.CalledProcessError:
            continue
        except (OSError, subprocess.SubprocessError):
            return []
        rows = csv.reader(answer.stdout.splitlines(), skipinitialspace=True)
        return [
            (row[0], row[1], row[2], int(row[3]), int(row[4]), _capability(row[5:]))
            for row in rows
            if len(row) in (5, 6) and row[3].isdigit() and row[4].isdigit()
        ]
    return []  # no driver, so no device


def _capability(cells: list[str]) -> float | None:
    return float(cells[0]) if cells and re.fullmatch(r"\d+\.\d+", cells[0]) else None


def _chosen(rows: list[_GpuRow], wanted: str) -> list[_GpuRow]:
    """The devices in CUDA_VISIBLE_DEVICES (index or UUID prefix) before the first unknown one."""
    found = []
    for name in wanted.split(","):
        name = name.strip()
        match = next(
            (row for row in rows if name and (row[0] == name or row[1].startswith(name))), None
        )
        if match is None:
            break  # CUDA ignores an invalid entry and all after it
        found.append(match)
    return found


def main_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int, str]:
    """Available bytes of main memory, total bytes, and what sets the limit.

    Available is what the kernel says, but at most what the control groups of this process allow.
    """
    total, free = _whole_machine(proc)
    source = "main memory"
    for limit, used, where in _cgroup_limits(proc, cgroups):
        total = min(total, limit)
        if limit - used < free:
            free, source = max(0, limit - used), f"cgroup limit of {where}"
    data = _data_limit()
    if data is not None and data < free:
        total, free, source = min(total, data), data, "RLIMIT_DATA"
    return free, total, source


def _data_limit() -> int | None:
    """Bytes that RLIMIT_DATA (`ulimit -d`) leaves to this process; None without a limit.

    Reserved memory counts there that is not in use: stacks of threads, the ends of heaps.
    """
    try:
        import resource
    except ImportError:  # not Unix
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit in (-1, resource.RLIM_INFINITY) else max(0, limit - _RESERVED)


def _whole_machine(proc: Path) -> tuple[int, int]:
    try:
        text = (proc / "meminfo").read_text()
    except OSError:  # not Linux
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return found["MemTotal"], found["MemAvailable"]


def _cgroup_limits(proc: Path, root: Path) -> list[tuple[int, int, str]]:
    """(limit, use without reclaimable cache, folder) of this process's cgroup and its parents."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        place = PurePosixPath(path)
        # In a container the path may be that of the host; the limit is then at the root of the
        # mount.
        for folder in (base / str(p).lstrip("/") for p in (place, *place.parents)):
            limit = _limit_of(folder)
            if limit is not None:
                found.append((*limit, str(folder)))
    return found


def _limit_of(folder: Path) -> tuple[int, int] | None:
    for limit_name, use_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            used = int((folder / use_name).read_text())
            stat = (folder / "memory.stat").read_text()
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return None
        cached = re.search(rf"^{cache_name} (\d+)$", stat, re.MULTILINE)
        return int(limit), max(0, used - int(cached[1]) if cached else used)
    return None
