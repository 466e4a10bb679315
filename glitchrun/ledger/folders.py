"""Finds the folders of runs and attempts under the tracking root."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from glitchrun.errors import GlitchrunError, RunError, RunLocked, file_access
from glitchrun.ledger.files import read_text, write_atomically
from glitchrun.ledger.fold import DAMAGED
from glitchrun.ledger.identity import IdentityLost, contains_run
from glitchrun.ledger.journal import Journal
from glitchrun.ledger.lock import hold, is_held
from glitchrun.ledger.read import read_identity, read_run, read_status
from glitchrun.ledger.record import RunIdentity, RunRecord

ROOT = Path("mlruns")
"""The default tracking root, in the working directory."""
_CELLS = "cells.json"
STUDIES = "studies"
"""The folder of all studies under the tracking root; each has one named by its key."""
_LONGEST = 100
"""Largest number of bytes of an experiment's name in its folder's name; file systems allow 255 in
total."""
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})")

Unreadable = Callable[[GlitchrunError], None]


def run_folder(root: Path, experiment: str, key: str) -> Path:
    """The folder of all attempts with one key.

    The experiment's name becomes the name of its folder if it is a valid folder name and no other
    experiment has runs in that folder. Otherwise the folder's name is a prefix of the experiment's
    name and a digest. Folders that earlier versions named without a digest are still found.

    Raises:
        RunError: a folder cannot be read.
    """
    slug = re.sub(r"[^\w.-]+", "-", experiment).strip(".-") or "experiment"
    digest = hashlib.blake2b(experiment.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    plain = root / "runs" / slug / key
    owner = _experiment_in(plain)
    if owner == experiment or (owner is None and slug == experiment and _size(slug) <= _LONGEST):
        return plain
    return root / "runs" / f"{_cut(slug)}-{digest}" / key


def _size(name: str) -> int:
    return len(name.encode(errors="surrogatepass"))


def _cut(slug: str) -> str:
    """The longest prefix of whole characters in at most `_LONGEST` bytes."""
    return slug.encode(errors="replace")[:_LONGEST].decode(errors="ignore")


def _experiment_in(folder: Path) -> str | None:
    """The experiment of the runs in a folder; None if no run in it can be read."""
    for attempt in _attempts(folder):
        with suppress(RunError):
            return read_identity(attempt).experiment
    return None


def latest_attempt(folder: Path) -> int:
    """The number of the newest attempt in a run's folder; 0 if there is none.

    Raises:
        RunError: the folder cannot be read.
    """
    return max(map(_number, _attempts(folder)), default=0)


def _number(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt-"))


def _attempts(folder: Path) -> Iterator[Path]:
    """The attempts in a run's folder.

    A folder whose creation was interrupted is empty and does not count; one that lost a file does.
    """
    for path in _children(folder):
        if _ATTEMPT.fullmatch(path.name) and _contains_run(path):
            yield path


def _contains_run(attempt: Path) -> bool:
    with file_access(attempt):
        return contains_run(attempt)


def _children(folder: Path) -> list[Path]:
    """The paths in a folder, sorted by name; empty if the folder does not exist.

    Raises:
        RunError: the folder cannot be listed.
    """
    with file_access(folder):
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            if exc.errno == errno.ENAMETOOLONG:  # the name by the earlier rule: never created
                return []
            raise


def current_attempt(root: Path, experiment: str, key: str) -> Path | None:
    """The attempt that decides what `plan` and `apply` do; None if there is none.

    It is the newest attempt, unless that failed and an earlier one finished, as after `--fresh`.
    Attempts of other experiments with the same key follow after the experiment's own, so that a
    renamed spec finds its runs under the former name.

    Raises:
        RunError: the experiment's own attempts cannot be read.
    """
    own = _current(run_folder(root, experiment, key))
    found = [own] if own else []
    for folder in sorted(root.glob(f"runs/*/{key}")):
        with suppress(RunError):  # under another name, an unreadable run does not count
            if attempt := _current(folder):
                found.append(attempt)
    return next((one for one in found if _status(one) == "FINISHED"), found[0] if found else None)


def _current(folder: Path) -> Path | None:
    """The attempt of one run's folder that decides; None if there is none."""
    newest_first = sorted(_attempts(folder), key=_number, reverse=True)
    if not newest_first or _status(newest_first[0]) != "FAILED":
        return next(iter(newest_first), None)
    return next((one for one in newest_first if _status(one) == "FINISHED"), newest_first[0])


def existing_status(root: Path, experiment: str, key: str) -> str | None:
    """The status of `current_attempt`: FINISHED, FAILED, KILLED, RUNNING or DAMAGED; None if there
    is no attempt.

    A run is reported as KILLED if its ledger says RUNNING and no process holds its lock.

    Raises:
        RunError: its files cannot be read.
    """
    attempt = current_attempt(root, experiment, key)
    return None if attempt is None else _status(attempt)


def _status(attempt: Path) -> str:
    try:
        status = read_status(attempt)
        _check_place(attempt, read_identity(attempt))
    except IdentityLost:  # the plan knows which run it is
        return DAMAGED
    return "KILLED" if status == "RUNNING" and not is_held(attempt.parent) else status


def _check_place(attempt: Path, identity: RunIdentity) -> None:
    """Raises RunError for a copy of another run's files.

    Its results must not count as those of the run whose folder they are in, nor be delivered as a
    run of their own.
    """
    own = (attempt.parent.name, _number(attempt))
    if own != (identity.key, identity.attempt):
        raise RunError(
            f"{attempt}: its files are of another run, {identity.key}#{identity.attempt} "
            f"({identity.experiment} · {identity.name}); move them out of the folder of runs, or "
            "put back those that were here"
        )


def find_runs(root: Path, unreadable: Unreadable = lambda error: None) -> list[RunRecord]:
    """Every attempt of every run under the root, oldest first.

    Calls `unreadable` with the error of each run that cannot be read, and continues. A run with a
    damaged ledger is included; its `damage` is set.
    """
    found = []
    for folder in _run_folders(root, unreadable):
        try:
            attempts = list(_attempts(folder))
        except RunError as error:
            unreadable(error)
            continue
        for attempt in attempts:
            try:
                record = read_run(attempt)
                _check_place(attempt, record.identity)
                found.append(record)
            except RunError as error:
                unreadable(error)
    return sorted(found, key=lambda run: run.started_at)


def study_folder(root: Path, parent: str) -> Path:
    """The folder of the report of a study.

    Args:
        root: Tracking root.
        parent: The key of the study.
    """
    return root / STUDIES / parent


def study_cells(folder: Path) -> list[str]:
    """The keys of the runs of a study: those that `note_study` noted, or else those in its report;
    empty without either."""
    return [*(_cells_in(folder / _CELLS) or reported_cells(folder))]


def reported_cells(folder: Path) -> dict[str, str]:
    """The names of the runs in the report of a study, by their keys; empty without a readable
    report."""
    return _cells_in(folder / "study.json")


def _cells_in(path: Path) -> dict[str, str]:
    try:
        found = json.loads(read_text(path))
        return {str(cell["key"]): str(cell.get("name", "")) for cell in found["cells"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # there is none, or it is not one of ours


def note_study(folder: Path, keys: Sequence[str]) -> None:
    """Notes which runs a study consists of, before they are executed.

    Args:
        folder: The folder of the study; it is created.
        keys: The keys of its runs.

    Raises:
        RunError: the file cannot be written.
    """
    if study_cells(folder) == [*keys]:
        return
    with file_access(folder, "cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"cells": [{"key": key} for key in keys]}, indent=1)
        write_atomically(folder / _CELLS, f"{text}\n")


def identities(root: Path) -> Iterator[tuple[Path, RunIdentity]]:
    """The folder and the identity of every attempt that can be read, those of a run in order."""
    for folder in _run_folders(root, lambda error: None):
        with suppress(RunError):
            for attempt in sorted(_attempts(folder), key=_number):
                yield attempt, read_identity(attempt)


def unreadable_lines(errors: Sequence[GlitchrunError]) -> list[str]:
    """The message about runs that could not be read: how many, and why."""
    if not errors:
        return []
    if len(errors) == 1:
        return [f"1 run could not be read: {errors[0]}"]
    return [f"{len(errors)} runs could not be read:", *(f"  {error}" for error in errors)]


def _run_folders(root: Path, unreadable: Unreadable) -> Iterator[Path]:
    try:
        experiments = _children(root / "runs")
    except RunError as error:
        unreadable(error)
        return
    for experiment in experiments:
        try:
            yield from _children(experiment)
        except RunError as error:
            unreadable(error)


def mark_killed(root: Path, unreadable: Unreadable = lambda error: None) -> list[RunRecord]:
    """Marks runs KILLED that are RUNNING in their ledger but whose process is dead; returns them.

    Calls `unreadable` with the error of each run that cannot be read or written. Damaged runs stay
    unchanged until they are resumed.
    """
    killed = []
    for record in find_runs(root, unreadable):
        try:
            if record.status == "RUNNING" and not is_held(record.folder.parent):
                killed += _mark_killed(record.folder)
        except GlitchrunError as error:
            unreadable(error)
    return killed


def _mark_killed(folder: Path) -> list[RunRecord]:
    with suppress(RunLocked), hold(folder.parent), Journal(folder) as journal:
        if journal.record.status == "RUNNING":  # it may have ended in the meantime
            journal.append("ended", status="KILLED", error="the process executing it died")
            return [journal.record]
    return []
