"""One process at a time may execute a run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glitchrun.errors import MissingExtra, RunLocked

_PATIENCE = 1.0
"""Seconds: `is_held` and `settle` in other processes take the lock too, for a moment."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a run's lock for the length of a `with` block; the kernel drops it if we are killed.

    Raises:
        RunLocked: another process holds it; the message names that process.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as exc:
        raise MissingExtra("filelock") from exc
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=0.05)
    except Timeout as exc:
        raise RunLocked(
            f"another process ({_owner(folder)}) is executing this run ({folder}); "
            "wait for it or stop it, then apply again"
        ) from exc
    try:
        _sign(folder)
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether some process is executing the run now."""
    import fcntl

    path = folder / "lock"
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _sign(folder: Path) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (folder / "owner.json").write_text(json.dumps(owner), encoding="utf-8")


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unknown"
    return f"pid {owner.get('pid')} on {owner.get('host')}"
