"""MLflow servers on loopback, and a proxy before one, that fail when they are told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

USER, PASSWORD = "admin", "not-a-secret-4711"
_AUTH = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
_UP_SECONDS = 120


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """An MLflow server on loopback that can be killed, stopped and started again."""

    folder: Path
    options: tuple[str, ...] = ()
    auth: bool = True
    store: str = ""
    """URI of its store; by default SQLite in its folder."""
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.store = self.store or f"sqlite:///{self.folder}/server.db"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ini = self.folder / "auth.ini"
        ini.write_text(_AUTH.format(folder=self.folder, user=USER, password=PASSWORD))
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--workers", "1", "--port", str(self.port)]
        command += ["--app-name", "basic-auth"] if self.auth else []
        command += ["--backend-store-uri", self.store]
        command += self.options or ("--artifacts-destination", str(self.folder / "artifacts"))
        environment = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "not-a-secret",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _UP_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no server: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Ends the server and its workers with SIGKILL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Proxy:
    """Forwards connections to a server, until it is told to break.

    Modes: `pass`; `silent` (accepts and never answers); `drip` (a byte of an endless header per
    second); `nonsense` (a page of HTML to every request); `refuse` (closes at once).
    """

    def __init__(self, server: Server) -> None:
        self.mode = "pass"
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def break_off(self, mode: str) -> None:
        """Changes the mode and closes the connections that are open."""
        self.mode = mode
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            near, _ = self._listening.accept()
            threading.Thread(target=self._handle, args=(near,), daemon=True).start()

    def _handle(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            if self.mode == "pass":
                with socket.create_connection(("127.0.0.1", self._server.port)) as far:
                    self._open += [near, far]
                    threading.Thread(target=_copy, args=(far, near), daemon=True).start()
                    _copy(near, far)
            elif self.mode == "nonsense":
                near.recv(65536)
                page = b"<html><title>Welcome to the captive portal</title></html>"
                near.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n")
                near.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(page), page))
            elif self.mode in ("silent", "drip"):
                near.recv(65536)
                near.sendall(b"HTTP/1.1 200 OK\r\nX: " if self.mode == "drip" else b"")
                while self.mode in ("silent", "drip"):
                    time.sleep(1)
                    near.sendall(b"x" if self.mode == "drip" else b"")


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of its own on a socket in `folder`; yields its URI."""
    folder.mkdir(parents=True)
    prefix: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(folder, 65534, 65534)
    data, port = folder / "data", free_port()
    quiet = {"stdout": subprocess.DEVNULL, "check": True, "cwd": folder}
    subprocess.run([*prefix, "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], **quiet)  # type: ignore[call-overload]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*prefix, "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]
