"""What a YAML parser says, as a located problem with a remedy."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from glitchrun.spec.nodes import Place, problem_at
from glitchrun.spec.problems import Problem
from glitchrun.spec.scalars import shortened
from glitchrun.spec.source import Source

_HINTS = {
    "cannot start any token": "indent with spaces, not tabs, and quote values that start with a "
    "character such as `%`, `@` or a backquote",
    "tab character": "indent with spaces, not tabs",
    "mapping values are not allowed": "quote a value that holds `: `, or check the indentation",
    "could not find expected ':'": "a key needs a colon and a space after it",
    "expected ',' or": "a flow list or mapping is missing a comma or its closing bracket",
    "alphabetic or numeric character": "quote a value that starts with `*` or `&`",
    "expected comment or line break": "quote a value that starts with `>` or `|`",
    "invalid Unicode character escape": "write the character itself, or its code point with eight "
    'digits, such as "\\U0001F600"; half of a surrogate pair is no character',
    "expected <block end>": "check the indentation of this line and those above it",
}
# Found where the parser gave up, but made where it began: a quote or a bracket that never closes, a
# key without its colon.
_MADE_AT_START = (
    "could not find expected ':'",
    "unexpected end of stream",
    "alphabetic or numeric character",
    "expected comment or line break",
)
_NEVER_CLOSES = {"flow mapping": "'}'", "flow sequence": "']'", "quoted scalar": "quote"}


def syntax_problem(
    source: Source, error: yaml.YAMLError, restore: Mapping[int, int | str]
) -> Problem:
    """The parser's `error` in `source`; `restore` gives the characters swapped for parsing back."""
    if not isinstance(error, yaml.MarkedYAMLError):  # a reader error carries no mark
        what = str(error).partition("\n")[0] or "not YAML"
        return problem_at(Place(source, 1, 1), "GR005", shortened(what, 200))
    what = shortened((error.problem or "not YAML").translate(restore), 200)
    message = f"{what} ({error.context})" if error.context else what
    hint = next((hint for start, hint in _HINTS.items() if start in what), "")
    unclosed = _unclosed(source, error)
    if unclosed:
        message = f"the {unclosed} that closes this is missing ({error.context})"
    at_start = unclosed or any(part in what for part in _MADE_AT_START)
    mark = (error.context_mark if at_start else None) or error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if line > len(source.lines):  # libyaml puts the end of the stream on a line of its own
        line, column = len(source.lines), len(source.lines[-1]) + 1
    return problem_at(Place(source, line, column), "GR005", message, hint)


def _unclosed(source: Source, error: yaml.MarkedYAMLError) -> str:
    """What would close the flow collection or quoted text that the file ends in; empty for none."""
    mark, context = error.problem_mark, error.context or ""
    if mark is None or any(line.strip() for line in source.lines[mark.line :][1:]):
        return ""
    if source.line(mark.line + 1)[mark.column :].strip():
        return ""
    return next((end for kind, end in _NEVER_CLOSES.items() if context.endswith(kind)), "")
