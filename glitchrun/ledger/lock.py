"""Locks between processes: one at a time executes a run, or changes an MLflow store."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from glitchrun.errors import (
    MissingExtra,
    PreflightError,
    RunLocked,
    TrackingUnavailable,
    file_access,
)
from glitchrun.ledger.files import open_regular, read_text

_PATIENCE = 1.0
"""Seconds to wait: `is_held` and `mark_killed` in other processes take the lock for a moment."""
_LAST_BREATH = 60.0
"""Seconds after which a killed process has released its lock; the kernel frees its memory first."""
STORE_SECONDS = 360
"""Seconds to wait for a store: creating one took 10 s on a loaded machine, and deliveries queue."""
_PF_EXITING = 0x4
"""Flag in /proc/PID/stat of a process that is shutting down (linux/sched.h)."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a run's lock inside a `with` block; the kernel releases it if the process is killed.

    Raises:
        RunLocked: another process holds it; the message names that process.
        PreflightError: the folder, or the lock in it, cannot be created.
        MissingExtra: filelock is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as exc:
        raise MissingExtra("filelock") from exc
    try:
        with file_access(folder, "the run cannot be locked", PreflightError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock")
            try:
                lock.acquire(timeout=_PATIENCE, poll_interval=0.05)
            except Timeout:
                lock.acquire(timeout=_LAST_BREATH if _owner_is_dying(folder) else 0)
    except Timeout as exc:
        owner = _owner(folder)
        raise RunLocked(
            f"another process (pid {owner.get('pid')} on {owner.get('host')}) is executing this "
            f"run ({folder}); wait for it or stop it, then apply again"
        ) from exc
    try:
        with file_access(folder, "the run cannot be locked", PreflightError):
            _sign(folder)
        yield
    finally:
        lock.release()


@contextmanager
def wait_and_hold(folder: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """As `hold`, but waits while another process holds the lock.

    Args:
        folder: The folder to lock.
        waiting: Called about once a second with who holds it; may raise to end the wait.

    Raises:
        PreflightError: the folder, or the lock in it, cannot be created.
        MissingExtra: filelock is not installed.
    """
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(folder))
                break
            except RunLocked:
                owner = _owner(folder)
                waiting(f"pid {owner.get('pid')} on {owner.get('host')}")
        yield


def is_held(folder: Path) -> bool:
    """Whether a process is executing the run.

    A killed process does not count, although it holds the lock until the kernel has freed its
    memory. A lock that cannot be read, such as another user's, counts as held.
    """
    import fcntl

    try:
        file = open_regular(folder / "lock")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return not _owner_is_dying(folder)
        except OSError:  # a network share without locks
            return True
        return False


def _sign(folder: Path) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (folder / "owner.json").write_text(json.dumps(owner), encoding="utf-8")


def _owner(folder: Path) -> dict[str, Any]:
    try:
        owner = json.loads(read_text(folder / "owner.json"))
    except (OSError, ValueError, RecursionError):
        owner = None
    return owner if isinstance(owner, dict) else {"pid": "unknown", "host": "unknown"}


def _owner_is_dying(folder: Path) -> bool:
    """Whether the process that signed the lock was killed and is still shutting down."""
    owner = _owner(folder)
    if owner.get("host") != socket.gethostname():
        return False
    try:
        text = Path(f"/proc/{owner.get('pid')}/stat").read_text(errors="replace")
    except OSError:  # no such process: the holder of the lock has not signed it yet
        return False
    state, *numbers = text.rpartition(")")[2].split()  # from the third field on: proc(5)
    return state in "ZX" or bool(int(numbers[5]) & _PF_EXITING)


@contextmanager
def store_lock(path: Path) -> Iterator[None]:
    """Holds the lock file of an MLflow store inside a `with` block.

    Raises:
        TrackingUnavailable: another process holds it for more than `STORE_SECONDS`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=STORE_SECONDS)
    try:
        lock.acquire()
    except Timeout as exc:
        raise TrackingUnavailable(
            f"another process has held {path} for {STORE_SECONDS} s; stop it, or wait and try again"
        ) from exc
    try:
        yield
    finally:
        lock.release()
