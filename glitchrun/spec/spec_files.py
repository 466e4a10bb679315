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

# Everything that YAML 1.2 (section 5.1) forbids in a stream, NUL above all.
_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_BREAK = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Source:
    """The text of one file. Messages call it `name`; its relative paths start from `folder`."""

    name: str
    text: str = field(repr=False)
    folder: Path

    @cached_property
    def lines(self) -> Sequence[str]:
        """The lines of the text as YAML 1.2 splits it: not at NEL or U+2028."""
        return _BREAK.split(self.text)

    def line(self, number: int) -> str:
        """Line `number`, counted from 1; empty if it does not exist."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


def read_source(path: str | os.PathLike[str]) -> Source | Problem:
    """Reads the file at `path`; returns the problem if it cannot be read."""
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
    """Decodes the bytes `raw`; returns the problem if they are not UTF-8 text that YAML allows."""
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
        message = f"the character U+{ord(bad[0]):04X} is not allowed in YAML"
        hint = 'in a double-quoted value write it as an escape, such as "\\0" or "\\e"'
        return Problem(name, line, column, "GR004", message, hint=hint)
    return Source(name, text, Path(name).parent)


def _read_regular_file(name: str) -> bytes | Problem:
    # O_NONBLOCK: opening a FIFO without a writer would block forever.
    descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"
            return _unreadable(name, kind)
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        message = f"the file is larger than {MAX_BYTES:,} bytes"
        return Problem(name, 1, 1, "GR002", message, hint="put long lists into a separate file")
    return raw


def _unreadable(name: str, why: str) -> Problem:
    return Problem(name, 1, 1, "GR001", f"cannot read {name!r}: {why}")


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column of the character at `index`, counted from 1."""
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
"""Folders that are not searched: those that ruff skips, and `mlruns`. Hidden folders and virtual
environments of any name are not searched either."""


@dataclass
class FoundFiles:
    """The spec files at some paths, and the folders that were not searched."""

    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def find_files(paths: Iterable[Path | str]) -> FoundFiles:
    """The files at `paths`, each once; a folder stands for the YAML files in and below it.

    A path given outright is always read. Below a folder, hidden files and the folders of
    `NOT_SEARCHED` are skipped, unless the given folder is itself one of those.

    Raises:
        UsageError: a folder contains no spec file.
    """
    found = FoundFiles()
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 - Path raises for some texts
            found.files.append(path)
            continue
        inside = _search(path, found)
        if not inside:
            raise UsageError(f"{path}: no .yaml or .yml file in this folder or below it")
        found.files += inside
    found.files = list(dict.fromkeys(found.files))
    found.skipped = sorted(set(found.skipped))
    return found


def _search(root: Path, found: FoundFiles) -> list[Path]:
    """The YAML files below `root`, sorted; adds skipped folders to `found`."""
    is_skipped_itself = _is_skipped(root)
    files = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        kept = []
        for name in sorted(subfolders):
            hidden = name.startswith(".")
            if hidden or (not is_skipped_itself and _is_skipped(here / name)):
                found.skipped.append(here / name)
            else:
                kept.append(name)
        subfolders[:] = kept  # os.walk descends into these
        files += [here / name for name in names if _is_spec_name(name)]
    return sorted(files)


def _is_skipped(folder: Path) -> bool:
    return folder.name in NOT_SEARCHED or (folder / "pyvenv.cfg").is_file()


def _is_spec_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and not name.startswith(".")
