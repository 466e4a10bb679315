"""Where runs live under the tracking root."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from glitchrun.errors import GlitchrunError, RunError, RunLocked, file_access
from glitchrun.ledger.journal import Journal, holds_run
from glitchrun.ledger.lock import hold, is_held
from glitchrun.ledger.read import DAMAGED, IdentityLost, read_identity, read_run, read_status
from glitchrun.ledger.record import RunIdentity, RunRecord

_LONGEST = 100
"""Bytes of an experiment's name in the name of its folder: file systems allow 255 in all."""
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})")

Unreadable = Callable[[GlitchrunError], None]


def run_folder(root: Path, experiment: str, key: str) -> Path:
    """The folder of all attempts with one key. Experiment names may hold any character.

    A name that is fit for a folder is its name; of any other, and of one whose folder holds runs of
    another experiment, a part and a digest are. Folders that were named by an earlier rule, without
    a digest, are found again.
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
    """The longest beginning that stays within `_LONGEST` bytes, whole characters."""
    return slug.encode(errors="replace")[:_LONGEST].decode(errors="ignore")


def _experiment_in(folder: Path) -> str | None:
    """The experiment whose runs a folder holds; None where it holds none that can be read."""
    for attempt in _attempts(folder):
        with suppress(RunError):
            return read_identity(attempt).experiment
    return None


def latest_attempt(folder: Path) -> int:
    """Number of the newest attempt in a run's folder; 0 where there is none."""
    return max(map(_number, _attempts(folder)), default=0)


def _number(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt-"))


def _attempts(folder: Path) -> Iterator[Path]:
    """The attempts in a run's folder. One whose creation was cut short holds nothing and is none;
    one that has lost a file is one."""
    for path in _inside(folder):
        if _ATTEMPT.fullmatch(path.name) and _holds_run(path):
            yield path


def _holds_run(attempt: Path) -> bool:
    with file_access(attempt):
        return holds_run(attempt)


def _inside(folder: Path) -> list[Path]:
    """What a folder holds, in the order of the names; nothing where there is no such folder.

    Raises:
        RunError: it cannot be looked into.
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
    """The attempt that a plan goes by: a finished one, unless a later one was only stopped.

    The experiment's own attempts come first, then those of others with the same key: a spec that
    was renamed finds what it did under its former name. An attempt that failed after one had
    finished, as with `--fresh`, does not hide that one.
    """
    own = _current(run_folder(root, experiment, key))
    found = [own] if own else []
    for folder in sorted(root.glob(f"runs/*/{key}")):
        with suppress(RunError):  # what cannot be read under another name is nothing to go by
            if attempt := _current(folder):
                found.append(attempt)
    return next((one for one in found if _status(one) == "FINISHED"), found[0] if found else None)


def _current(folder: Path) -> Path | None:
    """The attempt of one run's folder to go by; None where there is none."""
    newest_first = sorted(_attempts(folder), key=_number, reverse=True)
    if not newest_first or _status(newest_first[0]) != "FAILED":
        return next(iter(newest_first), None)
    return next((one for one in newest_first if _status(one) == "FINISHED"), newest_first[0])


def existing_status(root: Path, experiment: str, key: str) -> str | None:
    """Status of the attempt with this key to go by: FINISHED, FAILED, KILLED, RUNNING, DAMAGED;
    None where there is none. See `current_attempt`.

    A run that claims to be running while nobody holds its lock was killed, and is reported so.

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
    """Raises RunError for a copy of another run's files: what it holds must not be taken for the
    results of the run whose place it is in, nor be delivered as a run of its own."""
    own = (attempt.parent.name, _number(attempt))
    if own != (identity.key, identity.attempt):
        raise RunError(
            f"{attempt}: its files are of another run, {identity.key}#{identity.attempt} "
            f"({identity.experiment} · {identity.name}); move them out of the folder of runs, or "
            "put back those that were here"
        )


def find_runs(root: Path, unreadable: Unreadable = lambda error: None) -> list[RunRecord]:
    """Every attempt of every run under the root, oldest first.

    `unreadable` is told of those that cannot be read: one of them must not hide the others. A run
    whose ledger is damaged is among the runs, with `damage`.
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


def unreadable_lines(errors: Sequence[GlitchrunError]) -> list[str]:
    """What is said of runs that could not be read: how many they are, and why."""
    if not errors:
        return []
    if len(errors) == 1:
        return [f"1 run could not be read: {errors[0]}"]
    return [f"{len(errors)} runs could not be read:", *(f"  {error}" for error in errors)]


def _run_folders(root: Path, unreadable: Unreadable) -> Iterator[Path]:
    try:
        experiments = _inside(root / "runs")
    except RunError as error:
        unreadable(error)
        return
    for experiment in experiments:
        try:
            yield from _inside(experiment)
        except RunError as error:
            unreadable(error)


def settle(root: Path, unreadable: Unreadable = lambda error: None) -> list[RunRecord]:
    """Marks runs KILLED that claim to be running while their process is dead; returns them.

    `unreadable` is told of those that cannot be read or written. Damaged ones are left as they are
    until they are resumed.
    """
    settled = []
    for record in find_runs(root, unreadable):
        try:
            if record.status == "RUNNING" and not is_held(record.folder.parent):
                settled += _settled(record.folder)
        except GlitchrunError as error:
            unreadable(error)
    return settled


def _settled(folder: Path) -> list[RunRecord]:
    with suppress(RunLocked), hold(folder.parent), Journal(folder) as journal:
        if journal.record.status == "RUNNING":  # it may have ended since it was read
            journal.append("ended", status="KILLED", error="the process executing it died")
            return [journal.record]
    return []
