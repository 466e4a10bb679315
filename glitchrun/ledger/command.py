"""The command line that a run came from."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.spec.nodes import REDACTED, path_text

_SET = re.compile(r"\(--set (.*)\)\Z", re.DOTALL)
_VARIABLE = re.compile(r"\(environment variable (\w+)\)\Z")


def apply_command(record: RunRecord) -> str:
    """`glitchrun apply` with the overrides in force and, in a matrix, this run's name, behind the
    environment variables that the spec took. Of a secret one stands `NAME=...`, to be filled in."""
    identity = record.identity
    found = (_SET.search(origin) for origin in record.origins.values())
    overrides = dict.fromkeys(match[1] for match in found if match)
    words = ["glitchrun", "apply", identity.spec_path]
    words += [word for override in overrides for word in ("--set", override)]
    if identity.assignments:
        words += ["--only", identity.name]
    return " ".join([*_assignments(record), shlex.join(words)])


def _assignments(record: RunRecord) -> list[str]:
    """`NAME=value`, quoted for a shell, of each variable once; it is secret wherever it stands
    where one place of it is."""
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
    """Every value in a resolved document that holds no others, by its path as origins write it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _values(inner, (*path, index))
    else:
        yield path_text(path), value


def _text(value: Any) -> str:
    """A scalar as the environment would have to hold it to be read so again."""
    return value if isinstance(value, str) else json.dumps(value)
