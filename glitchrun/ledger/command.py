"""The command line that repeats a run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.spec.nodes import path_text
from glitchrun.terminal import REDACTED

_OPTION = re.compile(r"\((--set|--until|--limit) (.*)\)\Z", re.DOTALL)
_VARIABLE = re.compile(r"\(environment variable (\w+)\)\Z")


def apply_command(record: RunRecord) -> str:
    """The shell command that applies the spec of a run again.

    It starts with the environment variables that the spec read and includes the options that
    changed the spec and, in a matrix, `--only`. A secret variable is shown as `NAME=...`, to be
    filled in.
    """
    identity = record.identity
    found = (_OPTION.search(origin) for origin in record.origins.values())
    options = dict.fromkeys(match.groups() for match in found if match)
    words = ["glitchrun", "apply", identity.spec_path]
    words += [word for option in options for word in option]
    if identity.assignments:
        words += ["--only", identity.name]
    return " ".join([*_assignments(record), shlex.join(words)])


def _assignments(record: RunRecord) -> list[str]:
    """`NAME=value`, quoted for a shell, once for each variable.

    A variable is secret if one of the places that read it is.
    """
    values = dict(_values(record.spec))
    taken: dict[str, str] = {}
    secret = set()
    for path, origin in record.origins.items():
        if match := _VARIABLE.search(origin):
            value = values.get(path, REDACTED)
            taken.setdefault(match[1], _text(value))
            secret |= {match[1]} if value == REDACTED else set()
    return [
        f"{name}={'...' if name in secret else shlex.quote(text)}" for name, text in taken.items()
    ]


def _values(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every scalar in a resolved document, with its path as in `origins`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _values(inner, (*path, index))
    else:
        yield path_text(path), value


def _text(value: Any) -> str:
    """A scalar as an environment variable would contain it."""
    return value if isinstance(value, str) else json.dumps(value)
