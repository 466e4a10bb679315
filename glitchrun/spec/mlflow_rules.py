"""What MLflow accepts: names of tags, and tracking stores that may be written.

A store must be new or one of MLflow's own. Nothing is opened for writing, and only the standard
library is needed, so that `validate` reports what `apply` would refuse.
"""

from __future__ import annotations

import json
import posixpath
import re
import sqlite3
import stat
import unicodedata
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from glitchrun.terminal import visible

MAX_TAG_VALUE = 8_000
_MAX_NAME = 250
_FORBIDDEN = re.compile(r"[^\w\-./: ]")
_RESERVED = ("glitchrun.", "mlflow.")


def is_reserved(name: str) -> bool:
    """Whether a tag of this name would stand for what glitchrun or MLflow says of a run. Case and
    width do not count: some databases take no notice of them."""
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    return plain.startswith(_RESERVED)


def tag_objection(name: str) -> str | None:
    """Why a tag cannot be called this, and what to do; None where it can."""
    if is_reserved(name):
        kept = ", ".join(f"{prefix}*" for prefix in _RESERVED)
        return f"is reserved ({kept} say what a run is); give it a prefix of your own"
    if len(name) > _MAX_NAME:
        return f"has {len(name)} characters in its name, and MLflow takes {_MAX_NAME}; shorten it"
    if bad := _FORBIDDEN.search(name):
        return (
            f"has {bad[0]!r} in its name; MLflow takes letters, digits, spaces and _ - . / : alone"
        )
    if name != name.strip() or posixpath.normpath(name) != name or name.startswith(("/", "..")):
        return "is read as a path or as empty by MLflow; use plain words, such as team or team/name"
    return None


_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?P<path>/.*)?", re.DOTALL)
_TREACHEROUS = re.compile(r"\?|%[0-9A-Fa-f]{2}")
_MAGIC = b"SQLite format 3\0"
_TABLES = {"alembic_version", "experiments", "runs", "metrics", "params", "tags"}
"""What every MLflow store has; other programs keep an `alembic_version` too."""
_BESIDE_A_DATABASE = ("-journal", "-wal", "-shm")
"""SQLite's own files beside a database: it overwrites and deletes what it finds there."""
_LONGEST_NOTE = 1 << 16
"""Bytes in the note beside a database: a version and a path."""
_WEIGHTS = ("*.safetensors", "*.gguf", "pytorch_model*.bin", "model*.bin")


def is_sqlite(uri: str) -> bool:
    """Whether `uri` names an SQLite store, or tries to."""
    return uri.lower().startswith(("sqlite:", "sqlite+"))


def database(uri: str) -> Path:
    """The file of an SQLite store.

    Raises:
        ValueError: it names none; the message says why and what to write.
    """
    match = _SQLITE.fullmatch(uri)
    path = (match["path"] or "")[1:] if match else ""
    if not path or path == ":memory:":
        raise ValueError("names no file; write sqlite:///PATH/mlflow.db")
    if "\0" in path:
        raise ValueError("has a NUL in its path; no file has such a name")
    if treacherous := _TREACHEROUS.search(path):
        # SQLAlchemy takes the rest for a query, or decodes it, and opens another file than meant.
        raise ValueError(
            f"has {treacherous[0]!r} in the path of an SQLite store, which is read as more than a "
            "name; use a folder without it, or name another store in MLFLOW_TRACKING_URI"
        )
    return Path(path).expanduser().absolute()


def objection(uri: str) -> str | None:
    """Why the store at `uri` cannot be used or must not be written, and what to do instead; None
    where nothing on this machine speaks against it. Goes on from "the tracking store"."""
    found = address_objection(uri)
    if found is None and is_sqlite(uri):
        found = database_objection(database(uri))
    return found


def address_objection(uri: str) -> str | None:
    """As `objection`, from the address alone. Never says what may be secret in it."""
    if visible(uri.strip()) != uri:
        return "has white space or control characters in its address; remove them"
    if is_sqlite(uri):
        try:
            database(uri)
        except (ValueError, RuntimeError) as error:  # RuntimeError: `~nobody`
            return str(error)
        return None
    try:
        scheme, _ = urlsplit(uri).scheme.lower(), urlsplit(uri).port
    except ValueError:
        return "has no address that can be read; write http://HOST:PORT or sqlite:///PATH/mlflow.db"
    if scheme == "file" or (len(scheme) < 2 and uri != "databricks"):
        return (
            "is a folder, which MLflow no longer keeps runs in; use sqlite:///PATH/mlflow.db, the "
            "address of a server, or nothing for mlruns/mlflow.db. Old runs move over with: "
            "mlflow migrate-filestore"
        )
    return None


def database_objection(path: Path) -> str | None:
    """Why the database at `path` must not be written, or the files beside it."""
    try:
        found = _objection_to_file(path) or _objection_to_neighbours(path)
    except OSError as error:
        found = f"cannot be read ({error.strerror}); name another place"
    except ValueError:  # lone surrogates
        found = "is no name that a file can have; name another place"
    return f"names {path}: it {found}" if found else None


def checkpoint_around(path: Path) -> Path | None:
    """The folder of a model's files that `path` lies in; None where it lies in none."""
    for folder in path.parents:
        if (folder / "config.json").is_file() and any(
            next(folder.glob(pattern), None) for pattern in _WEIGHTS
        ):
            return folder
    return None


def our_note(path: Path) -> dict[str, str] | None:
    """What glitchrun noted in the file beside a database; None where the file is not ours."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LONGEST_NOTE:
            return None  # reading a pipe would wait for its writer
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(noted, dict) and set(noted) == {"mlflow", "folder"}
    return noted if is_ours and all(isinstance(text, str) for text in noted.values()) else None


def note_path(path: Path) -> Path:
    """The file beside a database in which glitchrun notes who opened it last."""
    # The first name is that of earlier versions; any program may have a file of it.
    before = path.with_name(f"{path.name}.json")
    return before if our_note(before) is not None else path.with_name(f"{path.name}.glitchrun.json")


def lock_path(path: Path) -> Path:
    """The empty file that is locked while a database is prepared, or something made in it."""
    return path.with_name(f".{path.name}.lock")


def _objection_to_file(path: Path) -> str | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return "is a symbolic link to nothing; remove the link" if path.is_symlink() else None
    except NotADirectoryError:
        return "lies below a file, so it cannot be written; name another place"
    if not stat.S_ISREG(about.st_mode):
        return f"is {_kind(about.st_mode)}, not a database; name another place"
    if about.st_size == 0:
        return (
            None
            if _is_marked(path)
            else "is an empty file that glitchrun did not make; remove it, or name another place"
        )
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        return "cannot be used: it is a file of something else, no database; name another place"
    tables = _tables(path)
    if tables is not None and not tables >= _TABLES:
        return (
            "is not a whole MLflow store (another program's database, or its creation was cut "
            "short); move it away or name another place: glitchrun makes a new one and "
            "`glitchrun sync` fills it again"
        )
    return None


def _tables(path: Path) -> set[str] | None:
    """Names of the tables in a database; None where they cannot be read without touching it."""
    if path.with_name(f"{path.name}-wal").exists():  # the tables may be in there
        return None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as opened:
            return {row[0] for row in opened.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return None


def _objection_to_neighbours(path: Path) -> str | None:
    if not path.exists():
        for ending in _BESIDE_A_DATABASE:
            beside = path.with_name(path.name + ending)
            if (beside.exists() or beside.is_symlink()) and not path.exists():  # not made meanwhile
                return f"is new, but {beside} is there already, which SQLite would overwrite"
    lock = lock_path(path)
    if (lock.exists() or lock.is_symlink()) and not _is_empty_file(lock):
        return f"needs {lock} for its lock, which is another program's; name another place"
    note = note_path(path)
    if (note.exists() or note.is_symlink()) and our_note(note) is None:
        return f"needs {note} for a note, which is not glitchrun's (or is damaged); remove it"
    return None


def _is_marked(path: Path) -> bool:
    """Whether glitchrun was here before: it takes the lock once the place is found to be free."""
    lock = lock_path(path)
    return our_note(note_path(path)) is not None or (lock.exists() and _is_empty_file(lock))


def _is_empty_file(path: Path) -> bool:
    about = path.lstat()
    return stat.S_ISREG(about.st_mode) and about.st_size == 0


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")
