"""Finds the spec files in folders and reads them.

Reading is defensive: every path gives a text or a located problem, quickly.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from glitchrun.errors import UsageError
from glitchrun.spec.problems import Problem

MAX_BYTES = 1 << 20
"""Largest spec file, in bytes."""

# What YAML 1.2 (5.1) allows in a stream; the rest, NUL above all, is refused before parsing.
_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_BREAK = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Source:
    """One file as read. `name` is how messages call it, `folder` what its paths are relative to."""

    name: str
    text: str = field(repr=False)
    folder: Path

    @cached_property
    def lines(self) -> Sequence[str]:
        """The text split as YAML 1.2 splits it (not at NEL or U+2028)."""
        return _BREAK.split(self.text)

    def line(self, number: int) -> str:
        """Line `number`, from 1; empty where there is none."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


def read_source(path: str | os.PathLike[str]) -> Source | Problem:
    """The text of the file at `path`, or the problem that kept it from being read."""
    name = os.fspath(path)
    try:
        raw = _read_regular_file(name)
    except OSError as error:
        return _unreadable(name, error.strerror or str(error))
    except ValueError as error:  # a NUL in the path itself
        return _unreadable(name, str(error))
    if isinstance(raw, Problem):
        return raw
    return decode(name, raw)


def decode(name: str, raw: bytes) -> Source | Problem:
    """`raw` as a Source; a problem where it is not UTF-8 text."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Problem(name, 1, 1, "GR003", "the file is UTF-16", hint="save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        line, column = _position(before, len(before))
        return Problem(name, line, column, "GR003", message, hint="save the file as UTF-8")
    bad = _FORBIDDEN.search(text)
    if bad:
        line, column = _position(text, bad.start())
        message = f"character U+{ord(bad[0]):04X} may not stand in YAML"
        hint = 'in a double-quoted value write it as an escape, such as "\\0" or "\\e"'
        return Problem(name, line, column, "GR004", message, hint=hint)
    return Source(name, text, Path(name).parent)


def _read_regular_file(name: str) -> bytes | Problem:
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
    descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"
            return _unreadable(name, kind)
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        message = f"the file is larger than {MAX_BYTES:,} bytes"
        return Problem(name, 1, 1, "GR002", message, hint="keep long lists in a file of their own")
    return raw


def _unreadable(name: str, why: str) -> Problem:
    return Problem(name, 1, 1, "GR001", f"cannot read {name!r}: {why}")


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column, from 1, of character `index`."""
    before = _BREAK.split(text[:index])
    return len(before), len(before[-1]) + 1


NOT_SEARCHED = frozenset(
    {
        "__pycache__",
        "__pypackages__",
        "_build",
        "build",
        "buck-out",
        "dist",
        "mlruns",
        "node_modules",
        "site-packages",
        "venv",
    }
)
"""Folders that a search passes over, as linters do (the list is ruff's), and the runs' own. Hidden
ones and virtual environments of any other name are passed over as well."""


@dataclass
class Found:
    """The spec files of some paths, and the folders that were not searched for them."""

    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def find_files(paths: Iterable[Path | str]) -> Found:
    """The files at `paths`, folders replaced by the YAML files in and below them, each once.

    A path that is named is always read; below a named folder, hidden files and the folders of
    `NOT_SEARCHED` are passed over, unless the folder is itself such a one.
    Raises UsageError for a folder without spec files.
    """
    found = Found()
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 - false for any text, where Path raises
            found.files.append(path)
            continue
        inside = _search(path, found)
        if not inside:
            raise UsageError(f"{path}: no .yaml or .yml file in this folder or below it")
        found.files += inside
    found.files = list(dict.fromkeys(found.files))
    found.skipped = sorted(set(found.skipped))
    return found


def _search(root: Path, found: Found) -> list[Path]:
    """The YAML files below `root`, sorted; notes in `found` what was passed over."""
    everything = _is_not_searched(root)
    files = []
    for folder, below, names in os.walk(root):
        here = Path(folder)
        kept = []
        for name in sorted(below):
            hidden = name.startswith(".")
            if hidden or (not everything and _is_not_searched(here / name)):
                found.skipped.append(here / name)
            else:
                kept.append(name)
        below[:] = kept
        files += [here / name for name in names if _is_spec_name(name)]
    return sorted(files)


def _is_not_searched(folder: Path) -> bool:
    return folder.name in NOT_SEARCHED or (folder / "pyvenv.cfg").is_file()


def _is_spec_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and not name.startswith(".")
