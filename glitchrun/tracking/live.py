"""MLflow while a run goes on. It may be late or absent; it never stops the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import limits
from glitchrun.tracking.deliver import Place, advance, begin, complete, deliver
from glitchrun.tracking.metrics import Point
from glitchrun.tracking.store import Store, delivery_uri, ensure_store, open_store, unavailable
from glitchrun.tracking.system import Sampler

INTERVAL = 3.0
"""Seconds between looks at the run."""
PAUSE = 30.0
"""Seconds of peace after a failure: each try at a dead server costs a few."""
SHARE = 20
"""A delivery that took t seconds is followed by none for SHARE * t: a long record takes longer."""


class MlflowTracker:
    """Delivers a run's record as it grows.

    A thread of its own samples the machine and delivers the newest record it was shown, so that the
    run never waits for MLflow between `open` and `close`.
    """

    def __init__(self, uri: str, root: Path, interval: float = INTERVAL) -> None:
        self.failure: str | None = None
        """Why MLflow does not have all of the run; None where it does."""
        self.deleted: str | None = None
        """What to say of a run that somebody deleted in MLflow: it is not delivered."""
        self._uri, self._root, self._interval = uri, root, interval
        self._store: Store | None = None
        self._place: Place | None = None
        self._sampler: Sampler | None = None
        self._seen: set[Point] = set()
        self._newest: RunRecord | None = None
        self._shown: RunRecord | None = None
        self._not_before = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, record: RunRecord) -> None:
        """Creates the run in MLflow, or finds the one to go on with, and begins to follow."""
        # mlflow is imported here, not in the thread: two threads that import large packages at
        # once can meet half-imported modules.
        self._sampler = Sampler(record.started_at)
        self._newest = record
        self._try(lambda: self._advance(record))
        follow = threading.Thread(
            target=self._follow, args=(self._sampler,), name="mlflow", daemon=True
        )
        follow.start()
        self._thread = follow

    def update(self, record: RunRecord) -> None:
        """Shows a newer record. Returns at once."""
        self._newest = record

    def close(self, record: RunRecord) -> None:
        """Stops following and delivers the whole record; `failure` says whether that worked."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._sampler is not None:
            self._sampler.sample()
        self._try(lambda: self._finish(record))

    def _follow(self, sampler: Sampler) -> None:
        while not self._stop.wait(self._interval):
            sampler.sample()
            record = self._newest
            if record is not None and record is not self._shown:
                self._follow_up(record)

    def _follow_up(self, record: RunRecord) -> None:
        start = time.monotonic()
        if start >= self._not_before:
            self._try(lambda: self._advance(record))
            self._not_before = max(self._not_before, start + SHARE * (time.monotonic() - start))

    def _try(self, action: Callable[[], None]) -> None:
        if self.deleted:
            return
        try:
            action()
        except DeletedInMlflow as exc:
            self.deleted, self.failure = str(exc), None
        except TrackingUnavailable as exc:
            self.failure = str(exc)
            self._not_before = time.monotonic() + PAUSE
        else:
            self.failure = None

    def _advance(self, record: RunRecord) -> None:
        store = self._opened()
        with unavailable(self._uri):
            if self._place is None:
                self._place = begin(record, store)
            self._seen.update(advance(record, self._place, store, self._seen))
            self._log_system(store, self._place)
        self._shown = record

    def _finish(self, record: RunRecord) -> None:
        self._advance(record)
        assert self._place is not None
        with unavailable(self._uri):
            complete(record, self._place, self._opened())

    def _opened(self) -> Store:
        if self._store is None:
            self._store = open_store(self._uri, self._root)
        return self._store

    def _log_system(self, store: Store, place: Place) -> None:
        from mlflow.entities import Metric

        if self._sampler is None:
            return
        points = self._sampler.pending()
        if points:
            metrics = [Metric(limits.key(p.key), p.value, p.at, p.step) for p in points]
            store.client.log_batch(place.run.info.run_id, metrics=metrics)
            self._sampler.delivered(len(points))


def reap(records: Sequence[RunRecord], root: Path) -> list[str]:
    """Sets runs right in MLflow that were left RUNNING by a process that died.

    Args:
        records: What `glitchrun.ledger.mark_killed` marked KILLED.
        root: Tracking root.

    Returns:
        Messages about those that could not be delivered; `glitchrun sync` tries them again.
    """
    failures = []
    for record in records:
        try:
            uri = delivery_uri(record.identity.tracking_uri, root)
            ensure_store(uri, root)
            deliver(record, open_store(uri, root))
        except DeletedInMlflow:
            continue  # and it stays so
        except TrackingUnavailable as exc:
            failures.append(f"{record.identity.name}: {exc}")
    return failures
