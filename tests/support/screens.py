"""A terminal and a virtual display for whole commands to draw on."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.support.commands import ENVIRONMENT, Command

NO_WINDOWS = next(
    (
        reason
        for missing, reason in (
            (shutil.which("Xvfb") is None, "Debian's xvfb is not installed"),
            (find_spec("tkinter") is None, "this Python has no tkinter"),
        )
        if missing
    ),
    "",
)
"""Why no window can be tried here; empty where one can."""


@contextmanager
def virtual_display() -> Iterator[str]:
    """Xvfb on a display of its own, for as long as the block runs; its name, such as `:3`."""
    read, write = os.pipe()
    words = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1000x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            yield f":{told.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


def run_in_terminal(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Runs `glitchrun WORDS` with a terminal of 100 columns for stderr; code and what it drew."""
    ours, theirs = pty.openpty()
    drawing = {"TERM": "xterm", "COLUMNS": "100", "LINES": "50"}
    process = Command(
        str,
        folder,
        words,
        {**ENVIRONMENT, **drawing, **environment},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    drawn: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(ours, drawn))
    reader.start()
    code = process.wait(timeout=900)  # as long as a busy machine may take
    reader.join(30)
    assert not reader.is_alive(), "something still holds the terminal"
    return code, b"".join(drawn).decode()


def _drain(terminal: int, drawn: list[bytes]) -> None:
    try:
        while part := os.read(terminal, 65536):
            drawn.append(part)
    except OSError:  # what Linux says once the other end is closed
        pass
    finally:
        os.close(terminal)
