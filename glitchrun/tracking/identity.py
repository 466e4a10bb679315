"""One ledger is one MLflow run: the ids by which runs are found again, across projects.

A run's key says what it computes. Two projects with the same spec share it, and a server that both
deliver to must tell their runs apart all the same.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path

from glitchrun.errors import TrackingUnavailable
from glitchrun.ledger import RunRecord
from glitchrun.ledger.files import IDENTITY, write_atomically
from glitchrun.ledger.lock import store_lock

PROJECT = ".project-id"
"""File under the tracking root; it moves with the project."""
_ID = re.compile(r"[0-9a-f]{32}")


def ledger_id(record: RunRecord, root: Path) -> str:
    """The id of a record's ledger, 32 hex digits.

    Ledgers of earlier versions have none of their own: theirs follows from the project, the folder
    in it and what `run.json` holds.

    Args:
        record: The run.
        root: Its tracking root.

    Raises:
        TrackingUnavailable: the project's id cannot be read or written.
    """
    if record.identity.ledger:
        return record.identity.ledger
    folder = record.folder.absolute()
    place = (
        folder.relative_to(root.absolute()) if folder.is_relative_to(root.absolute()) else folder
    )
    try:
        text = (folder / IDENTITY).read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise TrackingUnavailable(f"{exc.filename} cannot be read ({exc.strerror})") from exc
    return _digest(project_id(root), place.as_posix(), text)


def parent_id(key: str, root: Path) -> str:
    """The id of the run above the cells of one matrix, of this project alone.

    Raises:
        TrackingUnavailable: the project's id cannot be read or written.
    """
    return _digest(project_id(root), "parent", key)


def project_id(root: Path) -> str:
    """The id of a tracking root; it gets one where it has none.

    Raises:
        TrackingUnavailable: it cannot be read or written.
    """
    path = root / PROJECT
    try:
        with store_lock(root / f"{PROJECT}.lock"):
            if not path.exists():
                write_atomically(path, f"{uuid.uuid4().hex}\n")
            text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as exc:
        raise TrackingUnavailable(
            f"{path} cannot be read or written ({exc.strerror}); give yourself the right"
        ) from exc
    if not _ID.fullmatch(text):
        raise TrackingUnavailable(f"{path} holds no id; delete it: glitchrun makes a new one")
    return text


def _digest(*parts: str) -> str:
    whole = "\0".join(parts)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]
