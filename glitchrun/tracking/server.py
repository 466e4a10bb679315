"""MLflow's own server, lean, on loopback, for as long as someone looks at it."""

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
from glitchrun.tracking.store import settle_mlflow

HOST = "127.0.0.1"
START_SECONDS = 120
"""It took 6.5 s; a loaded machine is given time."""
_STOP_SECONDS = 10


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self.address = f"http://{HOST}:{port}"
        self._process = process
        self._log = log

    def wait_until_up(self) -> None:
        """Returns when the server answers.

        Raises:
            PreflightError: it ended, or did not answer in `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PreflightError(f"the MLflow server did not start:\n{self._last_words()}")
            time.sleep(0.2)

    def wait(self) -> int:
        """Returns when the server ends by itself: its exit code."""
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
            with urllib.request.urlopen(f"{self.address}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:] or "it said nothing"


@contextmanager
def serving(uri: str, root: Path, port: int) -> Iterator[Server]:
    """A server on the store at `uri`, stopped when the block ends.

    Args:
        uri: The store. It is handed over in the environment, where it is not listed to others.
        root: Tracking root.
        port: To listen on; 0 for any that is free.

    Raises:
        PreflightError: the port is taken.
    """
    port = _free(port)
    settle_mlflow()
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--no-serve-artifacts"]
    command += ["--default-artifact-root", (root.resolve() / "artifacts").as_uri()]
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C reaches us alone, and we stop the whole family.
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        server = Server(process, port, log)
        try:
            yield server
        finally:
            server.stop()


def _free(port: int) -> int:
    """`port` where nobody listens on it, any free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            raise PreflightError(
                f"port {port} on {HOST} is taken ({exc.strerror}); choose another with --port, "
                "or --port 0 for any that is free"
            ) from exc
        found: int = probe.getsockname()[1]
        return found
