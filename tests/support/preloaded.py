"""Runs `glitchrun` commands as processes of their own, forked from one that has done the imports.

Importing torch, transformers and mlflow takes longer than a tiny run. This module's process imports
them once and then reads requests from a socket, whose descriptor is its argument. For each request
it forks a process that runs the command as `python -m glitchrun` would, down to the interpreter's
own exit. It reports the process's id, and in the end its exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from glitchrun.tracking.store import configure_mlflow
from tests.support import stores
from tools.torture.inject import install

_patches = ExitStack()
"""Kept to the end of a command's process."""


@contextmanager
def without_figures() -> Iterator[None]:
    """Leaves the figures out of reports: drawing them takes most of the time of a tiny run."""

    def none(record: object) -> list[Any]:
        return []

    with (
        patch("glitchrun.report.figures.drawings", none),
        patch("glitchrun.report.html.drawings", none),
        patch("glitchrun.report.study_files.drawings", none),
    ):
        yield


def serve(requests: socket.socket) -> None:
    """Forks a process for each request. Returns in the forked processes, ready to run the command;
    where the other end is closed, it ends the process."""
    while True:
        message, files, *_ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            return _watch(json.loads(message), *files)
        for file in files:
            os.close(file)


def _watch(request: dict[str, Any], stdin: int, stdout: int, stderr: int, report: int) -> None:
    """Forks the command and reports `PID\\nSTATUS\\n`; returns in the command's process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if command := os.fork():
        os.write(report, f"{command}\n".encode())
        for file in (stdin, stdout, stderr):
            os.close(file)
        _, status = os.waitpid(command, 0)
        os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    for number, file in enumerate((stdin, stdout, stderr)):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.close(report)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["glitchrun", *request["words"]]
    if not request["creates"]:
        _patches.enter_context(
            patch("glitchrun.tracking.sqlite_file._create", stores.create_by_copy)
        )
    if not request["figures"]:
        _patches.enter_context(without_figures())
    for fault in request["faults"]:
        install(fault)


IMPORTS = (
    "glitchrun.chat",
    "glitchrun.cli.apply",
    "glitchrun.report.html",
    "glitchrun.runner.apply",
    "glitchrun.runner.live.terminal_display",
    "glitchrun.search.cascade",
    "glitchrun.search.gradient",
    "glitchrun.strategies.mine.run",
    "glitchrun.strategies.validate.run",
    "glitchrun.tracking.sync",
    "matplotlib.colors",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracking",
    "sqlalchemy.dialects.sqlite",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
"""What a run imports; each command would import the rest again."""


def preload() -> None:
    """Imports `IMPORTS`."""
    import torch

    configure_mlflow()
    for name in IMPORTS:
        importlib.import_module(name)
    assert torch.get_num_threads() == threading.active_count() == 1, "forked, threads would hang"
    gc.freeze()


if __name__ == "__main__":
    preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    from glitchrun.cli import main

    main(prog_name="glitchrun")
