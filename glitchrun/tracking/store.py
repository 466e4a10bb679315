"""An MLflow store: prepared before a run starts, opened, and its errors explained."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from glitchrun.errors import GlitchrunError, MissingExtra, TrackingUnavailable, file_access
from glitchrun.ledger import RunRecord
from glitchrun.ledger.files import DELIVERED, read_text
from glitchrun.ledger.identity import INVALID_FIELD, read_run_document
from glitchrun.ledger.lock import store_lock
from glitchrun.spec.mlflow_rules import lock_path
from glitchrun.terminal import say
from glitchrun.tracking import sqlite_file
from glitchrun.tracking.address import check_reachable, in_time, shown, sqlite_path, without_secrets

PATIENCE = 15.0
"""Seconds to wait for one answer of a server."""
SHORT_PATIENCE = 2.0
"""Seconds to wait for a server whose last answer did not come in time."""
UPLOAD_RATE = 1e6
"""Bytes per second that a server is trusted to receive; a large file gets more time by this."""
_POINTS = 1000
"""Metric points that MLflow sends in one request."""
_TRIES = 5
_CONFLICTS = (
    "UNIQUE constraint failed",
    "Duplicate entry",
    "duplicate key value",
    "RESOURCE_ALREADY_EXISTS",
    "IntegrityError",
)
_FOREIGN = {"mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "google", "databricks"}
"""Packages whose exceptions are errors of the store."""

_ASIDE = ("(raised as a result of", "(Background on this error")
"""Beginnings of lines that SQLAlchemy puts around the cause."""

Result = TypeVar("Result")

SETTINGS = {
    # glitchrun explains errors in its own messages; MLflow would log a traceback for each.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Standard output belongs to the command; with `-o json` it is one document.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A dead server takes 4.5 s with these values, and 247 s with MLflow's defaults.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""MLflow's settings for this process and its children; those that the user set have priority."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open MLflow store."""

    uri: str
    root: Path
    """The tracking root of the runs that are delivered."""
    client: Any
    """An `mlflow.MlflowClient`."""

    def artifact_location(self, record: RunRecord) -> str | None:
        """The folder of a new experiment's artifacts as a URI; None to let a server decide."""
        if sqlite_path(self.uri) is None:
            return None
        experiment = record.folder.parent.parent.name  # the experiment's name as a folder name
        return (self.root.resolve() / "artifacts" / experiment).as_uri()

    def exclusively(self, action: Callable[[], Result]) -> Result:
        """Runs `action`, which finds something or creates it, and returns its result.

        MLflow has no atomic find-or-create. Processes on this machine wait for each other. If one
        on another machine was faster, the action is repeated and finds what that one created.

        Raises:
            TrackingUnavailable: another process holds the lock for too long.
        """
        for _ in range(_TRIES - 1):
            with self._lock():
                try:
                    return action()
                except Exception as exc:
                    if not _is_conflict(exc):
                        raise
        with self._lock():
            return action()

    def _lock(self) -> AbstractContextManager[None]:
        path = sqlite_path(self.uri)
        return store_lock(self.root / ".tracking.lock" if path is None else lock_path(path))


def _is_conflict(exc: Exception) -> bool:
    """Whether something could not be created because it exists, by the messages of MLflow and of
    the databases."""
    return any(words in str(exc) for words in _CONFLICTS)


def configure_mlflow() -> None:
    """Sets MLflow's environment variables. Call it before mlflow is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def ensure_store(uri: str, root: Path, say: sqlite_file.Say | None = None) -> None:
    """Checks that runs can be delivered to a store, and creates a SQLite store if it is new.

    Args:
        uri: The store, from `tracking_uri`.
        root: Tracking root.
        say: Receives messages about changes to an existing store; standard error by default.

    Raises:
        TrackingUnavailable: the store cannot be used; the message contains no credentials.
        MissingExtra: mlflow is not installed.
    """
    configure_mlflow()
    path = sqlite_path(uri)
    if path is not None:
        with _usable(path):
            created = sqlite_file.prepare(path, say or _say)
        if created and (lost := _delivered_before(uri, root)):
            runs = (
                "1 run that an earlier one had is"
                if lost == 1
                else f"{lost} runs of an earlier one are"
            )
            (say or _say)(f"{path} is new, so {runs} not in it; to deliver again: glitchrun sync")
        return
    check_reachable(uri)
    store = open_store(uri, root)
    with unavailable(uri):
        store.client.search_experiments(max_results=1)


def _delivered_before(uri: str, root: Path) -> int:
    """The number of runs that were delivered to a store completely."""
    count = 0
    for note in root.glob(f"runs/*/*/attempt-*/{DELIVERED}"):
        with suppress(GlitchrunError, OSError, *INVALID_FIELD):
            whole = "ending" in json.loads(read_text(note))
            there = read_run_document(note.parent)["identity"]["tracking_uri"] == shown(uri)
            count += whole and there
    return count


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turns errors of the operating system and of SQLite into TrackingUnavailable."""
    try:
        with file_access(path, "the MLflow store cannot be used", TrackingUnavailable):
            yield
    except sqlite3.Error as exc:
        raise TrackingUnavailable(
            f"{path}: the MLflow store cannot be used ({exc}); make sure that the disk has "
            "room and the file can be written, or name another store in MLFLOW_TRACKING_URI"
        ) from exc


def open_store(uri: str, root: Path) -> Store:
    """Opens a store for writing.

    Args:
        uri: The store.
        root: Tracking root of the runs to deliver.

    Raises:
        TrackingUnavailable: MLflow cannot open it.
        MissingExtra: mlflow is not installed.
    """
    configure_mlflow()
    try:
        from mlflow import MlflowClient
    except ImportError as exc:
        raise MissingExtra("mlflow") from exc
    path = sqlite_path(uri)
    if path is not None:
        sqlite_file.check(path)
    with unavailable(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        return Store(uri, root, client if path else BoundedClient(client, uri))


class BoundedClient:
    """An `MlflowClient` of a server, each call of which ends in time.

    MLflow bounds only the pause between two bytes of an answer, and repeats requests.
    """

    _silent: ClassVar[set[str]] = set()
    """Addresses of the servers whose last answer did not come in time."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            patience = SHORT_PATIENCE if self._uri in self._silent else PATIENCE
            if name == "log_artifact":
                patience += Path(args[1]).stat().st_size / UPLOAD_RATE
            elif name == "log_batch":  # is sent in parts
                patience *= 1 + len(kwargs.get("metrics", ())) // _POINTS
            try:
                answer = in_time(lambda: method(*args, **kwargs), patience)
            except TimeoutError:
                self._silent.add(self._uri)
                raise
            self._silent.discard(self._uri)
            return answer

        return call


@contextmanager
def unavailable(uri: str) -> Iterator[None]:
    """Turns errors of MLflow and the libraries below it into TrackingUnavailable.

    The message contains no credentials. Defects of glitchrun keep their traceback.

    Raises:
        TrackingUnavailable: the block raised an error of MLflow.
    """
    try:
        yield
    except GlitchrunError:
        raise
    except Exception as exc:
        if not _is_foreign(exc):
            raise
        raise TrackingUnavailable(
            f"MLflow store {shown(uri)}: {_cause(exc, uri)}{_advice(uri, exc)}"
        ) from (None if "@" in uri else exc)


def _is_foreign(exc: Exception) -> bool:
    """Whether an exception comes from the store: its type belongs to MLflow or a library below it,
    or it was raised inside a call of MLflow."""
    if isinstance(exc, OSError | ImportError | HTTPException | sqlite3.Error):
        return True
    if any(kind.__module__.partition(".")[0] in _FOREIGN for kind in type(exc).__mro__):
        return True
    below: list[str] = []
    trace = exc.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        below = [] if package == "glitchrun" else [*below, package]
        trace = trace.tb_next
    return "mlflow" in below


def _cause(exc: Exception, uri: str) -> str:
    """The error in one line."""
    text = without_secrets(str(exc), uri).strip()
    if "Max retries exceeded" in text:  # urllib3's message with all nested causes
        refused = "Connection refused" in text
        return "nothing listens there" if refused else "it does not answer"
    lines = [line for line in text.splitlines() if not line.startswith(_ASIDE)]
    first = lines[0] if lines else ""
    is_clear = isinstance(exc, OSError) or type(exc).__name__ == "MlflowException"
    return first if first and is_clear else f"{type(exc).__name__}: {first}".rstrip(": ")


def _advice(uri: str, exc: Exception) -> str:
    path = sqlite_path(uri)
    if "error code 401" in str(exc):
        return (
            "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if "error code 403" in str(exc):
        return "; the user needs the permission EDIT for the experiment, and to create experiments"
    if path is None or "out-of-date database schema" not in str(exc):
        return "; correct this, or name another store in tracking.uri or MLFLOW_TRACKING_URI"
    return (
        f" (last opened by MLflow {sqlite_file.written_by(path)}; an earlier copy is beside "
        f"it). Update MLflow, or upgrade the store with: mlflow db upgrade {uri}"
    )


def _say(text: str) -> None:
    say(text, err=True)
