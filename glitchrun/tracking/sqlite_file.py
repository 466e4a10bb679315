"""`mlflow.db`: created whole or not at all, backed up before a newer MLflow, moved with its folder.

MLflow creates an SQLite store table by table. Two processes doing so at once, or one that is killed
meanwhile, leave a file that no MLflow opens again (mlflow issue 23721 is its sibling on MySQL). So
a child process creates it under another name, and it takes its place in one step.
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
"""Longer than any creation takes; on a loaded machine it took 10."""

_BUSY_SECONDS = 20
_PARTIAL = ".creating-"
_CREATE = (
    "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; "
    "SqlAlchemyStore(sys.argv[1], sys.argv[2])"
)
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
"""Columns in which MLflow keeps absolute addresses of artifacts (mlflow issue 3144)."""

Say = Callable[[str], None]


def prepare(path: Path, say: Say) -> None:
    """Makes the database ready to be opened by the MLflow that is installed.

    Raises:
        TrackingUnavailable: it cannot be created, read or written; the message says why.
        MissingExtra: mlflow is not installed.
    """
    installed = _installed()
    check(path)
    _check_folder(path)
    with store_lock(lock_path(path)):
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
            _note(path, installed)
            return
        _check_sound(path)
        noted = _read_note(path)
        if noted.get("mlflow") != installed:
            _back_up(path, noted.get("mlflow"), installed, say)
        if noted.get("folder") not in (None, str(path.parent)):
            _relocate(path, Path(noted["folder"]), say)
        if noted != {"mlflow": installed, "folder": str(path.parent)}:
            _note(path, installed)


def check(path: Path) -> None:
    """Looks whether the database may be written: it is new, or one of MLflow's.

    Raises:
        TrackingUnavailable: it is something else, which stays as it is.
    """
    if found := database_objection(path):
        raise TrackingUnavailable(f"the tracking store {found}")


def written_by(path: Path) -> str | None:
    """Version of MLflow that opened the database last; None where that is not known."""
    return _read_note(path).get("mlflow")


def _installed() -> str:
    try:
        return version("mlflow")
    except PackageNotFoundError as exc:
        raise MissingExtra("mlflow") from exc


def _check_folder(path: Path) -> None:
    """MLflow retries for 102 s on a database that it cannot open, so this is asked first."""
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
    # Named after the database: another one beside it may be created at the same time.
    prefix = f"{_PARTIAL}{path.name}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)
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
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database:
            names = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as exc:
        raise TrackingUnavailable(
            f"{path} cannot be used ({exc}); if another program holds it, close that; if it is "
            "damaged, move it away: glitchrun makes a new one and `glitchrun sync` fills it again"
        ) from exc
    if any(name.startswith("_alembic_tmp") for name in names):
        raise TrackingUnavailable(
            f"{path} is not a whole MLflow store: its creation was cut short; move it away: "
            "glitchrun makes a new one and `glitchrun sync` fills it again"
        )


def _read_note(path: Path) -> dict[str, str]:
    return our_note(note_path(path)) or {}


def _note(path: Path, installed: str) -> None:
    noted = {"mlflow": installed, "folder": str(path.parent)}
    write_atomically(note_path(path), json.dumps(noted, indent=1) + "\n")


def _back_up(path: Path, before: str | None, installed: str, say: Say) -> None:
    """Another MLflow may migrate the tables on opening; the one before cannot read them then."""
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
    say(f"{path} was last opened by MLflow {before or 'of unknown version'}: kept as {copy.name}")


def _relocate(path: Path, before: Path, say: Say) -> None:
    """Corrects the addresses of artifacts after the store's folder was moved."""
    old, new = before.as_uri(), path.parent.as_uri()
    changed = 0
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database, database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        for table, column in _PLACES:
            if table in tables:
                cursor = database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
                changed += cursor.rowcount
    say(f"the store was moved from {before}: {changed} artifact addresses corrected")
