"""Appends to the ledger of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from glitchrun.errors import file_access
from glitchrun.events import Batch, Measured
from glitchrun.events_json import batch_to_json
from glitchrun.ledger.checksums import Chain, Inspection
from glitchrun.ledger.files import LEDGER, now, sync_folder, write_atomically
from glitchrun.ledger.ledger_file import THEN, LedgerFile
from glitchrun.ledger.record import ModelRecord, RunIdentity
from glitchrun.ledger.step_fold import Extent, within, worker_of
from glitchrun.ledger.step_store import inspect_step


class StepJournal:
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
        damage, good, kept = inspection.damage, inspection.chain.lines, self._file.kept
        assert damage is not None
        if inspection.chain.head is None:
            document = {"key": self.facts.folder.parent.name, "strategy": "", "made_of": {}}
            self._file.write(self._file.chain.head_line(now(), "step", document))
        self.facts.damage = None
        what = f"{LEDGER}:{damage.line}: {damage.what}"
        self._append("damaged", None, line=damage.line, what=what, kept=kept.name if kept else None)
        going_on = f"the step continues after line {good}" if good else "the step starts again"
        self.repaired = f"{self.facts.folder}/{self.facts.repairs[-1]}; {going_on}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
