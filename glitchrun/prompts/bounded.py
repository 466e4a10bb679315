"""Run a template that came with a model within bounds on time and memory.

A chat template is a program: `'a' * 10**10`, nested ranges and powers of large numbers are one line
each, and most of them cannot be interrupted from inside Python. So each rendering happens in a copy
of this process (fork: some milliseconds, nothing is imported anew) that the system ends when it has
used up its share. The copy renders, sends text back and exits; it touches neither torch nor files.
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
"""Templates take milliseconds; with 500 messages some hundred."""
MEMORY = 512 * 1024**2
"""Bytes beyond what the process has already."""
_WALL_SECONDS = 120.0
"""A process that is waited for but hardly ever runs, on a machine that is overloaded."""
_LONGEST = 64 * 1024**2
_DONE, _FAILED = b"+", b"-"
_CHUNK = 1024 * 1024


class Failed(Exception):
    """What went wrong with the work, in one line."""


def bounded(work: Callable[[], str]) -> str:
    """The text that `work` returns, computed in a copy of this process.

    Raises Failed when it raises anything, or goes beyond its time, its memory or 64 MiB of text.
    """
    reading, writing = os.pipe()
    # Until the copy has put the handlers of this process aside, no signal may reach them there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        child = os.fork()
        if not child:
            _in_the_copy(work, writing, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
    try:
        answer = _receive(reading)
    finally:
        os.close(reading)
        status = _end(child)
    return _text(answer, status)


def _in_the_copy(work: Callable[[], str], writing: int, mask: set[int | signal.Signals]) -> None:
    """Does the work, writes what came of it and exits; never returns."""
    try:
        faulthandler.disable()  # how it ends is said below
        gc.disable()  # it would free the tensors of the other process
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the other process to act on
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _limit()
        try:
            answer = _DONE + work().encode("utf-8", "surrogatepass")
        except MemoryError:
            answer = _FAILED + f"it needs more than {MEMORY // 1024**2} MiB".encode()
        # Whatever the template or the libraries around it raise is the answer.
        except Exception as error:  # noqa: BLE001
            line = f"{type(error).__name__}: {str(error)[:2000]}".splitlines()[0]
            answer = _FAILED + line.encode("utf-8", "replace")
        _send(writing, answer)
    finally:
        os._exit(0)


def _limit() -> None:
    """Bounds on this process, below those that it has already."""
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
    """What the copy wrote; None where it went on for too long. One byte over the bound is kept."""
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


def _end(child: int) -> int:
    """Ends the copy where it has not ended by itself; returns its status."""
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _text(answer: bytes | None, status: int) -> str:
    if answer is None:
        raise Failed(f"it is not done after {_WALL_SECONDS:.0f} seconds")
    if len(answer) > _LONGEST:
        raise Failed(f"it writes more than {_LONGEST // 1024**2} MiB")
    text = answer[1:].decode("utf-8", "surrogatepass")
    if answer[:1] == _DONE:
        return text
    if answer[:1] == _FAILED:
        raise Failed(text)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number == signal.SIGXCPU:
        raise Failed(f"it needs more than {CPU_SECONDS} seconds of processor time")
    how = f"by signal {signal.Signals(number).name}" if number else "without an answer"
    raise Failed(f"its process was ended {how}: it may recurse too deeply, or need too much memory")
