"""Runs a function in a forked process with limits on time and memory.

Chat templates come with models and are programs. `'a' * 10**10`, nested ranges and powers of large
numbers are one line each, and Python cannot interrupt most of them. So each rendering runs in
a forked child, which the system ends at its limits. A fork takes a few milliseconds and imports
nothing. The child renders, sends the text back and exits; it uses neither torch nor files.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

CPU_SECONDS = 5
"""Processor time in seconds. Templates take milliseconds; 500 messages take a few hundred."""
MEMORY = 512 * 1024**2
"""Bytes that the child may allocate in addition to the memory of this process."""
_WALL_SECONDS = 120.0
"""For a child that hardly runs, on an overloaded machine."""
_LONGEST = 64 * 1024**2
"""Bytes of the text."""
_DONE, _FAILED = b"+", b"-"
_CHUNK = 1024 * 1024


class WorkFailed(Exception):
    """The work failed or exceeded a limit; the message is one line."""


def run_bounded(work: Callable[[], str]) -> str:
    """Returns the text of `work`, run in a forked child.

    Raises WorkFailed if it raises an error, or exceeds its time, its memory or 64 MiB of text.
    """
    reading, writing = os.pipe()
    # No signal may reach the child until it has replaced the signal handlers of this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        child = os.fork()
        if not child:
            _run_child(work, writing, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
    try:
        answer = _receive(reading)
    finally:
        os.close(reading)
        status = _kill_and_wait(child)
    return _text(answer, status)


def _run_child(work: Callable[[], str], writing: int, mask: set[int | signal.Signals]) -> None:
    """Runs the work, sends the result and exits; never returns."""
    try:
        faulthandler.disable()  # `_text` reports how the child ended
        gc.disable()  # it would free tensors of the parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _limit()
        try:
            answer = _DONE + work().encode("utf-8", "surrogatepass")
        except MemoryError:
            answer = _FAILED + f"it needs more than {MEMORY // 1024**2} MiB".encode()
        # Any error of the template or of the libraries that render it is the result.
        except Exception as error:  # noqa: BLE001
            line = f"{type(error).__name__}: {str(error)[:2000]}".splitlines()[0]
            answer = _FAILED + line.encode("utf-8", "replace")
        _send(writing, answer)
    finally:
        os._exit(0)


def _limit() -> None:
    """Lowers the limits of this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, CPU_SECONDS)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux
        return
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)


def _lower(kind: int, bound: int) -> None:
    soft, hard = resource.getrlimit(kind)
    known = [one for one in (soft, hard, bound) if one != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(known), hard))


def _send(writing: int, answer: bytes) -> None:
    sent = memoryview(answer)
    while sent:
        sent = sent[os.write(writing, sent[:_CHUNK]) :]


def _receive(reading: int) -> bytes | None:
    """The bytes that the child wrote, at least one over the limit if it exceeds it; None after the
    time limit."""
    ends, answer = time.monotonic() + _WALL_SECONDS, bytearray()
    while len(answer) <= _LONGEST:
        ready, _, _ = select.select([reading], [], [], max(0.0, ends - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(reading, _CHUNK)
        if not chunk:
            break
        answer += chunk
    return bytes(answer)


def _kill_and_wait(child: int) -> int:
    """Kills the child if it still runs; returns its exit status."""
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _text(answer: bytes | None, status: int) -> str:
    if answer is None:
        raise WorkFailed(f"it is not finished after {_WALL_SECONDS:.0f} seconds")
    if len(answer) > _LONGEST:
        raise WorkFailed(f"it writes more than {_LONGEST // 1024**2} MiB")
    text = answer[1:].decode("utf-8", "surrogatepass")
    if answer[:1] == _DONE:
        return text
    if answer[:1] == _FAILED:
        raise WorkFailed(text)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number == signal.SIGXCPU:
        raise WorkFailed(f"it needs more than {CPU_SECONDS} seconds of processor time")
    how = f"by signal {signal.Signals(number).name}" if number else "without an answer"
    raise WorkFailed(
        f"its process was ended {how}: it may recurse too deeply, or need too much memory"
    )
