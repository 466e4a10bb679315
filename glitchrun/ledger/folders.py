"""Where runs live under the tracking root."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from glitchrun.errors import RunError, RunLocked
from glitchrun.ledger.journal import Journal
from glitchrun.ledger.lock import hold, is_held
from glitchrun.ledger.read import read_run, read_status
from glitchrun.ledger.record import RunRecord


def run_folder(root: Path, experiment: str, key: str) -> Path:
    """The folder of all attempts with one key. Experiment names may hold any character."""
    return root / "runs" / _slug(experiment) / key


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "experiment"


def latest_attempt(folder: Path) -> int:
    """Number of the newest attempt in a run's folder; 0 where there is none."""
    numbers = [int(path.name.removeprefix("attempt-")) for path in _attempts(folder)]
    return max(numbers, default=0)


def _attempts(folder: Path) -> Iterator[Path]:
    # A folder without run.json is one whose creation was cut short: it holds nothing.
    return (path.parent for path in folder.glob("attempt-*/run.json"))


def existing_status(root: Path, experiment: str, key: str) -> str | None:
    """Status of the newest attempt: FINISHED, FAILED, KILLED, RUNNING; None where there is none.

    A run that claims to be running while nobody holds its lock was killed, and is reported so.
    """
    folder = run_folder(root, experiment, key)
    number = latest_attempt(folder)
    if not number:
        return None
    status = read_status(folder / f"attempt-{number}")
    return "KILLED" if status == "RUNNING" and not is_held(folder) else status


def find_runs(
    root: Path, damaged: Callable[[RunError], None] = lambda error: None
) -> list[RunRecord]:
    """Every attempt of every run under the root, oldest first.

    `damaged` is told of those that cannot be read: one of them must not hide the others.
    """
    found = []
    for path in root.glob("runs/*/*/attempt-*/run.json"):
        try:
            found.append(read_run(path.parent))
        except RunError as error:
            damaged(error)
    return sorted(found, key=lambda run: run.started_at)


def settle(root: Path) -> list[RunRecord]:
    """Marks runs KILLED that claim to be running while their process is dead; returns them."""
    settled = []
    for record in find_runs(root):
        folder = record.folder.parent
        if record.status == "RUNNING" and not is_held(folder):
            with suppress(RunLocked), hold(folder), Journal(record.folder) as journal:
                if journal.record.status == "RUNNING":  # it may have ended since it was read
                    journal.append("ended", status="KILLED", error="the process executing it died")
                    settled.append(journal.record)
    return settled
