"""Functions to write artifacts: files that appear whole, JSON that every reader accepts, MLflow
tables."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from glitchrun.errors import UsageError, file_access
from glitchrun.events import DIGITS

# Characters that are legal in JSON but mislead readers: C1 controls, line separators (at which
# `str.splitlines` splits a JSON line), bidi and zero-width marks, and lone surrogates, which UTF-8
# cannot encode. They only occur inside strings, where an escape has the same meaning.
_ESCAPED = re.compile(
    "[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_PIPE_SECONDS = 5.0
"""How long a named pipe may be without a reader."""


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Opens a UTF-8 file that replaces `path` when the block ends without an error.

    A device, a pipe or a socket is written through. If `path` is a symbolic link, its target is
    replaced.

    Raises:
        OSError: The file cannot be written.
    """
    if _is_written_through(path):
        to: Path | int = _pipe(path) if path.is_fifo() else path
        with open(to, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:  # noqa: PTH123 - a descriptor
            yield file
        return
    path = path.resolve()
    partial = path.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        # `backslashreplace`: a lone surrogate in a token must not cost a run its report.
        with partial.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_written_through(path: Path) -> bool:
    """Whether `path` is not a regular file, or names an open one, such as /dev/stdout."""
    is_open_file = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return is_open_file or (path.exists() and not path.is_file())


def _pipe(path: Path) -> int:
    """The descriptor of a named pipe, opened for writing as soon as a process reads from it.

    Raises:
        OSError: No process does so within a few seconds.
    """
    until = time.monotonic() + _PIPE_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() >= until:
                raise OSError(errno.ENXIO, "no process reads from this pipe", str(path)) from error
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def write_document(path: Path, text: str | bytes, option: str) -> None:
    """Writes a file that the user named with `option`.

    Raises:
        UsageError: Its folder does not exist.
        RunError: It cannot be written.
    """
    if not os.path.isdir(path.parent):  # noqa: PTH112 - false for any text, where Path raises
        folder = path.parent
        raise UsageError(f"{option} {path}: the folder {folder} does not exist; create it first")
    with file_access(path, "cannot be written"), replacing(path) as file:
        if isinstance(text, bytes):
            file.buffer.write(text)
        else:
            file.write(text)


def to_json(value: Any) -> str:
    """The value as one line of JSON. Only misleading characters are escaped.

    Raises:
        ValueError: `value` contains NaN or an infinity.
    """
    return _encoded(value, ",")


def _encoded(value: Any, separator: str) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(separator, ":"))
    if text.isascii() and "\x7f" not in text:
        return text
    return _ESCAPED.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


class Encoded(str):
    """Text that is JSON already, as a cell of `json_rows`."""

    __slots__ = ()


def json_rows(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Each row of a table as a JSON object.

    Args:
        columns: The cells of each column, by its name. `Encoded` cells are not encoded again.

    Raises:
        ValueError: A cell is NaN or an infinity.
    """
    names = ",".join(to_json(name).replace("%", "%%") + ":%s" for name in columns)
    cells = map(_json_cells, columns.values())
    return [f"{{{names % row}}}" for row in zip(*cells, strict=True)]


def _json_cells(values: Sequence[Any]) -> Sequence[str]:
    """Each value as JSON. A column is encoded at once, in a tenth of the time."""
    kinds = {*map(type, values)}
    if Encoded in kinds:
        return ["null" if value is None else value for value in values]
    if not kinds or kinds & {dict, list, tuple}:
        return [to_json(value) for value in values]
    return _encoded(values, "\n")[1:-1].split("\n")  # JSON has no line breaks within a value


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """`value` to `digits` significant digits; None for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def all_rounded(values: Iterable[float | None], digits: int = DIGITS) -> list[float | None]:
    """`rounded` of each value."""
    form = f"%.{digits}g"
    return [
        float(form % value) if value is not None and math.isfinite(value) else None
        for value in values
    ]


def rounded_floats(value: Any) -> Any:
    """`value` with every float in it rounded; NaN and infinities, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {key: rounded_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded_floats(item) for item in value]
    return rounded(value) if isinstance(value, float) else value


def mlflow_table(columns: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Pieces of a JSON file in the format of MLflow's table view, one row on a line.

    Args:
        columns: The cells of each column, by its name.
    """
    yield f'{{"columns":{to_json(list(columns))},"data":['
    cells = zip(*map(_json_cells, columns.values()), strict=True)
    yield ",".join(f"\n[{','.join(row)}]" for row in cells)
    yield "\n]}\n"
