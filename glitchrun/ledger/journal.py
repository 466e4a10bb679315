"""The append-only file of a run. An entry is durable before anything is told about it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.checksums import VERSION, Chain, Damage
from glitchrun.ledger.files import (
    DELIVERED,
    IDENTITY,
    LEDGER,
    now,
    read_text,
    set_aside,
    sync_folder,
    write_atomically,
)
from glitchrun.ledger.read import Reading, read_delivered, read_fold
from glitchrun.ledger.record import RunIdentity, RunRecord

_THEN = "; apply again: the run continues where it stopped"


class Journal:
    """Appends entries to a ledger.

    On opening, an incomplete last line, left by a kill, is removed. A damaged ledger
    is kept under another name, and the journal continues from its intact part.
    """

    def __init__(self, folder: Path, otherwise: Mapping[str, Any] | None = None) -> None:
        """`otherwise` is what `run_document` gives, in case the folder's files do not say any more
        which run this is.

        Raises:
            RunError: the run's files cannot be read, written or repaired.
        """
        self.folder = folder
        self.repaired: str | None = None
        """What was wrong with the files when they were opened, in one line."""
        reading = read_fold(folder, otherwise)
        self._fold = reading.fold
        self._chain: Chain = reading.inspection.chain
        self._end = reading.inspection.good_bytes
        good = self._chain.lines
        with file_access(folder, "cannot be written", then=_THEN):
            kept = self._cut(reading)
            path = folder / LEDGER
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
            run = self._begin_chain(reading.run)
            _write_identity(folder, run)
        if reading.inspection.damage is not None:
            self._note_damage(reading.inspection.damage, good, kept)

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
        """Starts a run's folder. Its files appear whole, so a kill leaves no half run.

        Raises:
            RunError: it cannot be written, or holds a ledger already.
        """
        path = folder / LEDGER
        with file_access(folder, "cannot be written", then=_THEN):
            (folder / "artifacts").mkdir(parents=True, exist_ok=True)
            if holds_run(folder):
                raise RunError(
                    f"{folder}: it already contains a run, which was not changed: apply "
                    "again, or start another attempt with --fresh"
                )
            run = run_document(identity, spec, origins)
            write_atomically(path, Chain(lambda kind: False).head_line(now(), run))
            _write_identity(folder, run)
            for above in (folder.parent, folder.parent.parent, folder.parent.parent.parent):
                sync_folder(above)
        return cls(folder)

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one entry, stamped with the time, through to the disk.

        Raises:
            RunError: it could not be written; nothing of it is in the ledger then.
        """
        entry = {"kind": kind, "at": now(), **fields}
        self._write(self._chain.line(entry))
        self._fold.see(entry)

    def _write(self, line: bytes) -> None:
        with file_access(self.folder / LEDGER, "cannot be written", then=_THEN):
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._descriptor, left) :]
                os.fsync(self._descriptor)
            except OSError:
                with suppress(OSError):  # or else the next entry would end half a line
                    os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(line)
        self._chain.add(line)

    def _cut(self, reading: Reading) -> Path | None:
        """Leaves the good part of the ledger. Returns where all of it is kept, where it is."""
        path = self.folder / LEDGER
        if not path.exists() or path.stat().st_size == reading.inspection.good_bytes:
            return None
        if reading.inspection.damage is not None:
            return set_aside(path, reading.inspection.good_bytes)
        os.truncate(path, reading.inspection.good_bytes)
        return None

    def _begin_chain(self, run: Mapping[str, Any]) -> Mapping[str, Any]:
        """Gives a ledger without checksums, or one that nothing is left of, the line that they
        begin with. Returns what the run is, as that line says it."""
        if self._chain.head is not None:
            return dict(self._chain.head["run"])
        run = {**run, "version": VERSION}
        self._write(self._chain.head_line(now(), run))
        return run

    def _note_damage(self, damage: Damage, good: int, kept: Path | None) -> None:
        """Records the damage in the ledger. The end of the run that was sent to MLflow is
        no longer valid."""
        self._fold.damage = None
        ids = read_delivered(self.folder)
        if ids.pop("ending", None):
            with file_access(self.folder, "cannot be written", then=_THEN):
                mark_delivered(self.folder, ids)
        what = f"{LEDGER}:{damage.line}: {damage.what}"
        self.append("damaged", line=damage.line, what=what, kept=kept.name if kept else None)
        going_on = f"the run continues after line {good}" if good else "the run starts again"
        self.repaired = f"{self.folder}/{self._fold.repairs[-1]}; {going_on}"

    def close(self) -> None:
        """Ends the journal; every entry is on disk already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run_document(
    identity: RunIdentity, spec: Mapping[str, Any], origins: Mapping[str, str]
) -> dict[str, Any]:
    """What a run is, as run.json and the first line of its ledger hold it."""
    return {
        "version": VERSION,
        "identity": asdict(identity),
        "spec": spec,
        "origins": dict(origins),
        "created_at": now(),
    }


def holds_run(folder: Path) -> bool:
    """Whether an attempt's folder holds a run, whole or not: run.json, or a ledger with anything
    in it."""
    ledger = folder / LEDGER
    return (folder / IDENTITY).exists() or (ledger.exists() and ledger.stat().st_size > 0)


def _write_identity(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes run.json where it does not say what the ledger says."""
    text = json.dumps(run, ensure_ascii=False, indent=1) + "\n"
    try:
        same = read_text(folder / IDENTITY) == text
    except (OSError, ValueError):
        same = False
    if not same:
        write_atomically(folder / IDENTITY, text)


def mark_delivered(folder: Path, ids: Mapping[str, str]) -> None:
    """Records which MLflow run holds this run.

    Raises:
        OSError: the note cannot be written.
    """
    write_atomically(folder / DELIVERED, json.dumps(dict(ids)) + "\n")
