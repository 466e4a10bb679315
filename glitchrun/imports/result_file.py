"""The text of a result file, parsed as JSON, JSON lines or plain text. `imports/__init__.py` calls
`parse` before it chooses the format."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from glitchrun.errors import RunError

_GZIP = b"\x1f\x8b"
_MOST_BYTES = 512 * 1024**2
"""A result file of 150,000 tokens with every field is about 100 MB."""
_MOST_LINES = 2_000_000
"""Lines of a file with a token in each. A line without content costs as much memory as a token."""
_MOST_OBJECTS = 5_000_000
"""Objects and lists of a JSON document."""


class Malformed(ValueError):
    """A file of a known format contains something that the format does not allow."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A parsed result file."""

    name: str
    sha256: str
    kind: str
    """json, lines or text."""
    data: Any
    """A JSON value; for `lines`, a tuple of (line number from 1, object); or the text."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """As `ImportedFile.left_out`."""

    def keys(self) -> frozenset[str]:
        """Top-level keys of a JSON object; empty for other data."""
        is_object = self.kind == "json" and isinstance(self.data, dict)
        return frozenset(self.data) if is_object else frozenset()

    @property
    def first(self) -> Mapping[str, Any]:
        """The first object of a JSON lines file; empty for other data."""
        return self.data[0][1] if self.kind == "lines" and self.data else {}


def parse(path: Path) -> ResultFile:
    """The parsed file at `path`, decompressed if it is in gzip format.

    Raises:
        RunError: the file cannot be read, is not UTF-8, or contains invalid JSON; the message names
            line and column.
    """
    raw, text = _text(path)
    digest = hashlib.sha256(raw).hexdigest()
    if not text.strip():
        raise RunError(f"{path}: cannot be read as a list of tokens: it is empty")
    if _name(path).endswith(".jsonl") or text.lstrip().startswith("#"):
        return _lines(path, digest, text)
    if text.lstrip()[0] not in "{[":
        _check_size(path, text.count("\n"), _MOST_LINES, "lines")
        return ResultFile(path.name, digest, "text", text)
    _check_size(path, text.count("{") + text.count("["), _MOST_OBJECTS, "objects and lists")
    try:
        return ResultFile(path.name, digest, "json", json.loads(text))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:
            return _lines(path, digest, text)
        _not_json(path, error.lineno, error)
    except (ValueError, RecursionError) as error:  # an endless number, brackets without end
        raise RunError(f"{path}: cannot be read as JSON: {error}") from error


def _text(path: Path) -> tuple[bytes, str]:
    try:
        if not path.is_dir() and path.exists() and not path.is_file():
            raise RunError(f"{path}: not a regular file; save it as one first")
        with path.open("rb") as file:
            raw = _at_most(file, path)
        if raw[:2] != _GZIP:
            return raw, raw.decode("utf-8-sig")
        with gzip.open(io.BytesIO(raw)) as file:
            return raw, _at_most(file, path).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as a list of tokens: {error}") from error


def _at_most(file: IO[bytes] | gzip.GzipFile, path: Path) -> bytes:
    """All bytes of a file, decompressed; refuses files larger than any list of tokens."""
    content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise RunError(
            f"{path}: contains more than {_MOST_BYTES // 1024**2} MiB, too much for a list of "
            "tokens; import the part of it that lists tokens"
        )
    return content


def _check_size(path: Path, count: int, most: int, what: str) -> None:
    """Refuses a file that would take too much memory, such as many empty objects in gzip format."""
    if count > most:
        raise RunError(
            f"{path}: contains {count:,} {what}, more than {most:,}, too many for a list of "
            "tokens; import the part of it that lists tokens"
        )


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _lines(path: Path, digest: str, text: str) -> ResultFile:
    """JSON lines; lines that begin with # are comments. Splits at newlines only, because JSON may
    contain other line separators."""
    _check_size(path, text.count("\n"), _MOST_LINES, "lines")
    _check_size(path, text.count("{") + text.count("["), _MOST_OBJECTS, "objects and lists")
    found, left_out = [], {}
    rows = [(number, row) for number, row in enumerate(text.split("\n"), 1) if row.strip()]
    rows = [(number, row) for number, row in rows if not row.lstrip().startswith("#")]
    for place, (number, row) in enumerate(rows):
        try:
            value = json.loads(row)
        except (ValueError, RecursionError) as error:
            if place and place == len(rows) - 1 and not text.endswith("\n"):
                left_out["last line, which was cut off"] = 1  # its writer was killed
                break
            _not_json(path, number, error)
        if not isinstance(value, dict):
            raise RunError(f"{path}: line {number}: expected an object, got {value!r:.40}")
        found.append((number, value))
    return ResultFile(path.name, digest, "lines", tuple(found), left_out)


def _not_json(path: Path, line: int, error: Exception) -> NoReturn:
    place, what = f"line {line}", str(error)
    if isinstance(error, json.JSONDecodeError):
        place, what = f"line {line}, column {error.colno}", error.msg
    raise RunError(
        f"{path}: {place}: is not JSON ({what}); repair the file, or export it again"
    ) from error
