"""The append-only file of a run. An entry is durable before anything is told about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glitchrun.errors import RunError
from glitchrun.ledger.record import RunIdentity

LEDGER = "ledger.jsonl"
IDENTITY = "run.json"


class Journal:
    """Appends entries to a ledger. A torn last line, left by a kill, is cut off on opening."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / LEDGER
        if path.exists():
            _cut_torn_line(path)
        self._file = path.open("ab")

    @classmethod
    def create(cls, folder: Path, identity: RunIdentity, spec: Mapping[str, Any]) -> Self:
        """Starts a run's folder. run.json appears last and whole, so a kill leaves no half run."""
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        (folder / LEDGER).unlink(missing_ok=True)
        data = {"identity": asdict(identity), "spec": spec, "created_at": now()}
        write_atomically(folder / IDENTITY, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
        return cls(folder)

    def append(self, kind: str, **fields: Any) -> int:
        """Writes one entry through to the disk; returns its time, in ms since the epoch."""
        at = now()
        line = json.dumps({"kind": kind, "at": at, **fields}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return at

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run, in order. A torn last line is passed over.

    Raises:
        RunError: a line in the middle cannot be read; the message names it.
    """
    path = folder / LEDGER
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as exc:
                raise RunError(
                    f"{path}:{number}: not a ledger entry ({exc}); the file was changed by "
                    "something other than glitchrun: restore it or start anew with --fresh"
                ) from exc


def mark_delivered(folder: Path, ids: Mapping[str, str]) -> None:
    """Records which MLflow run holds this run."""
    write_atomically(folder / "delivered.json", json.dumps(dict(ids)) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            file.truncate(whole)
