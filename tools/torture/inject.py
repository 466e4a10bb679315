"""Faults inside a command's own process. `install` runs there before the command does."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR


def install(fault: dict[str, Any]) -> None:
    """Prepares the fault `{"kind": NAME, ...}`; the other keys are the arguments of its function.

    Raises:
        KeyError: no fault has this name.
    """
    arguments = {key: value for key, value in fault.items() if key != "kind"}
    FAULTS[fault["kind"]](**arguments)


def kill_at_file(part: str, nth: int) -> None:
    """Kills the process before its `nth` change to a file whose path contains `part`."""
    left = nth

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
        elif event not in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate"):
            return
        if any(part in str(argument) for argument in arguments[:2]):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def limit(name: str, size: int) -> None:
    """Sets RLIMIT_`name`; AS and DATA to `size` bytes above what the process has now."""
    kind = getattr(resource, f"RLIMIT_{name}")
    field = {"AS": 0, "DATA": 5}.get(name)
    if field is not None:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[field]
        size += int(pages) * resource.getpagesize()
    resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))


def clock(seconds: float, after: int) -> None:
    """Moves the clock by `seconds` once it was read `after` times."""
    real, real_ns = time.time, time.time_ns
    read = 0

    def moved() -> float:
        nonlocal read
        read += 1
        return seconds if read > after else 0

    time.time = lambda: real() + moved()
    time.time_ns = lambda: real_ns() + int(moved() * 1e9)


def out_of_memory(nth: int, where: str, in_steps: bool) -> None:
    """Raises torch.OutOfMemoryError, or with `where` "host" a MemoryError, in the `nth` operation
    of torch; with `in_steps` they are counted from the first stored batch on."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    error = torch.OutOfMemoryError if where == "model" else MemoryError
    left, counts = nth, not in_steps

    def begin() -> None:
        nonlocal counts
        counts = True

    if in_steps:
        _before_each_batch(begin)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            nonlocal left
            left -= counts
            if left == 0 and counts:
                left = -1  # once
                raise error("CUDA out of memory. Tried to allocate 2.00 GiB." * (where == "model"))
            return func(*args, **(kwargs or {}))

    Counting().__enter__()


def raising_step(nth: int) -> None:
    """Raises a ZeroDivisionError, as a defect of a strategy would, before the `nth` batch."""
    left = nth

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise ZeroDivisionError("a defect of a strategy")

    _before_each_batch(count)


def _before_each_batch(action: Callable[[], None]) -> None:
    """Calls `action` before each batch or metric of a step is stored."""
    from glitchrun.runner.execute import _Run

    stored = _Run._store

    def store(self: Any, event: Any, journal: Any) -> None:
        action()
        stored(self, event, journal)

    _Run._store = store  # type: ignore[method-assign]


def other_mlflow(version: str) -> None:
    """Pretends that another version of MLflow is installed."""
    from glitchrun.tracking import sqlite_file

    sqlite_file._installed_mlflow = lambda: version


def terminal() -> None:
    """Makes standard input the controlling terminal of a session of its own."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def unprivileged() -> None:
    """Drops the superuser's right to ignore permissions, and keeps the user."""
    from tests.support.permissions import drop

    drop()


FAULTS: dict[str, Callable[..., None]] = {
    "kill_at_file": kill_at_file,
    "limit": limit,
    "clock": clock,
    "out_of_memory": out_of_memory,
    "raising_step": raising_step,
    "other_mlflow": other_mlflow,
    "terminal": terminal,
    "unprivileged": unprivileged,
}
