"""Safe output: writing cannot fail, and text cannot control the terminal.

All commands write through this module. `say` writes messages for people, with characters that
control the terminal or reverse text as escapes; `styled` marks the words in them that a terminal
shows in colour. `emit` and `emit_json` write documents for programs. After `protect_streams`, a
closed pipe (`| head`), a closed terminal or a full disk loses output but never stops a run.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import select
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO, cast

_INVISIBLE = (
    "\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\U000e0000-\U000e007f"
)
"""C1 controls, direction marks, zero-width characters, line separators, surrogates, noncharacters
and tags."""
_STYLES = {"good": "32", "warning": "33", "bad": "31", "dim": "2", "heading": "1"}
"""Select Graphic Rendition parameters by role."""
_MARKS = {role: chr(0xFDD0 + place) for place, role in enumerate(_STYLES)}
_END = "\ufdef"
"""Around styled text stand noncharacters, which Unicode reserves for use within a program."""
_STYLED = re.compile(f"([{''.join(_MARKS.values())}])([^\ufdd0-\ufdef]*){_END}")
_HIDDEN = re.compile(f"[\x00-\x1f{_INVISIBLE}]")
_HIDDEN_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_INVISIBLE}]")
_HIDDEN_IN_JSON = re.compile(f"[{_INVISIBLE}]")
REDACTED = "<redacted>"
SHORTEST_SECRET = 4
"""Characters. Shorter secrets are redacted only in quotes: a `1` is part of many messages."""
_secrets: set[str] = set()
_NOBODY_READS = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET}
"""Errors of a closed pipe or terminal. The caller is informed of all others."""


def conceal(secret: str) -> None:
    """Shows `secret` as `<redacted>` in all output of this process from now on."""
    if len(secret) >= SHORTEST_SECRET:
        _secrets.add(secret)


def concealed(text: str) -> str:
    """`text` without the secrets that this process knows."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text


def visible(text: str) -> str:
    """`text` on one line, with control, direction and zero-width characters as escapes."""
    return _HIDDEN.sub(_escape, text)


def visible_lines(text: str) -> str:
    """Like `visible`, but keeps line breaks and tabs."""
    return _HIDDEN_IN_LINES.sub(_escape, text)


def shortened(text: str, limit: int = 60) -> str:
    """`text`, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Writes a message for people to standard output, or with `err` to standard error."""
    stream = QuietStream(sys.stderr if err else sys.stdout)
    text = concealed(str(text))
    shown = _coloured(text) if _has_colour(err) else visible_lines(text)
    stream.write(shown + "\n" * nl)
    stream.flush()


def styled(text: str, role: str) -> str:
    """`text` marked for `say` to colour, or `text` itself where the output has no colour.

    Standard output has colour if it is a terminal, unless NO_COLOR is set or TERM is `dumb`. The
    marks count as two characters, so pad a cell before you style it.

    Args:
        role: good, warning, bad, dim or heading.

    Raises:
        KeyError: the role is unknown.
    """
    mark = _MARKS[role]
    return f"{mark}{text}{_END}" if _has_colour(err=False) else text


def fitted(line: str, indent: int = 14) -> str:
    """A line of a listing, wrapped to the width of the terminal; unchanged where there is none.

    Further lines are indented by `indent` columns. Words, paths and keys are never broken.
    """
    width = shutil.get_terminal_size().columns
    if len(line) <= width or not QuietStream(sys.stdout).isatty():
        return line
    start = len(line) - len(line.lstrip(" "))
    return textwrap.fill(
        line.lstrip(" "),
        width,
        initial_indent=" " * start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _has_colour(err: bool) -> bool:
    stream = QuietStream(sys.stderr if err else sys.stdout)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and stream.isatty()


def _coloured(text: str) -> str:
    """`text` with its styled parts in colour, and everything else as `visible_lines` has it."""
    codes = {mark: _STYLES[role] for role, mark in _MARKS.items()}
    plain, *styled_parts = _STYLED.split(text)
    shown = [visible_lines(plain)]
    for mark, inside, after in zip(*[iter(styled_parts)] * 3, strict=True):
        shown.append(f"\x1b[{codes[mark]}m{visible_lines(inside)}\x1b[0m{visible_lines(after)}")
    return "".join(shown)


def terminal_width() -> int | None:
    """Columns of the terminal that standard output goes to; None where it is no terminal and
    COLUMNS is not set."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (AttributeError, OSError, ValueError):
        return None


def emit(text: str) -> None:
    """Writes a document to standard output unchanged but for secrets, as UTF-8."""
    text = concealed(text)
    stream = QuietStream(sys.stdout)
    stream.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # a replacement that accepts only text
        stream.write(text)
        stream.flush()
        return
    _quietly(lambda: buffer.write(text.encode("utf-8", "backslashreplace")))
    _quietly(buffer.flush)


def emit_json(document: Any) -> None:
    """Writes one JSON document to standard output. Invisible characters are written as escapes,
    which mean the same to a program."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    emit(_HIDDEN_IN_JSON.sub(_json_escape, text) + "\n")


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[index : index + 4]}" for index in range(0, len(units), 4))


class QuietStream:
    """Wraps a text stream so that no write fails; output that cannot be written is lost."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text`, with characters that the encoding lacks as escapes."""
        stream = self._stream
        if stream is not None:
            try:
                _quietly(lambda: stream.write(text))
            except UnicodeEncodeError:
                encoding = getattr(stream, "encoding", None) or "ascii"
                plain = text.encode(encoding, "backslashreplace").decode(encoding)
                _quietly(lambda: stream.write(plain))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if it can be flushed."""
        if self._stream is not None:
            _quietly(self._stream.flush)

    def isatty(self) -> bool:
        """Whether the stream is an open terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except UnicodeEncodeError:
        raise
    except (OSError, ValueError):  # ValueError: the stream was closed
        pass


class _Guarded(io.FileIO):
    """A file descriptor on which no write fails; the first error is kept in `lost`."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Writes all of `data`, unless the descriptor fails."""
        view = memoryview(data).cast("B")
        rest = view
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # another program made it non-blocking, and it is full
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self.lost = self.lost or error
        return len(view)


def protect_streams() -> None:
    """Makes standard output and standard error safe to write to, for the rest of the process.

    Opens closed standard descriptors on /dev/null. Otherwise the next opened file would get their
    number and receive the output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # `open` returns the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _protected(sys.stdout, 1)
    sys.stderr = _protected(sys.stderr, 2)


def _protected(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - no Path, and stays open
    raw = _descriptor(stream)
    if raw is None or isinstance(raw, _Guarded) or raw.fileno() != number:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    QuietStream(stream).flush()
    guarded = _Guarded(number, "w", closefd=False)
    unbuffered = raw is stream.buffer  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        cast("BinaryIO", guarded) if unbuffered else io.BufferedWriter(guarded),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=number == 2 or bool(stream.line_buffering),
        write_through=unbuffered,
    )


def _descriptor(stream: TextIO | None) -> io.FileIO | None:
    """The file that a stream writes to; None if it is another object."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, io.FileIO) else None


def output_lost() -> OSError | None:
    """The error that lost a part of standard output, such as a full disk. None if nothing was lost,
    or if the reader stopped reading."""
    raw = _descriptor(sys.stdout)
    lost = raw.lost if isinstance(raw, _Guarded) else None
    return lost if lost is not None and lost.errno not in _NOBODY_READS else None
