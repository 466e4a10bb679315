"""The files of a run's folder: how they are named, written and read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError

LEDGER = "ledger.jsonl"
IDENTITY = "run.json"
DELIVERED = "delivered.json"


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run, in order. A torn last line is passed over.

    Raises:
        RunError: a line in the middle is no entry; the message names it.
    """
    path = folder / LEDGER
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise damaged(f"{path}:{number}", f"not a ledger entry ({exc})") from exc
            if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
                raise damaged(f"{path}:{number}", "not a ledger entry (it has no kind)")
            yield entry


def damaged(where: str, what: str) -> RunError:
    """The error for a file of a run that only something else can have changed."""
    return RunError(
        f"{where}: {what}; the file was changed by something other than glitchrun: restore it "
        "or start anew with --fresh"
    )


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def cut_torn_line(path: Path) -> None:
    """Drops a last line without an end, as a kill in the middle of a write leaves it."""
    with path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            file.truncate(whole)
