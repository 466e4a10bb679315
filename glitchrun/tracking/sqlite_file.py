"""`mlflow.db`: created atomically, backed up before a newer MLflow, corrected after a move.

MLflow creates an SQLite store table by table. If two processes do so at the same time, or one is
killed, no MLflow can open the file again (mlflow issue 23721 describes the same on MySQL). So a
child process creates it under another name, and a rename puts it in place.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from glitchrun.errors import MissingExtra, TrackingUnavailable
from glitchrun.ledger.files import write_atomically
from glitchrun.ledger.lock import store_lock
from glitchrun.spec.mlflow_rules import (
    database_objection,
    lock_path,
    note_path,
    our_note,
)

CREATION_SECONDS = 300
"""Seconds to wait for a creation; on a loaded machine it took 10."""

_BUSY_SECONDS = 20
_PARTIAL = ".creating-"
_CREATE = (
    "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; "
    "SqlAlchemyStore(sys.argv[1], sys.argv[2])"
)
_ADDRESS_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
"""Columns with absolute addresses of artifacts (mlflow issue 3144)."""

Say = Callable[[str], None]


def prepare(path: Path, say: Say) -> bool:
    """Creates the database, or prepares it for the installed version of MLflow.

    Args:
        path: The database.
        say: Receives messages about changes to an existing database.

    Returns:
        Whether the database is new.

    Raises:
        TrackingUnavailable: the database cannot be created, read or written.
        MissingExtra: mlflow is not installed.
    """
    installed = _installed_mlflow()
    check(path)
    _check_folder(path)
    with store_lock(lock_path(path)):
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
            _note(path, installed)
            return True
        _check_sound(path)
        noted = _read_note(path)
        if noted.get("mlflow") != installed:
            _back_up(path, noted.get("mlflow"), installed, say)
        if noted.get("folder") not in (None, str(path.parent)):
            _relocate(path, Path(noted["folder"]), say)
        if noted != {"mlflow": installed, "folder": str(path.parent)}:
            _note(path, installed)
        return False


def check(path: Path) -> None:
    """Checks that the database may be written: it does not exist yet, or is one of MLflow's.

    Raises:
        TrackingUnavailable: it is another file, which stays unchanged.
    """
    if found := database_objection(path):
        raise TrackingUnavailable(f"the tracking store {found}")


def written_by(path: Path) -> str | None:
    """The version of MLflow that opened the database last; None if unknown."""
    return _read_note(path).get("mlflow")


def _installed_mlflow() -> str:
    try:
        return version("mlflow")
    except PackageNotFoundError as exc:
        raise MissingExtra("mlflow") from exc


def _check_folder(path: Path) -> None:
    """Checked first because MLflow retries for 102 s on a database that it cannot open."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise TrackingUnavailable(
            f"the folder of the MLflow store, {path.parent}, cannot be written ({exc.strerror}); "
            "make it writable or name another store in MLFLOW_TRACKING_URI"
        ) from exc


def _create(path: Path) -> None:
    # The name contains that of the database: another one may be created beside it.
    prefix = f"{_PARTIAL}{path.name}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):  # of killed processes
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=prefix, ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder) / path.name
        artifacts = (path.parent / "artifacts").as_uri()
        command = [sys.executable, "-c", _CREATE, f"sqlite:///{partial}", artifacts]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=CREATION_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise TrackingUnavailable(
                f"MLflow did not create {path} in {CREATION_SECONDS} s"
            ) from exc
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            why = [line for line in said if "sqlalche.me" not in line]  # an address for programmers
            why = why or [f"exit code {done.returncode}"]
            raise TrackingUnavailable(f"MLflow could not create {path}: {why[-1]}")
        _put(partial, path)


def _put(made: Path, path: Path) -> None:
    """Gives a file its name, unless that was taken meanwhile."""
    try:
        os.link(made, path)
    except OSError:  # an empty file that is ours, or a file system without hard links
        check(path)
        if path.exists() and path.stat().st_size:
            raise
        made.replace(path)


def _check_sound(path: Path) -> None:
    with path.open("r+b"):  # SQLite opens a file that it may not write without an error
        pass
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database:
            names = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as exc:
        raise TrackingUnavailable(
            f"{path} cannot be used ({exc}); if another program uses it, close it; if it is "
            "damaged, move it away: glitchrun makes a new one and `glitchrun sync` fills it again"
        ) from exc
    if any(name.startswith("_alembic_tmp") for name in names):
        raise TrackingUnavailable(
            f"{path} is not a whole MLflow store: its creation was interrupted; move it away: "
            "glitchrun makes a new one and `glitchrun sync` fills it again"
        )


def _read_note(path: Path) -> dict[str, str]:
    return our_note(note_path(path)) or {}


def _note(path: Path, installed: str) -> None:
    noted = {"mlflow": installed, "folder": str(path.parent)}
    write_atomically(note_path(path), json.dumps(noted, indent=1) + "\n")


def _back_up(path: Path, before: str | None, installed: str, say: Say) -> None:
    """Copies the database: a newer MLflow migrates it, and the old one cannot read it then."""
    copy = path.with_name(f"{path.name}.before-{installed}")
    if copy.exists() or copy.is_symlink():
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{_PARTIAL}{path.name}-") as folder:
        partial = Path(folder) / copy.name
        with (
            closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as source,
            closing(sqlite3.connect(partial)) as target,
        ):
            source.backup(target)
        _put(partial, copy)
    say(f"{path} was last opened by MLflow {before or 'of unknown version'}: copied to {copy.name}")


def _relocate(path: Path, before: Path, say: Say) -> None:
    """Corrects the addresses of artifacts after a move of the store's folder."""
    old, new = before.as_uri(), path.parent.as_uri()
    changed = 0
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database, database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        for table, column in _ADDRESS_COLUMNS:
            if table in tables:
                cursor = database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # nosec B608 # constants
                    f"WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
                changed += cursor.rowcount
    say(f"the store was moved from {before}: {changed} artifact addresses corrected")
