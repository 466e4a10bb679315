"""Plain lists: tables in CSV format (such as GlitchProber's), lists of texts, and text files with
one id in each line.

A list of texts names tokens without ids. They get numbers below 0 until a tokenizer assigns them
(`vocabulary_fit.with_ids`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.imports.fields import string, token, whole
from glitchrun.imports.records import Content, Format, ImportedToken
from glitchrun.imports.result_file import Malformed, ResultFile

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""First characters that make spreadsheets read a cell as a formula (OWASP, CSV injection)."""
_RETURN = "\udc0d"
"""Stands for a carriage return in a cell; no text in UTF-8 contains it."""
_ID = ("token_id", "id", "index")
_TEXT = ("token", "token_text", "text", "decoded")
_WHOLE = frozenset({"token_id", "rank", "attempts", "failures"})
_REAL = frozenset({"p", "entropy", "norm", "asr"})
_FLAG = frozenset({"glitch", "confirmed"})


def is_formula(text: str) -> bool:
    """Whether a text begins like a formula, perhaps after spaces and apostrophes. `glitchrun
    export` writes an apostrophe before such a text, and the reader of `csv` removes it."""
    return text.lstrip(" '").startswith(_FORMULA)


def _header(document: ResultFile) -> tuple[str, ...]:
    """The columns of a CSV file; empty for other files."""
    if document.kind != "text":
        return ()
    try:
        return tuple(next(csv.reader(io.StringIO(document.data)), ()))
    except csv.Error:
        return ()


def _renamed(column: str) -> str:
    if column in _ID:
        return "token_id"
    return "token" if column in _TEXT else column


def _is_csv(document: ResultFile) -> bool:
    columns = [_renamed(name) for name in _header(document)]
    named = columns.count("token_id"), columns.count("token")
    return named in {(1, 0), (1, 1), (0, 1)}


def _is_glitchprober(document: ResultFile) -> bool:
    return _header(document) in (("index",), ("index", "token"))


def _rows(document: ResultFile) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows by column, each with its place; cells without content are left out."""
    reader = csv.reader(io.StringIO(_protected(document.data)))
    try:
        columns = [_renamed(name) for name in next(reader)]
        for cells in reader:
            place = f"line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(columns):
                raise Malformed(place, f"{len(cells)} cells beside {len(columns)} columns")
            pairs = zip(columns, cells, strict=True)
            yield place, {name: cell.replace(_RETURN, "\r") for name, cell in pairs if cell}
    except csv.Error as error:
        raise Malformed(f"line {reader.line_num}", f"is not CSV ({error})") from error


def _protected(text: str) -> str:
    """The text of a CSV file, so that only its own line ends are line ends.

    If the first line ends with a line feed alone, carriage returns belong to the cells: pandas and
    older versions of Python do not quote them, as in GlitchProber's list of Mistral's tokens.
    """
    return text if "\r\n" in text[: text.find("\n") + 1] else text.replace("\r", _RETURN)


def _csv(document: ResultFile) -> Content:
    found = [(_typed(_unmarked(row), place), place) for place, row in _rows(document)]
    if "token_id" not in map(_renamed, _header(document)):
        return _of_texts([(string(row.get("token"), place), place) for row, place in found])
    return Content(tokens=[_token(row, place) for row, place in found])


def _unmarked(row: Mapping[str, str]) -> dict[str, str]:
    """The cells without the apostrophe that marks a text which looks like a formula."""
    marked = {name for name, cell in row.items() if cell[0] == "'" and is_formula(cell)}
    return {name: cell[1:] if name in marked else cell for name, cell in row.items()}


def _token(row: Mapping[str, Any], place: str) -> ImportedToken:
    settled = {name: row[name] for name in ("rank", *_FLAG) if name in row}
    return token(row, place, (*settled, "verdict", "severe", "token_repr"), **settled)


def _glitchprober(document: ResultFile) -> Content:
    """GlitchProber's list of the tokens that fail one greedy repetition; `index` is the id."""
    rows = ((_typed(row, place), place) for place, row in _rows(document))
    return Content([token(row, place, glitch=True) for row, place in rows], lists="findings")


def _typed(row: Mapping[str, str], place: str) -> dict[str, Any]:
    return {name: _value(name, cell, f"{place}.{name}") for name, cell in row.items()}


def _value(name: str, cell: str, place: str) -> Any:
    if name in _FLAG:
        if cell.lower() not in ("true", "false"):
            raise Malformed(place, f"expected true or false, got {cell!r:.40}")
        return cell.lower() == "true"
    try:
        if name in _WHOLE:
            found: int | float = int(_plain(cell))
        elif name in _REAL:
            found = float(_plain(cell))
        else:
            return cell
    except ValueError as error:
        raise Malformed(place, f"expected a number, got {cell!r:.40}") from error
    return whole(found, place) if name == "rank" else found


def _is_texts(document: ResultFile) -> bool:
    data = document.data if document.kind == "json" else None
    return isinstance(data, list) and bool(data) and all(isinstance(text, str) for text in data)


def _of_texts(texts: list[tuple[str, str]]) -> Content:
    """Tokens of texts with their places, each text once."""
    places = dict(reversed(texts))
    once = dict.fromkeys(text for text, _ in texts)
    tokens = [ImportedToken(-1 - n, places[text], text) for n, text in enumerate(once)]
    return Content(tokens, repeated=len(texts) - len(once))


def _is_lines(document: ResultFile) -> bool:
    return document.kind == "text" and document.data.split(None, 1)[0].isdecimal()


def _lines(document: ResultFile) -> Content:
    lines = enumerate(document.data.split("\n"), 1)
    filled = [(f"line {number}", line.strip()) for number, line in lines if line.strip()]
    return Content([ImportedToken(_id(line, place), place) for place, line in filled])


def _id(line: str, place: str) -> int:
    try:
        return whole(int(_plain(line)), place)
    except ValueError as error:
        raise Malformed(place, f"expected a token id, got {line!r:.40}") from error


def _plain(number: str) -> str:
    """A number as files write it. Python also reads `1_000` and digits of other scripts.

    Raises:
        ValueError: the text is written in another way.
    """
    if "_" in number or not number.isascii():
        raise ValueError(number)
    return number


FORMATS = (
    Format(
        "glitchprober",
        "MODEL-glitch-tokens.csv of GlitchProber: columns 'index' and 'token', or 'index' alone",
        _is_glitchprober,
        _glitchprober,
    ),
    Format(
        "csv",
        "a CSV file with a column 'token_id', 'id' or 'index', or with texts in a column 'token'",
        lambda document: _is_csv(document) and not _is_glitchprober(document),
        _csv,
    ),
    Format("id-lines", "a text file with one id in each line", _is_lines, _lines),
    Format(
        "texts",
        "a JSON list of texts, as `glitchrun export --format garak` writes",
        _is_texts,
        lambda document: _of_texts([(text, f"[{n}]") for n, text in enumerate(document.data)]),
    ),
)
