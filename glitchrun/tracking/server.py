"""The server of the MLflow UI, on loopback, while `glitchrun ui` runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from glitchrun.errors import PreflightError
from glitchrun.tracking.store import configure_mlflow

HOST = "127.0.0.1"
START_SECONDS = 120
"""Seconds to wait for the server; starting took 6.5 s on an idle machine."""
_STOP_SECONDS = 10


class Server:
    """A running MLflow server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self.address = f"http://{HOST}:{port}"
        self._process = process
        self._log = log

    def wait_until_up(self) -> None:
        """Waits until the server answers.

        Raises:
            PreflightError: it ended, or did not answer within `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PreflightError(f"the MLflow server did not start:\n{self._log_end()}")
            time.sleep(0.2)

    def wait(self) -> int:
        """Waits until the server ends, and returns its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Ends the server and its workers."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=2):  # nosec B310 # our server
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _log_end(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:] or "it printed nothing"


@contextmanager
def serving(uri: str, root: Path, port: int) -> Iterator[Server]:
    """Runs an MLflow server on the store inside a `with` block.

    Args:
        uri: The store. The server receives it in its environment, which other users cannot see.
        root: Tracking root.
        port: Port to listen on; 0 for any free one.

    Raises:
        PreflightError: the port is in use.
    """
    port = _free_port(port)
    configure_mlflow()
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--no-serve-artifacts"]
    command += ["--default-artifact-root", (root.resolve() / "artifacts").as_uri()]
    with tempfile.TemporaryFile() as log:
        # A separate session: Ctrl-C reaches this process only, which stops the server's processes.
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        server = Server(process, port, log)
        try:
            yield server
        finally:
            server.stop()


def _free_port(port: int) -> int:
    """`port`, or any free one for 0. Raises PreflightError if it is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            raise PreflightError(
                f"port {port} on {HOST} is in use ({exc.strerror}); choose another with --port, "
                "or --port 0 for any free one"
            ) from exc
        found: int = probe.getsockname()[1]
        return found
