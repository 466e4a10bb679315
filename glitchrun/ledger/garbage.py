"""The steps in the store and the pages of studies that no run refers to, and the sizes and removal
of folders.

A folder is renamed before its files are removed, so a kill never leaves half a run or half a step
under its own name. `find_garbage` finds the remains, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from glitchrun.errors import GlitchrunError, RunError, RunLocked, file_access
from glitchrun.ledger.files import LEDGER, open_regular
from glitchrun.ledger.folders import STUDIES, find_runs, study_cells, unreadable_lines
from glitchrun.ledger.lock import hold, is_held
from glitchrun.ledger.record import RunRecord
from glitchrun.ledger.step_store import STEPS, attempt_folder, attempts

_REMOVED = ".removed-"
_STUDY = re.compile(r"[0-9a-f]{16}")
StepRef = tuple[str, int]
"""A step key and the number of an attempt."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """A folder that nothing refers to."""

    folder: Path
    size: int
    """Bytes."""
    what: str
    """Its contents in a few words."""
    is_held: bool = False
    """Whether a process works on the step, which then stays."""


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder. Those that cannot be read do not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118 - fast
    return total


def remove_folder(folder: Path) -> None:
    """Removes a folder with everything in it. Links in it are removed, not followed.

    Raises:
        RunError: it cannot be removed.
    """
    with file_access(folder, "cannot be removed"):
        if not folder.name.startswith(_REMOVED):
            names = (folder.with_name(f"{_REMOVED}{folder.name}-{place}") for place in count(1))
            folder = folder.rename(next(name for name in names if not os.path.lexists(name)))
        shutil.rmtree(folder)


def used_steps(record: RunRecord) -> set[StepRef]:
    """The steps in the store that a run refers to."""
    return {(step.key, step.attempt) for step in record.steps if step.key}


def used_only_by(record: RunRecord, runs: Sequence[RunRecord]) -> list[StepRef]:
    """The steps in the store that a run refers to and no other run does.

    Args:
        record: The run.
        runs: All runs; the run itself may be among them.
    """
    others = [used_steps(run) for run in runs if run.identity != record.identity]
    return sorted(used_steps(record).difference(*others))


def empty_studies(root: Path, runs: Sequence[RunRecord]) -> list[Path]:
    """The folders of studies of which no run is left.

    Args:
        root: Tracking root.
        runs: All runs.

    Raises:
        RunError: the folder of the studies cannot be read.
    """
    keys = {run.identity.key for run in runs}
    parents = {run.identity.parent for run in runs}
    with file_access(root / STUDIES):
        folders = sorted((root / STUDIES).iterdir()) if (root / STUDIES).is_dir() else []
    return [
        folder
        for folder in folders
        if _STUDY.fullmatch(folder.name)
        and folder.is_dir()
        and not folder.is_symlink()
        and folder.name not in parents
        and keys.isdisjoint(study_cells(folder))
    ]


def find_garbage(root: Path) -> list[Garbage]:
    """The attempts at steps and the pages of studies that no run refers to, and remains of earlier
    removals.

    Raises:
        RunError: a run or the store cannot be read. It may refer to any step.
    """
    unreadable: list[GlitchrunError] = []
    runs = find_runs(root, unreadable.append)
    unreadable += [RunError(f"damaged: {run.damage}") for run in runs if run.damage]
    if unreadable:
        lines = "\n".join(unreadable_lines(unreadable))
        raise RunError(
            "nothing was removed, because a run that cannot be read may refer to any step; "
            f"repair it with `glitchrun apply`, or remove it\n{lines}"
        )
    used = set().union(*map(used_steps, runs))
    planned = {key for run in runs if run.status == "RUNNING" for key in _planned(run)}
    found = [
        Garbage(folder, folder_size(folder), _described(folder), is_held(folder.parent))
        for key, attempt in _stored_steps(root)
        if (key, attempt) not in used and key not in planned
        for folder in [attempt_folder(root, key, attempt)]
    ]
    found += [
        Garbage(folder, folder_size(folder), "a study without runs")
        for folder in empty_studies(root, runs)
    ]
    places = ("runs/*/*", f"{STEPS}/*", STUDIES)
    remains = [path for place in places for path in root.glob(f"{place}/{_REMOVED}*")]
    what = "remains of an earlier removal"
    return [*found, *(Garbage(path, folder_size(path), what) for path in sorted(remains))]


def remove_garbage(root: Path, agreed: Sequence[Garbage]) -> list[Garbage]:
    """Removes folders that `find_garbage` found, unless they are in use again. Returns the removed
    ones.

    Raises:
        RunError: a run cannot be read, or a folder cannot be removed.
        MissingExtra: filelock is not installed.
    """
    wanted = {one.folder for one in agreed}
    removed = []
    for one in find_garbage(root):  # again: a run may have begun while the user was asked
        if one.folder in wanted and not one.is_held:
            # Only the runs of a study write to its folder, and it has none.
            is_study = one.folder.parent == root / STUDIES
            with suppress(RunLocked), nullcontext() if is_study else hold(one.folder.parent):
                remove_folder(one.folder)
                removed.append(one)
    return removed


def _stored_steps(root: Path) -> Iterator[StepRef]:
    with file_access(root / STEPS):
        keys = sorted(path.name for path in (root / STEPS).iterdir()) if _has_steps(root) else []
    for key in keys:
        for attempt in attempts(root, key):
            yield key, attempt


def _has_steps(root: Path) -> bool:
    return (root / STEPS).is_dir()


def _planned(run: RunRecord) -> set[str]:
    """The keys of all steps of a run, also those that it has not come to."""
    return {str(step.get("key")) for step in run.plan.get("steps") or ()}


def _described(folder: Path) -> str:
    """The strategy of a step and the run that measured it first, without reading its facts."""
    strategy = origin = ""
    with suppress(OSError, ValueError, KeyError, TypeError), open_regular(folder / LEDGER) as file:
        strategy = str(json.loads(file.readline())["step"]["strategy"])
        run = json.loads(file.readline())["run"]
        origin = " · ".join(dict.fromkeys((run["experiment"], run["name"])))
    return f"{strategy or 'unknown'} of {origin}" if origin else strategy or "unknown"
