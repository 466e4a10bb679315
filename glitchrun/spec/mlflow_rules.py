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
    """Whether a tag name belongs to glitchrun or MLflow.

    Case and width of characters are ignored, because some databases ignore them.
    """
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    return plain.startswith(_RESERVED)


def tag_objection(name: str) -> str | None:
    """Why a tag cannot have this name, and what to do; None if it can
    (`mlflow.utils.validation`)."""
    if is_reserved(name):
        kept = ", ".join(f"{prefix}*" for prefix in _RESERVED)
        return f"is reserved (glitchrun and MLflow set {kept}); use a prefix of your own"
    if len(name) > _MAX_NAME:
        return f"has a name of {len(name)} characters; MLflow allows {_MAX_NAME}, so shorten it"
    if bad := _FORBIDDEN.search(name):
        return (
            f"has {bad[0]!r} in its name; MLflow allows letters, digits, spaces and _ - . / : only"
        )
    if name != name.strip() or posixpath.normpath(name) != name or name.startswith(("/", "..")):
        return "has a name that MLflow reads as a path or as empty; use a name such as team/name"
    return None


_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?P<path>/.*)?", re.DOTALL)
_QUERY_OR_ESCAPE = re.compile(r"\?|%[0-9A-Fa-f]{2}")
_MAGIC = b"SQLite format 3\0"
_TABLES = {"alembic_version", "experiments", "runs", "metrics", "params", "tags"}
"""Tables of every MLflow store; other programs have an `alembic_version` too."""
_BESIDE_A_DATABASE = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps next to a database; SQLite overwrites and deletes such
files."""
_MAX_NOTE_BYTES = 1 << 16
"""Largest number of bytes of the note next to a database, which contains a version and a path."""
_WEIGHTS = ("*.safetensors", "*.gguf", "pytorch_model*.bin", "model*.bin")


def is_sqlite(uri: str) -> bool:
    """Whether `uri` begins like that of an SQLite store."""
    return uri.lower().startswith(("sqlite:", "sqlite+"))


def database(uri: str) -> Path:
    """The file of an SQLite store.

    Raises:
        ValueError: the URI names no file; the message says why and what to write.
    """
    match = _SQLITE.fullmatch(uri)
    path = (match["path"] or "")[1:] if match else ""
    if not path or path == ":memory:":
        raise ValueError("names no file; write sqlite:///PATH/mlflow.db")
    if "\0" in path:
        raise ValueError("has a NUL in its path; no file can have such a name")
    if found := _QUERY_OR_ESCAPE.search(path):
        # SQLAlchemy reads the rest as a query, or decodes it, and opens another file.
        raise ValueError(
            f"has {found[0]!r} in the path of its file, which is read as a query or an escape, not "
            "as part of the name; use another path, or name a store in MLFLOW_TRACKING_URI"
        )
    return Path(path).expanduser().absolute()


def may_hold_secrets(uri: str) -> bool:
    """Whether an address may contain a password: it has a user or a query."""
    return not is_sqlite(uri) and ("@" in uri or "?" in uri)


def objection(uri: str) -> str | None:
    """Why the store at `uri` cannot be used or must not be written, and what to do instead.

    None if nothing on this machine prevents it. The text continues "the tracking store".
    """
    found = address_objection(uri)
    if found is None and is_sqlite(uri):
        found = database_objection(database(uri))
    return found


def address_objection(uri: str) -> str | None:
    """Like `objection`, but judges the address alone. Never repeats the address: it may be
    secret."""
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
        return "has an invalid address; write http://HOST:PORT or sqlite:///PATH/mlflow.db"
    if scheme == "file" or (len(scheme) < 2 and uri != "databricks"):
        return (
            "is a folder, and MLflow no longer stores runs in folders; use "
            "sqlite:///PATH/mlflow.db, the address of a server, or no address for "
            "mlruns/mlflow.db. To move old runs, use: mlflow migrate-filestore"
        )
    return None


def database_objection(path: Path) -> str | None:
    """Why the database at `path` or the files next to it must not be written; None if they may
    be."""
    try:
        found = _objection_to_file(path) or _objection_to_neighbours(path)
    except OSError as error:
        found = f"cannot be read ({error.strerror}); use another path"
    except ValueError:  # lone surrogates
        found = "is not a possible file name; use another path"
    return f"names {path}: it {found}" if found else None


def checkpoint_around(path: Path) -> Path | None:
    """The folder of model files that contains `path`; None if no such folder does."""
    for folder in path.parents:
        if (folder / "config.json").is_file() and any(
            next(folder.glob(pattern), None) for pattern in _WEIGHTS
        ):
            return folder
    return None


def our_note(path: Path) -> dict[str, str] | None:
    """The note that glitchrun keeps in the file `path` next to a database; None if it is not
    ours."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_NOTE_BYTES:
            return None  # reading a pipe would block until it has a writer
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(noted, dict) and set(noted) == {"mlflow", "folder"}
    return noted if is_ours and all(isinstance(text, str) for text in noted.values()) else None


def note_path(path: Path) -> Path:
    """The file next to a database in which glitchrun notes which MLflow opened it last, and
    where."""
    # Earlier versions used the first name; any program may have a file of that name.
    before = path.with_name(f"{path.name}.json")
    return before if our_note(before) is not None else path.with_name(f"{path.name}.glitchrun.json")


def lock_path(path: Path) -> Path:
    """The empty file that is locked while a database or an entry in it is created."""
    return path.with_name(f".{path.name}.lock")


def _objection_to_file(path: Path) -> str | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return (
            "is a symbolic link to a missing file; remove the link" if path.is_symlink() else None
        )
    except NotADirectoryError:
        return "is below a file, not a folder, so it cannot be written; use another path"
    if not stat.S_ISREG(about.st_mode):
        return f"is {_kind(about.st_mode)}, not a database; use another path"
    if about.st_size == 0:
        return (
            None
            if _is_marked(path)
            else "is an empty file that glitchrun did not create; remove it, or use another path"
        )
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        return "cannot be used: it is not a database but another file; use another path"
    tables = _tables(path)
    if tables is not None and not tables >= _TABLES:
        return (
            "is not a whole MLflow store (it belongs to another program, or creating it was "
            "interrupted); move it away or use another path: glitchrun creates a new store, and "
            "`glitchrun sync` fills it again"
        )
    return None


def _tables(path: Path) -> set[str] | None:
    """Names of the tables in a database; None if they cannot be read without changing it."""
    if path.with_name(f"{path.name}-wal").exists():  # the tables may still be in that file
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
            if (
                beside.exists() or beside.is_symlink()
            ) and not path.exists():  # not created meanwhile
                return f"is new, but {beside} exists, and SQLite would overwrite it"
    lock = lock_path(path)
    if (lock.exists() or lock.is_symlink()) and not _is_empty_file(lock):
        return f"needs {lock} as its lock file, which belongs to another program; use another path"
    note = note_path(path)
    if (note.exists() or note.is_symlink()) and our_note(note) is None:
        return f"needs {note} for a note, but that file is not glitchrun's or is damaged; remove it"
    return None


def _is_marked(path: Path) -> bool:
    """Whether glitchrun created the database: it creates the lock or the note first."""
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
