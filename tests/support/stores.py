"""MLflow stores for tests: made once, copied, and counted."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

from glitchrun.ledger.lock import store_lock
from glitchrun.spec.mlflow_rules import lock_path
from glitchrun.tracking import sqlite_file
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


MLFLOW = version("mlflow")

create_with_mlflow = sqlite_file._create


def empty_database() -> Path:
    """A database that MLflow created, which takes 8 s of CPU: created once, until `make clean`."""
    path = Path(__file__).parents[2] / ".cache" / "tests" / f"mlflow-{MLFLOW}.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    with store_lock(lock_path(path)):
        if not path.exists():
            create_with_mlflow(path)
    return path


def create_by_copy(path: Path) -> None:
    """Stands in for `sqlite_file._create`."""
    address = (path.parent / "artifacts" / "0").as_uri()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=sqlite_file._PARTIAL) as folder:
        copy = Path(shutil.copy(empty_database(), folder))
        with closing(sqlite3.connect(copy)) as database, database:
            database.execute("UPDATE experiments SET artifact_location = ?", (address,))
        sqlite_file._put(copy, path)


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
