"""From a run's folder to its RunRecord, and how much of its ledger is intact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.checksums import (
    HEAD_LINE,
    SEALED,
    Chain,
    Damage,
    Inspection,
    described,
    inspect,
    intact_lines,
    newer_format,
)
from glitchrun.ledger.files import LEDGER
from glitchrun.ledger.fold import DAMAGED, Fold, is_known_kind
from glitchrun.ledger.identity import (
    INVALID_FIELD,
    consistent_files,
    parse_identity,
    parse_time,
    read_delivered,
    read_run_document,
    with_study,
)
from glitchrun.ledger.record import RunIdentity, RunRecord, ending
from glitchrun.ledger.step_fold import Extent
from glitchrun.ledger.step_store import attempt_folder, is_intact


def read_run(folder: Path) -> RunRecord:
    """The run in an attempt's folder. A damaged ledger gives the run of its intact part.

    Raises:
        RunError: the folder contains no run, files that cannot be read, files that a newer
            glitchrun wrote, or a run.json that another program changed.
    """
    reading = read_fold(folder)
    with consistent_files(folder):
        return reading.fold.record()


def read_identity(folder: Path) -> RunIdentity:
    """The identity of the run in an attempt's folder.

    Raises:
        RunError: its files do not identify it, or cannot be read.
    """
    path = folder / LEDGER
    with consistent_files(folder):
        first = next((line for _, line in intact_lines(path, 1)), b"") if path.exists() else b""
        head = Chain(is_known_kind)
        if first.startswith(HEAD_LINE) and head.objection(first) is None:
            found = json.loads(first)["run"]["identity"]
        else:
            found = read_run_document(folder)["identity"]
        return with_study(parse_identity(found), folder)


def read_status(folder: Path) -> str:
    """The last status in a run's ledger, without reading its batches into memory.

    Raises:
        RunError: see `read_run`.
    """
    path = folder / LEDGER
    with file_access(path), newer_format(path):
        inspection = inspect(path, is_known_kind)
    head = inspection.chain.head
    if inspection.damage is not None:
        return DAMAGED
    if head is None or head["seq"] != 1:  # lines without checksums are judged by their fields
        return read_run(folder).status
    status, endings = "RUNNING", set()
    used: dict[str, tuple[Path, Extent]] = {}
    done: set[str] = set()
    for _, line in intact_lines(path, inspection.good_bytes):
        if line.startswith(b'{"kind":"session"'):
            status = "RUNNING"
        elif line.startswith((b'{"kind":"uses"', b'{"kind":"step_done"')):
            entry = json.loads(line)
            if entry["kind"] == "step_done":
                done.add(entry["step"])
                continue
            step = attempt_folder(folder.parents[3], entry["key"], entry["attempt"])
            used[entry["step"]] = (step, entry["extent"])
            done.discard(entry["step"])
        elif line.startswith(b'{"kind":"ended"'):
            entry = json.loads(line)
            status = entry["status"]
            endings.add(ending(entry["status"], entry["at"]))
    if not all(is_intact(*step, done=name in done) for name, step in used.items()):
        return DAMAGED
    return DAMAGED if _missing_end(folder, inspection, endings) else status


@dataclass(frozen=True, slots=True)
class Reading:
    """A run's folder as read: the state of the run, and how much of its ledger is intact."""

    fold: Fold
    inspection: Inspection
    run: Mapping[str, Any]
    """The run document: `identity`, `spec`, `origins`, `created_at`, and the ledger's `version`."""


def read_fold(folder: Path, fallback: Mapping[str, Any] | None = None) -> Reading:
    """The state of a run, to which further entries can be added.

    Args:
        folder: An attempt's folder.
        fallback: The run document to use if the folder's files do not contain one any more.

    Raises:
        RunError: see `read_run`.
    """
    path = folder / LEDGER
    with file_access(path), newer_format(path):
        inspection = inspect(path, is_known_kind)
    head = inspection.chain.head
    run = head["run"] if head else read_run_document(folder, fallback)
    if head is None and inspection.damage is None and run.get("version", 1) >= SEALED:
        missing = Damage(1, "the beginning of the ledger, or all of it, is missing")
        inspection = Inspection(inspection.chain, 0, missing)
    while True:
        with consistent_files(folder):
            fold = Fold(
                folder,
                parse_identity(run["identity"]),
                run["spec"],
                run.get("origins", {}),
                parse_time(run["created_at"]),
            )
        invalid = _fold_lines(fold, path, inspection)
        if invalid is None:
            break
        inspection = inspect(path, is_known_kind, invalid)
    damage = inspection.damage or _missing_end(folder, inspection, fold.endings)
    if damage is not None:
        inspection = Inspection(inspection.chain, inspection.good_bytes, damage)
        fold.damage = described(path, inspection, damage)
    return Reading(fold, inspection, run)


def _fold_lines(fold: Fold, path: Path, inspection: Inspection) -> Damage | None:
    """Adds the intact lines. Returns the first line without a checksum that is no valid entry.

    Raises:
        RunError: this version cannot read an entry whose checksum is correct.
    """
    head = inspection.chain.head
    sealed_from = head["seq"] if head else inspection.chain.lines + 1
    for number, line in intact_lines(path, inspection.good_bytes):
        is_sealed = number >= sealed_from
        try:
            fold.see(json.loads(line), is_sealed=is_sealed)
        except INVALID_FIELD as exc:
            what = f"({type(exc).__name__}: {exc})"
            if is_sealed:
                raise RunError(
                    f"{path}:{number}: this version cannot read this entry {what}; a newer one has "
                    "written it: update glitchrun"
                ) from exc
            return Damage(number, f"not a ledger entry {what}")
    return None


def _missing_end(folder: Path, inspection: Inspection, endings: set[str]) -> Damage | None:
    """The damage if MLflow has an end of the run that the ledger lacks."""
    delivered = read_delivered(folder).get("ending")
    if delivered is None or delivered in endings:
        return None
    what = f"lines are missing at its end: MLflow has the run as {delivered.partition(' ')[0]}"
    return Damage(inspection.chain.lines + 1, what)
