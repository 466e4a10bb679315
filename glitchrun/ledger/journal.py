"""The append-only file of a run. An entry is durable before anything is told about it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glitchrun.ledger.files import DELIVERED, IDENTITY, LEDGER, cut_torn_line, now, write_atomically
from glitchrun.ledger.read import Fold, read_fold
from glitchrun.ledger.record import RunIdentity, RunRecord


class Journal:
    """Appends entries to a ledger. A torn last line, left by a kill, is cut off on opening."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / LEDGER
        if path.exists():
            cut_torn_line(path)
        self._fold: Fold = read_fold(folder)
        self._file = path.open("ab")

    @property
    def record(self) -> RunRecord:
        """The run as its entries stand."""
        return self._fold.record()

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: RunIdentity,
        spec: Mapping[str, Any],
        origins: Mapping[str, str],
    ) -> Self:
        """Starts a run's folder. run.json appears last and whole, so a kill leaves no half run."""
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        (folder / LEDGER).unlink(missing_ok=True)
        data = {
            "identity": asdict(identity),
            "spec": spec,
            "origins": dict(origins),
            "created_at": now(),
        }
        write_atomically(folder / IDENTITY, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
        return cls(folder)

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one entry, stamped with the time, through to the disk."""
        entry = {"kind": kind, "at": now(), **fields}
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._fold.see(entry)

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


def mark_delivered(folder: Path, ids: Mapping[str, str]) -> None:
    """Records which MLflow run holds this run."""
    write_atomically(folder / DELIVERED, json.dumps(dict(ids)) + "\n")
