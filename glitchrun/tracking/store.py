"""The MLflow store of a run: made ready before anything starts, and opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import MissingExtra, TrackingUnavailable
from glitchrun.ledger import RunRecord
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

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held while something is looked for and created, which MLflow cannot do in one step."""
        from filelock import FileLock

        with FileLock(self.root / ".tracking.lock"):
            yield


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
        sqlite_file.prepare(path, say or _say)
        return
    check_reachable(uri)
    store = open_store(uri, root)
    with unavailable(uri):
        store.client.search_experiments(max_results=1)


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
    """Turns what MLflow raises about its store into TrackingUnavailable, without credentials."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as exc:
        raise TrackingUnavailable(
            f"MLflow store {shown(uri)}: {_gist(exc, uri)}{_advice(uri, exc)}"
        ) from (None if "@" in uri else exc)


def _gist(exc: Exception, uri: str) -> str:
    """What went wrong, in one line."""
    text = without_secrets(str(exc), uri).strip()
    if "Max retries exceeded" in text:  # urllib3's, with all of its nested causes
        refused = "Connection refused" in text
        return "nothing listens there" if refused else "it does not answer"
    return text.splitlines()[0] if text else type(exc).__name__


def _advice(uri: str, exc: Exception) -> str:
    path = sqlite_path(uri)
    if path is None or "out-of-date database schema" not in str(exc):
        return ""
    return (
        f" (last opened by MLflow {sqlite_file.written_by(path)}; a copy from before is beside "
        f"it). Update MLflow, or bring the store up to date with: mlflow db upgrade {uri}"
    )


def _say(text: str) -> None:
    say(text, err=True)
