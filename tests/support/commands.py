"""Whole commands, run as a user runs them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from click.testing import CliRunner, Result

from glitchrun.cli import main
from tests.support.preloaded import without_figures

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT.pop("MLFLOW_TRACKING_URI", None)

S = TypeVar("S", str, bytes)


class Command(Generic[S]):
    """A `glitchrun` command in a process of its own that needs no imports: see preloaded.py.

    It has the part of `subprocess.Popen` that the tests use. Each stream is a pipe, or the
    descriptor that is given. `figures`: whether reports have figures; `creates`: whether MLflow
    creates a new store, which is otherwise a copy; `faults`: what to inject, see
    tools/torture/inject.py.
    """

    def __init__(
        self,
        kind: type[S],
        folder: Path,
        words: tuple[str, ...],
        environment: dict[str, str] | None = None,
        *,
        figures: bool = False,
        creates: bool = False,
        faults: Sequence[Mapping[str, Any]] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> None:
        mode = "" if kind is str else "b"
        self._kind = kind
        self.returncode: int | None = None
        self.stdin, stdin = _pipe(stdin, 0, f"w{mode}")
        self.stdout, stdout = _pipe(stdout, 1, f"r{mode}")
        self.stderr, stderr = _pipe(stderr, 1, f"r{mode}")
        report, reporting = os.pipe()
        request = {
            "folder": str(folder),
            "words": words,
            "environment": environment or ENVIRONMENT,
            "figures": figures,
            "creates": creates,
            "faults": list(faults),
        }
        files = [stdin, stdout, stderr, reporting]
        socket.send_fds(_server(), [json.dumps(request).encode()], files)
        for file in files:
            os.close(file)
        self._report = os.fdopen(report, encoding="ascii")
        self.pid = int(self._report.readline())

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; for a command that a signal ended, the signal's number, negative."""
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("glitchrun", timeout or 0)
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None while the command runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[S, S]:
        """Closes standard input, and returns what was printed and not yet read, and stderr's."""
        if self.stdin:
            self.stdin.close()
        with ThreadPoolExecutor(2) as readers:
            reading = [readers.submit(pipe.read) for pipe in (self.stdout, self.stderr) if pipe]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            texts = [text.result() for text in reading]
        for pipe in (self.stdout, self.stderr):
            if pipe:
                pipe.close()
        out = texts.pop(0) if self.stdout else self._kind()
        return out, texts.pop(0) if self.stderr else self._kind()

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the command at once."""
        self.send_signal(signal.SIGKILL)


def _pipe(wanted: int, theirs: int, mode: str) -> tuple[IO[Any] | None, int]:
    """Our end of a pipe, and the other; None and a copy of the descriptor where one is given."""
    if wanted == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if wanted != subprocess.PIPE:
        return None, os.dup(wanted)
    ends = os.pipe()
    return os.fdopen(ends[1 - theirs], mode), ends[theirs]


@cache
def _server() -> socket.socket:
    """The connection to the process that commands are forked from. It ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.preloaded", str(theirs.fileno())],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return ours


def start(folder: Path, *words: str, **environment: str) -> Command[str]:
    """Starts `glitchrun WORDS` in a folder."""
    return Command(str, folder, words, {**ENVIRONMENT, **environment})


def run(
    folder: Path, *words: str, figures: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `glitchrun WORDS` in a folder to its end."""
    process = Command(str, folder, words, {**ENVIRONMENT, **environment}, figures=figures)
    out, err = process.communicate(timeout=300)
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def invoked(folder: Path, *words: str, figures: bool = False) -> Result:
    """`glitchrun WORDS` in a folder, in this process."""
    with chdir(folder), nullcontext() if figures else without_figures():
        return CliRunner(env={"MLFLOW_TRACKING_URI": None}).invoke(main, list(words))


def applied(folder: Path, *words: str, figures: bool = False) -> dict[str, Any]:
    """What `glitchrun apply -o json WORDS` printed; its exit code must be the one it names."""
    done = invoked(folder, "apply", "-o", "json", *words, figures=figures)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["exit_code"] == done.exit_code, done.stderr
    return result
