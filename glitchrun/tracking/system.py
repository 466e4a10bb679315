"""Memory, processor and GPU while a run goes on, under the names of MLflow's own sampler.

MLflow's sampler waits 10 s for its first sample, so that a short run shows nothing; and it has
nothing about the process itself, which is what a memory estimate is held against.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

from glitchrun.tracking.metrics import Point

_MEGA = 1e6
_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"
_MIB = 1024 * 1024 / _MEGA


class Sampler:
    """Takes samples and keeps them until they are delivered."""

    def __init__(self, started_at: int) -> None:
        """`started_at`: when the run began, in ms; samples are placed by seconds since then."""
        import psutil

        self._started_at = started_at
        self._process = psutil.Process()
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._pending: list[Point] = []
        self._process.cpu_percent()  # measures since its last call, so the first says nothing
        self._busy, self._total = _cpu_seconds()

    def sample(self) -> None:
        """Takes one sample of everything."""
        at = time.time_ns() // 1_000_000
        step = max(0, (at - self._started_at) // 1000)
        values = [*self._machine(), *self._own(), *self._gpus()]
        self._pending += [Point(f"system/{name}", value, at, step) for name, value in values]

    def pending(self) -> tuple[Point, ...]:
        """The samples that were not delivered yet."""
        return tuple(self._pending)

    def delivered(self, count: int) -> None:
        """Forgets the first `count` of them."""
        del self._pending[:count]

    def _machine(self) -> Iterator[tuple[str, float]]:
        import psutil

        busy, total = _cpu_seconds()
        if total > self._total:
            share = (busy - self._busy) / (total - self._total)
            yield "cpu_utilization_percentage", 100 * max(0.0, min(1.0, share))
        self._busy, self._total = busy, total
        memory = psutil.virtual_memory()
        yield "system_memory_usage_megabytes", (memory.total - memory.available) / _MEGA
        yield "system_memory_usage_percentage", memory.percent

    def _own(self) -> Iterator[tuple[str, float]]:
        yield "process_memory_megabytes", self._process.memory_info().rss / _MEGA
        yield "process_cpu_percentage", self._process.cpu_percent()

    def _gpus(self) -> Iterator[tuple[str, float]]:
        """What the driver says of each GPU; nothing where there is none or it does not answer."""
        if self._nvidia_smi is None:
            return
        command = [self._nvidia_smi, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (subprocess.SubprocessError, OSError):
            self._nvidia_smi = None  # it will not answer better in three seconds
            return
        yield from gpu_values(done.stdout)


def _cpu_seconds() -> tuple[float, float]:
    """Seconds that all processors together were busy, and in all, since the machine started.

    `psutil.cpu_percent` counts from the last call of the same thread, and samples come from two.
    """
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    total = sum(times)
    return total - idle, total


def gpu_values(listing: str) -> Iterator[tuple[str, float]]:
    """The values in what `nvidia-smi` lists as CSV, without those that it does not know."""
    for line in listing.splitlines():
        index, use, held, total, power = (cell.strip() for cell in line.split(","))
        if held.isdigit() and total.isdigit():
            yield f"gpu_{index}_memory_usage_megabytes", int(held) * _MIB
            yield f"gpu_{index}_memory_usage_percentage", 100 * int(held) / int(total)
        if use.isdigit():
            yield f"gpu_{index}_utilization_percentage", float(use)
        if power.replace(".", "", 1).isdigit():
            yield f"gpu_{index}_power_usage_watts", float(power)
