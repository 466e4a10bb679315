"""Appends entries to a run's ledger. Each entry is on the disk before any reader sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.checksums import VERSION, Chain, Damage
from glitchrun.ledger.files import LEDGER, now, sync_folder, write_atomically
from glitchrun.ledger.identity import (
    contains_run,
    mark_delivered,
    read_delivered,
    run_document,
    write_run_document,
)
from glitchrun.ledger.ledger_file import THEN, LedgerFile
from glitchrun.ledger.read import read_fold
from glitchrun.ledger.record import RunIdentity, RunRecord
from glitchrun.ledger.step_fold import StepFold


class Journal:
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
            self._note_damage(reading.inspection.damage, good, self._file.kept)

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

    def _note_damage(self, damage: Damage, good: int, kept: Path | None) -> None:
        """Records the damage in the ledger, and that the end delivered to MLflow is not valid."""
        self._fold.damage = None
        ids = read_delivered(self.folder)
        if ids.pop("ending", None):
            with file_access(self.folder, "cannot be written", then=THEN):
                mark_delivered(self.folder, ids)
        what = f"{LEDGER}:{damage.line}: {damage.what}"
        self.append("damaged", line=damage.line, what=what, kept=kept.name if kept else None)
        going_on = f"the run continues after line {good}" if good else "the run starts again"
        self.repaired = f"{self.folder}/{self._fold.repairs[-1]}; {going_on}"

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
