"""The names of a run's files, and how files are read and written so that they survive a crash."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

LEDGER = "ledger.jsonl"
IDENTITY = "run.json"
DELIVERED = "delivered.json"
TAGS = "tags.json"
CELL = "cell.json"

_LONGEST_NAME = 255
"""Largest number of bytes in the name of a file on common file systems."""


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Does not wait for the writer of a FIFO.

    Raises:
        IsADirectoryError: the path is a folder.
        OSError: the file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path) -> str:
    """The text of a regular UTF-8 file.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is not UTF-8.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def write_atomically(path: Path, text: str | bytes) -> None:
    """Replaces a file in one step: readers, and a crash, see the old content or the new one.

    A lone surrogate in `text` is written as an escape.

    Raises:
        OSError: the file cannot be written.
    """
    data = text.encode(errors="backslashreplace") if isinstance(text, str) else text
    partial = partial_path(path)
    with _alone(partial) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)
    sync_folder(path.parent)


def _alone(partial: Path) -> BinaryIO:
    """Opens a partial file, empty. Another process that writes the same one waits until this one
    has closed it; both files then appear whole, one after the other."""
    import fcntl

    while True:
        file = os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        try:
            with suppress(OSError):  # some network shares have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                file.truncate()
                return file
        except FileNotFoundError:  # the other process has given it its name meanwhile
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def partial_path(path: Path) -> Path:
    """The hidden file next to `path` that is written first and then replaces it."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
        name = f".{digest}.partial"
    return path.with_name(name)


def sync_folder(folder: Path) -> None:
    """Flushes a folder to the disk, so that new names in it survive a power cut.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # network shares, for example, do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, good_bytes: int) -> Path:
    """Keeps a copy of a damaged file under another name, and truncates the file to `good_bytes`.

    Returns:
        The path of the copy.

    Raises:
        OSError: a file cannot be written.
    """
    names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    try:
        aside.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, aside)
    partial = partial_path(path)
    with open_regular(path) as source, partial.open("wb") as target:
        left = good_bytes
        while left and (piece := source.read(min(left, 1 << 20))):
            left -= target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    partial.replace(path)
    sync_folder(path.parent)
    return aside
