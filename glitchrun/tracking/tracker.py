"""Delivers a run to MLflow while it is executed. A slow or dead store never stops the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking.address import shown, sqlite_path
from glitchrun.tracking.deliver import Target, advance, begin, complete
from glitchrun.tracking.metric_series import Point
from glitchrun.tracking.params_and_tags import valid_name
from glitchrun.tracking.store import Store, open_store, unavailable
from glitchrun.tracking.system_metrics import SystemSampler

INTERVAL = 3.0
"""Seconds between two samples of the machine and checks for a newer record."""
RETRY_SECONDS = 30.0
"""Seconds until the next try after a failure: each try at a dead server takes a few seconds."""
PAUSE_FACTOR = 50
"""After a delivery of t seconds there is none for PAUSE_FACTOR * t, so that deliveries take less
than 2 % of the time of a long run."""
PATIENCE = 15.0
"""Seconds that a run waits for one answer of a server. MLflow bounds only the pause between two
bytes, and repeats a request twice."""
SHORT_PATIENCE = 2.0
"""Seconds that a run waits after another run of the same command waited in vain."""
UPLOAD_RATE = 1e6
"""Bytes per second that a server is trusted to receive; a large file gets more time by this."""


@dataclass
class Outage:
    """What the runs of one command know about their server."""

    silent: bool = False
    """Whether a run gave up on it, and it has not answered since."""


class _Watched:
    """An `MlflowClient` that tells by when the server must have answered."""

    def __init__(self, client: Any, outage: Outage) -> None:
        self._client, self._outage = client, outage
        self.deadline = 0.0
        self.extend()

    def extend(self, size: int = 0) -> None:
        """Sets the deadline of a request that sends `size` bytes."""
        patience = SHORT_PATIENCE if self._outage.silent else PATIENCE
        self.deadline = time.monotonic() + patience + size / UPLOAD_RATE

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.extend(Path(args[1]).stat().st_size if name == "log_artifact" else 0)
            result = call(*args, **kwargs)
            self._outage.silent = False
            self.extend()
            return result

        return watched


class MlflowTracker:
    """Delivers a run's record as it grows.

    A thread samples the machine and does all that needs the store, so that the run does not wait
    for MLflow between `open` and `close`. These two wait for the thread, but not for a server that
    has stopped answering.
    """

    def __init__(
        self, uri: str, root: Path, interval: float = INTERVAL, outage: Outage | None = None
    ) -> None:
        """Prepares the delivery of one run.

        Args:
            uri: The store.
            root: Tracking root.
            interval: Seconds between two deliveries.
            outage: Shared by the runs of one command.
        """
        self.failure: str | None = None
        """Why MLflow does not have all of the run; None if it does."""
        self.deleted: str | None = None
        """The message about a run that somebody deleted in MLflow and that is not delivered."""
        self._uri, self._root, self._interval = uri, root, interval
        self._outage = outage or Outage()
        self._watch: _Watched | None = None
        self._store: Store | None = None
        self._target: Target | None = None
        self._seen: set[Point] = set()
        self._newest: RunRecord | None = None
        self._delivered: RunRecord | None = None
        self._not_before = 0.0
        self._begun, self._stop, self._done = (threading.Event() for _ in range(3))
        self._intact = False

    def open(self, record: RunRecord) -> None:
        """Finds or creates the MLflow run, and starts the thread."""
        # mlflow is imported here, not in the thread: two threads that import large packages at
        # the same time can see incomplete modules.
        sampler = SystemSampler(record.started_at)
        self._newest = record
        self._try(self._open_store)
        threading.Thread(target=self._follow, args=(sampler,), name="mlflow", daemon=True).start()
        self._wait(self._begun)

    def update(self, record: RunRecord) -> None:
        """Sets the record to deliver next. Does not wait."""
        self._newest = record

    def close(self, record: RunRecord) -> None:
        """Stops the thread and delivers the whole record; `failure` tells whether that worked."""
        self._newest = record
        if self._watch is not None:
            self._watch.extend()
        self._stop.set()
        self._wait(self._done)

    def _wait(self, happened: threading.Event) -> None:
        """Waits for the thread; gives up on a server that answers no request in time."""
        while not happened.wait(0.05):
            if self._watch is not None and time.monotonic() > self._watch.deadline:
                self._outage.silent = True
                self.failure = f"MLflow store {shown(self._uri)}: it does not answer"
                return
        if self._done.is_set() and not self._intact:
            self.failure = "glitchrun's delivery failed with the traceback above"

    def _follow(self, sampler: SystemSampler) -> None:
        try:
            self._deliver_newest(sampler)
            self._begun.set()
            while not self._stop.wait(self._interval):
                sampler.sample()
                if self._newest is not self._delivered and time.monotonic() >= self._not_before:
                    self._deliver_newest(sampler)
            sampler.sample()
            self._try(lambda: self._finish(sampler))
            self._intact = True
        finally:  # after a defect of glitchrun, too, whose traceback the thread prints
            self._begun.set()
            self._done.set()

    def _deliver_newest(self, sampler: SystemSampler) -> None:
        start = time.monotonic()
        self._try(lambda: self._advance(sampler))
        self._not_before = max(self._not_before, start + PAUSE_FACTOR * (time.monotonic() - start))

    def _try(self, action: Callable[[], object]) -> None:
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

    def _advance(self, sampler: SystemSampler) -> RunRecord:
        record, store = self._newest, self._open_store()
        assert record is not None
        with unavailable(self._uri):
            if self._target is None:
                self._target = begin(record, store)
            self._seen.update(advance(record, self._target, store, self._seen))
            self._log_system(store, self._target, sampler)
        self._delivered = record
        return record

    def _finish(self, sampler: SystemSampler) -> None:
        record = self._advance(sampler)
        assert self._target is not None
        with unavailable(self._uri):
            complete(record, self._target, self._open_store())

    def _open_store(self) -> Store:
        if self._store is None:
            store = open_store(self._uri, self._root)
            if sqlite_path(self._uri) is None:
                self._watch = _Watched(store.client, self._outage)
                store = replace(store, client=self._watch)
            self._store = store
        return self._store

    @staticmethod
    def _log_system(store: Store, target: Target, sampler: SystemSampler) -> None:
        from mlflow.entities import Metric

        points = sampler.pending()
        if points:
            metrics = [Metric(valid_name(p.key), p.value, p.at, p.step) for p in points]
            store.client.log_batch(target.run.info.run_id, metrics=metrics)
            sampler.delivered(len(points))
