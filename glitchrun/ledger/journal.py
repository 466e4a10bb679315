"""Appends to the ledgers of runs and steps. Each entry is on the disk before any reader sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glitchrun.errors import RunError, file_access
from glitchrun.events import Batch, Measured
from glitchrun.events_json import batch_to_json
from glitchrun.ledger.checksums import VERSION, Chain, Damage, Inspection
from glitchrun.ledger.files import LEDGER, now, set_aside, sync_folder, write_atomically
from glitchrun.ledger.identity import (
    contains_run,
    mark_delivered,
    read_delivered,
    run_document,
    write_run_document,
)
from glitchrun.ledger.read import read_fold
from glitchrun.ledger.record import ModelRecord, RunIdentity, RunRecord
from glitchrun.ledger.step_fold import Extent, StepFold, within, worker_of
from glitchrun.ledger.step_store import inspect_step

THEN = "; apply again: the run continues where it stopped"
"""The end of a message about a ledger that cannot be written."""


class LedgerFile:
    """An open ledger, truncated to its intact part."""

    def __init__(self, folder: Path, inspection: Inspection) -> None:
        """Removes an incomplete last line, which a kill leaves, and keeps a copy of a damaged file.

        Raises:
            RunError: the file cannot be written or repaired.
        """
        self.path = folder / LEDGER
        self.chain: Chain = inspection.chain
        self.kept: Path | None = None
        """The copy of a damaged ledger."""
        self._end = inspection.good_bytes
        with file_access(folder, "cannot be written", then=THEN):
            self._truncate(inspection)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o666)
            self._shows_removal = os.fstat(self._descriptor).st_nlink > 0

    def _truncate(self, inspection: Inspection) -> None:
        if not self.path.exists() or self.path.stat().st_size == inspection.good_bytes:
            return
        if inspection.damage is not None:
            self.kept = set_aside(self.path, inspection.good_bytes)
        else:
            os.truncate(self.path, inspection.good_bytes)

    def append(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Writes an entry with the current time, and returns it.

        Raises:
            RunError: the entry could not be written; the ledger then contains no part of it.
        """
        entry = {"kind": kind, "at": now(), **fields}
        self.write(self.chain.line(entry))
        return entry

    def write(self, line: bytes) -> None:
        """Writes a line that continues the chain of checksums.

        Raises:
            RunError: see `append`.
        """
        with file_access(self.path, "cannot be written", then=THEN):
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._descriptor, left) :]
                os.fsync(self._descriptor)
                self._check_there()
            except OSError:
                with suppress(OSError):  # or the next entry would follow half a line
                    os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(line)
        self.chain.add(line)

    def _check_there(self) -> None:
        """Raises FileNotFoundError if the file was removed: what is written to it would be lost."""
        if self._shows_removal and os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "it was removed meanwhile", str(self.path))

    def damage_found(self, damage: Damage) -> dict[str, Any]:
        """The fields of the entry that records the damage found on opening."""
        what = f"{LEDGER}:{damage.line}: {damage.what}"
        return {"line": damage.line, "what": what, "kept": self.kept.name if self.kept else None}

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Open:
    """A ledger that is open; leaving the `with` block closes it."""

    _file: LedgerFile

    def close(self) -> None:
        """Closes the file; every entry is on the disk already."""
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


class Journal(_Open):
    """Appends entries to a ledger.

    On opening, it removes an incomplete last line, which a kill leaves. It keeps a damaged ledger
    under another name and continues from the intact part.
    """

    def __init__(self, folder: Path, fallback: Mapping[str, Any] | None = None) -> None:
        """Opens the ledger of an attempt.

        Args:
            folder: The attempt's folder.
            fallback: The run document to use if the folder's files do not contain one any more.

        Raises:
            RunError: the run's files cannot be read, written or repaired.
        """
        self.folder = folder
        self.repaired: str | None = None
        """The damage found on opening, in one line; None for an intact ledger."""
        reading = read_fold(folder, fallback)
        self._fold = reading.fold
        good = reading.inspection.chain.lines
        self._file = LedgerFile(folder, reading.inspection)
        with file_access(folder, "cannot be written", then=THEN):
            run = self._begin_chain(reading.run)
            write_run_document(folder, run)
        if reading.inspection.damage is not None:
            self._note_damage(reading.inspection.damage, good)

    @property
    def record(self) -> RunRecord:
        """The run as its entries describe it."""
        return self._fold.record()

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: RunIdentity,
        spec: Mapping[str, Any],
        origins: Mapping[str, str],
    ) -> Self:
        """Creates an attempt's folder and opens its ledger.

        Files are written atomically, so a kill leaves no incomplete run.

        Raises:
            RunError: the folder cannot be written, or contains a run already.
        """
        path = folder / LEDGER
        with file_access(folder, "cannot be written", then=THEN):
            (folder / "artifacts").mkdir(parents=True, exist_ok=True)
            if contains_run(folder):
                raise RunError(
                    f"{folder}: it already contains a run, which was not changed: apply "
                    "again, or start another attempt with --fresh"
                )
            run = run_document(identity, spec, origins)
            write_atomically(path, Chain(lambda kind: False).head_line(now(), "run", run))
            write_run_document(folder, run)
            for above in (folder.parent, folder.parent.parent, folder.parent.parent.parent):
                sync_folder(above)
        return cls(folder)

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one entry with the current time, and waits until it is on the disk.

        Raises:
            RunError: the entry could not be written; the ledger then contains no part of it.
        """
        self._fold.see(self._file.append(kind, fields))

    def follow(self, step: str, facts: StepFold) -> None:
        """Includes what is appended to a step's own ledger from now on in `record`."""
        self._fold.follow(step, facts)

    def _begin_chain(self, run: Mapping[str, Any]) -> Mapping[str, Any]:
        """Begins the chain of checksums in a ledger that has none. Returns the run document."""
        chain = self._file.chain
        if chain.head is not None:
            return dict(chain.head["run"])
        run = {**run, "version": VERSION}
        self._file.write(chain.head_line(now(), "run", run))
        return run

    def _note_damage(self, damage: Damage, good: int) -> None:
        """Records the damage in the ledger, and that the end delivered to MLflow is not valid."""
        self._fold.damage = None
        ids = read_delivered(self.folder)
        if ids.pop("ending", None):
            with file_access(self.folder, "cannot be written", then=THEN):
                mark_delivered(self.folder, ids)
        self.append("damaged", **self._file.damage_found(damage))
        going_on = f"the run continues after line {good}" if good else "the run starts again"
        self.repaired = f"{self.folder}/{self._fold.repairs[-1]}; {going_on}"


class StepJournal(_Open):
    """Appends what a step measures to its ledger. The step's lock must be held."""

    def __init__(self, folder: Path) -> None:
        """Opens the ledger of an attempt; a damaged one is kept and continued from its intact part.

        Raises:
            RunError: the step's files cannot be read, written or repaired.
        """
        self.facts, inspection = inspect_step(folder)
        self.repaired: str | None = None
        """The damage found on opening, in one line; None for an intact ledger."""
        self._file = LedgerFile(folder, inspection)
        if inspection.damage is not None:
            self._note_damage(inspection)

    @classmethod
    def create(cls, folder: Path, document: Mapping[str, Any]) -> Self:
        """Creates an attempt's folder and opens its ledger.

        Args:
            folder: The attempt's folder.
            document: What identifies the step: `key`, `strategy`, `version`, and `made_of`, the
                data that the key is a digest of.

        Raises:
            RunError: the folder cannot be written.
        """
        with file_access(folder, "cannot be written", then=THEN):
            folder.mkdir(parents=True, exist_ok=True)
            line = Chain(lambda kind: False).head_line(now(), "step", document)
            write_atomically(folder / LEDGER, line)
            for above in (folder.parent, folder.parent.parent, folder.parent.parent.parent):
                sync_folder(above)
        return cls(folder)

    def begin(self, run: RunIdentity, at: int | None = None) -> None:
        """Begins a session of work for a run.

        Args:
            run: The run.
            at: When it began, in milliseconds since the epoch; None for now.
        """
        self._append("session", at, run=worker_of(run))

    def use(self, model: ModelRecord) -> None:
        """Stores what is known of the model, when the work begins and, with its peak memory, when
        it ends."""
        self._append("model", None, model=asdict(model))

    def add(self, event: Batch | Measured, at: int | None = None) -> None:
        """Stores a batch or a metric; `at` as for `begin`."""
        if isinstance(event, Batch):
            self._append("batch", at, **batch_to_json(event, verdicts=False))
        else:
            self._append("measured", at, **asdict(event))

    def finish(self, extent: Extent, at: int | None = None) -> None:
        """Marks the step as finished for runs with this extent; `at` as for `begin`."""
        count = len(within(self.facts.batches, extent))
        self._append("step_done", at, extent=extent, batches=count)

    def _append(self, kind: str, at: int | None, **fields: Any) -> None:
        when = {} if at is None else {"at": at}
        self.facts.see(self._file.append(kind, when | fields))

    def _note_damage(self, inspection: Inspection) -> None:
        damage, good = inspection.damage, inspection.chain.lines
        assert damage is not None
        if inspection.chain.head is None:
            document = {"key": self.facts.folder.parent.name, "strategy": "", "made_of": {}}
            self._file.write(self._file.chain.head_line(now(), "step", document))
        self.facts.damage = None
        self._append("damaged", None, **self._file.damage_found(damage))
        going_on = f"the step continues after line {good}" if good else "the step starts again"
        self.repaired = f"{self.facts.folder}/{self.facts.repairs[-1]}; {going_on}"
