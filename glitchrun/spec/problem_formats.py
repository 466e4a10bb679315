"""Problems as text, JSON, GitHub annotations and SARIF."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from glitchrun.spec.problems import CODES, Problem
from glitchrun.terminal import visible

_LINE_WIDTH = 100
"""Terminal columns that an excerpt of a source line takes at most."""
_TAB = "    "


def as_text(problems: Iterable[Problem]) -> str:
    """Each problem with its source line and a mark under the value."""
    return "\n".join(_text(problem) for problem in problems)


def as_json(problems: Iterable[Problem], files: int) -> str:
    """`{"files": N, "errors": [{"file", "line", "column", "code", "path", "message", "hint",
    "via"}]}`; the fields are those of `Problem`."""
    keys = ("file", "line", "column", "code", "path", "message", "hint", "via")
    errors = [{key: getattr(problem, key) for key in keys} for problem in problems]
    return json.dumps({"files": files, "errors": errors}, indent=2)


def as_github(problems: Iterable[Problem]) -> str:
    """GitHub Actions workflow commands, which annotate the files of a pull request."""
    return "\n".join(_github(problem) for problem in problems)


def as_sarif(problems: Sequence[Problem]) -> str:
    """A SARIF 2.1.0 log for code scanning."""
    used = sorted({problem.code for problem in problems})
    driver = {
        "name": "glitchrun",
        "rules": [{"id": code, "shortDescription": {"text": CODES[code]}} for code in used],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(problem, used.index(problem.code)) for problem in problems],
    }
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json.dumps(log, indent=2)


def _text(problem: Problem) -> str:
    origin = f" ({problem.via})" if problem.via else ""
    head = (
        f"{problem.file}:{problem.line}:{problem.column}: "
        f"error[{problem.code}] {problem.message}{origin}"
    )
    if not problem.source_line.strip():
        return visible(f"{head}; {problem.hint}" if problem.hint else head)
    before, marked, after = _excerpt(problem)
    number = str(problem.line)
    carets = "^" * max(1, _columns(marked))
    below = f" {' ' * len(number)} | {' ' * _columns(before)}{carets} {visible(problem.hint)}"
    return "\n".join((visible(head), f" {number} | {before}{marked}{after}", below.rstrip()))


def _excerpt(problem: Problem) -> tuple[str, str, str]:
    """The source line before, in and after the mark: tabs as spaces, shortened if too long."""
    line, start = problem.source_line, problem.column - 1
    raw = line[:start], line[start : start + problem.width], line[start + problem.width :]
    before, marked, after = (visible(part.replace("\t", _TAB)) for part in raw)
    if len(marked) > _LINE_WIDTH - 20:
        marked, after = marked[: _LINE_WIDTH - 20] + "…", ""
    room = _LINE_WIDTH - len(marked)
    if len(before) > room * 2 // 3:
        before = "…" + before[-room // 2 :]
    left = max(0, room - len(before))
    if len(after) > left:
        after = after[:left] + "…"
    return before, marked, after.rstrip()


def _columns(text: str) -> int:
    """Terminal columns that `text` occupies."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _full_message(problem: Problem) -> str:
    origin = f" ({problem.via})" if problem.via else ""
    return f"{problem.message}{origin}" + (f"; {problem.hint}" if problem.hint else "")


def _github(problem: Problem) -> str:
    file = _github_escape(problem.file, is_property=True)
    message = _github_escape(_full_message(problem))
    end = problem.column + max(1, problem.width) - 1
    return (
        f"::error file={file},line={problem.line},col={problem.column},endColumn={end},"
        f"title={problem.code}::{message}"
    )


def _github_escape(text: str, *, is_property: bool = False) -> str:
    escapes = {"%": "%25", "\r": "%0D", "\n": "%0A"}
    if is_property:
        escapes |= {":": "%3A", ",": "%2C"}
    return "".join(escapes.get(character, character) for character in text)


def _sarif_result(problem: Problem, rule: int) -> dict[str, Any]:
    return {
        "ruleId": problem.code,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": _full_message(problem)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(problem.file)},
                    "region": {
                        "startLine": problem.line,
                        "startColumn": problem.column,
                        "endColumn": problem.column + max(1, problem.width),
                    },
                }
            }
        ],
    }


def _uri(file: str) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(file.replace(os.sep, "/")))
