"""Appends lines to a ledger. Each line is on the disk before `append` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from glitchrun.errors import file_access
from glitchrun.ledger.checksums import Chain, Inspection
from glitchrun.ledger.files import LEDGER, now, set_aside

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
            except OSError:
                with suppress(OSError):  # or the next entry would follow half a line
                    os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(line)
        self.chain.add(line)

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
