"""Delivers a run to MLflow while it is executed, with the memory, CPU and GPU use of this process.
A slow or dead store never stops the run."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking.deliver import Target, advance, begin, complete
from glitchrun.tracking.metric_series import Point
from glitchrun.tracking.params_and_tags import valid_name
from glitchrun.tracking.store import Store, open_store, unavailable

INTERVAL = 3.0
"""Seconds between two samples of the machine and checks for a newer record."""
RETRY_SECONDS = 30.0
"""Seconds until the next try after a failure: each try at a dead server takes a few seconds."""
PAUSE_FACTOR = 50
"""After a delivery of t seconds there is none for PAUSE_FACTOR * t, so that deliveries take less
than 2 % of the time of a long run."""


class MlflowTracker:
    """Delivers a run's record as it grows.

    A thread samples the machine and delivers the newest record, so that the run does not wait for
    MLflow between `open` and `close`.
    """

    def __init__(self, uri: str, root: Path, interval: float = INTERVAL) -> None:
        """`uri` is the store, `root` the tracking root, `interval` in seconds."""
        self.failure: str | None = None
        """Why MLflow does not have all of the run; None if it does."""
        self.deleted: str | None = None
        """The message about a run that somebody deleted in MLflow and that is not delivered."""
        self._uri, self._root, self._interval = uri, root, interval
        self._store: Store | None = None
        self._target: Target | None = None
        self._sampler: SystemSampler | None = None
        self._seen: set[Point] = set()
        self._newest: RunRecord | None = None
        self._delivered: RunRecord | None = None
        self._not_before = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, record: RunRecord) -> None:
        """Finds or creates the MLflow run, and starts the thread."""
        # mlflow is imported here, not in the thread: two threads that import large packages at
        # the same time can see incomplete modules.
        self._sampler = SystemSampler(record.started_at)
        self._newest = record
        self._try(lambda: self._advance(record))
        follow = threading.Thread(
            target=self._follow, args=(self._sampler,), name="mlflow", daemon=True
        )
        follow.start()
        self._thread = follow

    def update(self, record: RunRecord) -> None:
        """Sets the record to deliver next. Does not wait."""
        self._newest = record

    def close(self, record: RunRecord) -> None:
        """Stops the thread and delivers the whole record; `failure` tells whether that worked."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._sampler is not None:
            self._sampler.sample()
        self._try(lambda: self._finish(record))

    def _follow(self, sampler: SystemSampler) -> None:
        while not self._stop.wait(self._interval):
            sampler.sample()
            record = self._newest
            if record is not None and record is not self._delivered:
                self._deliver_newest(record)

    def _deliver_newest(self, record: RunRecord) -> None:
        start = time.monotonic()
        if start >= self._not_before:
            self._try(lambda: self._advance(record))
            self._not_before = max(
                self._not_before, start + PAUSE_FACTOR * (time.monotonic() - start)
            )

    def _try(self, action: Callable[[], None]) -> None:
        if self.deleted:
            return
        try:
            action()
        except DeletedInMlflow as exc:
            self.deleted, self.failure = str(exc), None
        except TrackingUnavailable as exc:
            self.failure = str(exc)
            self._not_before = time.monotonic() + RETRY_SECONDS
        else:
            self.failure = None

    def _advance(self, record: RunRecord) -> None:
        store = self._opened()
        with unavailable(self._uri):
            if self._target is None:
                self._target = begin(record, store)
            self._seen.update(advance(record, self._target, store, self._seen))
            self._log_system(store, self._target)
        self._delivered = record

    def _finish(self, record: RunRecord) -> None:
        self._advance(record)
        assert self._target is not None
        with unavailable(self._uri):
            complete(record, self._target, self._opened())

    def _opened(self) -> Store:
        if self._store is None:
            self._store = open_store(self._uri, self._root)
        return self._store

    def _log_system(self, store: Store, target: Target) -> None:
        from mlflow.entities import Metric

        if self._sampler is None:
            return
        points = self._sampler.pending()
        if points:
            metrics = [Metric(valid_name(p.key), p.value, p.at, p.step) for p in points]
            store.client.log_batch(target.run.info.run_id, metrics=metrics)
            self._sampler.delivered(len(points))


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
