"""The MLflow store of a run: made ready before anything starts, and opened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from glitchrun.errors import GlitchrunError, MissingExtra, TrackingUnavailable, file_access
from glitchrun.ledger import RunRecord
from glitchrun.ledger.lock import store_lock
from glitchrun.spec.mlflow_rules import lock_path
from glitchrun.terminal import say
from glitchrun.tracking import sqlite_file
from glitchrun.tracking.address import (
    delivery_uri,
    shown,
    sqlite_path,
    tracking_uri,
    without_secrets,
)
from glitchrun.tracking.reach import check_reachable

__all__ = ["Store", "delivery_uri", "ensure_store", "open_store", "tracking_uri", "unavailable"]

_TRIES = 5
_CONFLICTS = (
    "UNIQUE constraint failed",
    "Duplicate entry",
    "duplicate key value",
    "RESOURCE_ALREADY_EXISTS",
    "IntegrityError",
)
_FOREIGN = {"mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "google", "databricks"}
"""Packages whose exceptions speak of the store."""

Result = TypeVar("Result")

SETTINGS = {
    # What goes wrong is said in our own words; MLflow would add a traceback to each of them.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Standard output belongs to the command: with `-o json` it is one document.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A dead server costs 4.5 s with these, and 247 s with MLflow's own.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""MLflow's settings in this process and its children, where the user has not set them."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open MLflow store."""

    uri: str
    root: Path
    """The tracking root of the runs that are delivered."""
    client: Any
    """An `mlflow.MlflowClient`."""

    def artifact_location(self, record: RunRecord) -> str | None:
        """Where a new experiment's artifacts go; None to let a server decide."""
        if sqlite_path(self.uri) is None:
            return None
        experiment = record.folder.parent.parent.name  # the name made fit for a folder
        return (self.root.resolve() / "artifacts" / experiment).as_uri()

    def exclusively(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, which looks for something and creates it where it is missing.

        MLflow cannot do that in one step. Processes of this machine wait for each other; where one
        of another machine was faster, the action is repeated, and finds what that one made.
        """
        for _ in range(_TRIES - 1):
            with self._alone():
                try:
                    return action()
                except Exception as exc:
                    if not _is_conflict(exc):
                        raise
        with self._alone():
            return action()

    def _alone(self) -> AbstractContextManager[None]:
        path = sqlite_path(self.uri)
        return store_lock(self.root / ".tracking.lock" if path is None else lock_path(path))


def _is_conflict(exc: Exception) -> bool:
    """Whether something could not be created because it was there, in the words of MLflow and of
    the databases it works with."""
    return any(words in str(exc) for words in _CONFLICTS)


def settle_mlflow() -> None:
    """Gives MLflow its settings. It reads some of them when it is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def ensure_store(uri: str, root: Path, say: sqlite_file.Say | None = None) -> None:
    """Makes sure that a run can be delivered, before hours are spent on it.

    Args:
        uri: As `tracking_uri` gives it.
        root: Tracking root.
        say: Told what was done to an existing store; standard error by default.

    Raises:
        TrackingUnavailable: it cannot; the message says why, without credentials.
        MissingExtra: mlflow is not installed.
    """
    settle_mlflow()
    path = sqlite_path(uri)
    if path is not None:
        with _usable(path):
            sqlite_file.prepare(path, say or _say)
        return
    check_reachable(uri)
    store = open_store(uri, root)
    with unavailable(uri):
        store.client.search_experiments(max_results=1)


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turns what the system and SQLite say about the store's files into TrackingUnavailable."""
    try:
        with file_access(path, "the MLflow store cannot be used", TrackingUnavailable):
            yield
    except sqlite3.Error as exc:
        raise TrackingUnavailable(
            f"{path}: the MLflow store cannot be used ({exc}); see that there is room and that it "
            "can be written, or name another store in MLFLOW_TRACKING_URI"
        ) from exc


def open_store(uri: str, root: Path) -> Store:
    """The store, ready to be written.

    Raises:
        TrackingUnavailable: MLflow cannot open it.
        MissingExtra: mlflow is not installed.
    """
    settle_mlflow()
    try:
        from mlflow import MlflowClient
    except ImportError as exc:
        raise MissingExtra("mlflow") from exc
    path = sqlite_path(uri)
    if path is not None:
        sqlite_file.check(path)
    with unavailable(uri):
        return Store(uri, root, MlflowClient(tracking_uri=uri, registry_uri=uri))


@contextmanager
def unavailable(uri: str) -> Iterator[None]:
    """Turns whatever goes wrong in MLflow and below it into TrackingUnavailable, without
    credentials. What goes wrong in glitchrun itself keeps its traceback."""
    try:
        yield
    except GlitchrunError:
        raise
    except Exception as exc:
        if not _is_foreign(exc):
            raise
        raise TrackingUnavailable(
            f"MLflow store {shown(uri)}: {_gist(exc, uri)}{_advice(uri, exc)}"
        ) from (None if "@" in uri else exc)


def _is_foreign(exc: Exception) -> bool:
    """Whether an exception is of the store's making: of a kind that only MLflow and what it works
    with raise, or raised somewhere below a call of MLflow."""
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


def _gist(exc: Exception, uri: str) -> str:
    """What went wrong, in one line."""
    text = without_secrets(str(exc), uri).strip()
    if "Max retries exceeded" in text:  # urllib3's, with all of its nested causes
        refused = "Connection refused" in text
        return "nothing listens there" if refused else "it does not answer"
    first = text.splitlines()[0] if text else ""
    is_clear = isinstance(exc, OSError) or type(exc).__name__ == "MlflowException"
    return first if first and is_clear else f"{type(exc).__name__}: {first}".rstrip(": ")


def _advice(uri: str, exc: Exception) -> str:
    path = sqlite_path(uri)
    if path is None or "out-of-date database schema" not in str(exc):
        return "; set that right, or name another store in tracking.uri or MLFLOW_TRACKING_URI"
    return (
        f" (last opened by MLflow {sqlite_file.written_by(path)}; a copy from before is beside "
        f"it). Update MLflow, or bring the store up to date with: mlflow db upgrade {uri}"
    )


def _say(text: str) -> None:
    say(text, err=True)
