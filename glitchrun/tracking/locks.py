"""Locks between the processes that deliver to one store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glitchrun.errors import TrackingUnavailable

LOCK_SECONDS = 360
"""Creating a store took 10 s on a loaded machine, and deliveries stand in line."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file at `path` for the length of a `with` block.

    Raises:
        TrackingUnavailable: another process holds it for too long.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as exc:
        raise TrackingUnavailable(
            f"another process has held {path} for {LOCK_SECONDS} s; stop it, or wait and try again"
        ) from exc
    try:
        yield
    finally:
        lock.release()
