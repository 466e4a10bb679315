"""tags.json: the tags that people set after a run began. The ledger stays as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.files import TAGS, read_text, write_atomically


def read_tags(folder: Path) -> dict[str, str]:
    """The tags in an attempt's folder; an empty text means that the tag was removed.

    Empty if the file is missing or invalid; `change_tags` reports an invalid one.
    """
    try:
        return _load(folder / TAGS)
    except (OSError, ValueError, RecursionError):
        return {}


def change_tags(folder: Path, changes: Mapping[str, str]) -> None:
    """Sets tags of the run in an attempt's folder; those with an empty text are removed.

    Raises:
        RunError: the tags cannot be read or written.
    """
    path = folder / TAGS
    with file_access(path, "the tags cannot be changed"), _locked(folder):
        try:
            before = _load(path)
        except (ValueError, RecursionError) as exc:
            raise RunError(f"{path}: it contains no tags ({exc}); remove or restore it") from exc
        text = json.dumps({**before, **changes}, ensure_ascii=False, indent=1)
        write_atomically(path, text + "\n")


def _load(path: Path) -> dict[str, str]:
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
        raise ValueError("it is not an object of texts")
    return data


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes that change tags at once wait for each other."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network shares have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
