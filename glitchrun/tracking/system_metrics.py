"""Memory, CPU and GPU use during a run, under the names of MLflow's own system metrics.

MLflow's sampler takes its first sample after 10 s, so that a short run would have none. It does not
measure the process itself, whose memory a user compares with the plan's estimate.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

from glitchrun.tracking.metric_series import Point

_MEGA = 1e6
_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"
_MIB = 1024 * 1024 / _MEGA


class SystemSampler:
    """Samples the machine and keeps the points until they are delivered."""

    def __init__(self, started_at: int) -> None:
        """`started_at` is in milliseconds since the epoch; steps are seconds since then."""
        import psutil

        self._started_at = started_at
        self._process = psutil.Process()
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._pending: list[Point] = []
        self._process.cpu_percent()  # measures since its last call, so the first result is 0
        self._busy, self._total = _cpu_seconds()

    def sample(self) -> None:
        """Takes one sample of machine, process and GPUs."""
        at = time.time_ns() // 1_000_000
        step = max(0, (at - self._started_at) // 1000)
        values = [*self._machine(), *self._own(), *self._gpus()]
        self._pending += [Point(f"system/{name}", value, at, step) for name, value in values]

    def pending(self) -> tuple[Point, ...]:
        """The points that were not delivered yet, oldest first."""
        return tuple(self._pending)

    def delivered(self, count: int) -> None:
        """Removes the first `count` pending points."""
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
        """The metrics of each GPU; none if nvidia-smi is missing or does not answer."""
        if self._nvidia_smi is None:
            return
        command = [self._nvidia_smi, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (subprocess.SubprocessError, OSError):
            self._nvidia_smi = None  # it would not answer three seconds later either
            return
        yield from gpu_values(done.stdout)


def _cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all CPU cores since the machine started.

    `psutil.cpu_percent` counts from the last call in the same thread, and two threads sample.
    """
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    total = sum(times)
    return total - idle, total


def gpu_values(listing: str) -> Iterator[tuple[str, float]]:
    """The metrics in the CSV output of `nvidia-smi`; unknown values are left out."""
    for line in listing.splitlines():
        index, use, held, total, power = (cell.strip() for cell in line.split(","))
        if held.isdigit() and total.isdigit():
            yield f"gpu_{index}_memory_usage_megabytes", int(held) * _MIB
            yield f"gpu_{index}_memory_usage_percentage", 100 * int(held) / int(total)
        if use.isdigit():
            yield f"gpu_{index}_utilization_percentage", float(use)
        if power.replace(".", "", 1).isdigit():
            yield f"gpu_{index}_power_usage_watts", float(power)
