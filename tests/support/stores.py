"""MLflow stores for tests: made once, copied, and counted."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from glitchrun.tracking.sqlite_file import prepare
from glitchrun.tracking.store import Store, open_store

TABLES = (
    "experiments",
    "experiment_tags",
    "runs",
    "metrics",
    "latest_metrics",
    "params",
    "tags",
    "datasets",
    "inputs",
    "input_tags",
)


@cache
def empty_database() -> Path:
    """A database that MLflow created, which takes seconds; copy it."""
    path = Path(tempfile.mkdtemp(prefix="glitchrun-store-")) / "mlflow.db"
    prepare(path, lambda text: None)
    return path


def new_root(folder: Path) -> Path:
    """A tracking root with an empty store in it."""
    root = folder / "mlruns"
    root.mkdir(parents=True)
    shutil.copy(empty_database(), root / "mlflow.db")
    return root


def open_root(root: Path) -> Store:
    """The default store of a tracking root."""
    return open_store(f"sqlite:///{root / 'mlflow.db'}", root)


def counts(root: Path) -> dict[str, int]:
    """Rows of each table that a delivery writes to."""
    return {table: query(root, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def query(root: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        return database.execute(sql).fetchall()


@contextmanager
def nobody_listening() -> Iterator[str]:
    """The address of a server, credentials in it, where connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://me:hunter2@127.0.0.1:{taken.getsockname()[1]}"
