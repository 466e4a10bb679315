"""The command line that a run came from."""

from __future__ import annotations

import re
import shlex

from glitchrun.ledger.record import RunRecord

_SET = re.compile(r"\(--set (.*)\)\Z", re.DOTALL)


def apply_command(record: RunRecord) -> str:
    """`glitchrun apply` with the overrides in force and, in a matrix, this run's name."""
    identity = record.identity
    found = (_SET.search(origin) for origin in record.origins.values())
    overrides = dict.fromkeys(match[1] for match in found if match)
    words = ["glitchrun", "apply", identity.spec_path]
    words += [word for override in overrides for word in ("--set", override)]
    if identity.assignments:
        words += ["--only", identity.name]
    return shlex.join(words)
