"""The store of steps: what each step measured, once for all runs under a tracking root.

ROOT/steps/KEY/                     one folder for all attempts with the same step key
    lock, owner.json                the lock of the process that works on the step
    attempt-1/                      `--fresh` and `--redo` start the next one
        ledger.jsonl                append-only, see checksums.py

A step key is a digest of everything that can change what the step measures (`plan/step_keys.py`).
The first line of a ledger lists the parts of its key. A run refers to the attempts that it uses,
and judges their facts by its own thresholds.

An open-ended search has an *extent*: the number of verifications after which a run ends it. Runs
with different extents share the ledger. Each reads the verifications up to its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.checksums import (
    HEAD_LINE,
    Chain,
    Damage,
    Inspection,
    NewerLedger,
    described,
    inspect,
    intact_lines,
    newer_format,
)
from glitchrun.ledger.files import LEDGER, open_regular
from glitchrun.ledger.step_fold import Extent, StepFold, is_known_kind, readable

STEPS = "steps"
"""The folder of all steps in a tracking root."""
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})")


def step_folder(root: Path, key: str) -> Path:
    """The folder of all attempts at a step."""
    return root / STEPS / key


def attempt_folder(root: Path, key: str, attempt: int) -> Path:
    """The folder of one attempt at a step."""
    return step_folder(root, key) / f"attempt-{attempt}"


def attempts(root: Path, key: str) -> list[int]:
    """The numbers of the attempts at a step, ascending.

    Raises:
        RunError: the folder cannot be read.
    """
    folder = step_folder(root, key)
    with file_access(folder):
        paths = list(folder.iterdir()) if folder.is_dir() else []
        names = [path.name for path in paths if (path / LEDGER).exists()]
    return sorted(int(found[1]) for name in names if (found := _ATTEMPT.fullmatch(name)))


def current_step(root: Path, key: str, extent: Extent) -> StepFold | None:
    """The attempt that a run uses: the newest finished one, else the newest that can be read.

    Raises:
        RunError: no attempt can be read.
    """
    newest, failure = None, None
    for number in reversed(attempts(root, key)):
        try:
            found = read_step(attempt_folder(root, key, number))
        except RunError as error:
            failure = failure or error
            continue
        if found.finished(extent) and not found.damage:
            return found
        newest = newest or found
    if newest is None and failure is not None:
        raise failure
    return newest


def stored_steps(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The folder of every attempt at a step, and the parts of its step key, newest first.

    Ledgers without a readable first line are left out, as are those that are removed meanwhile.

    Raises:
        RunError: the store cannot be read.
    """
    with file_access(root / STEPS):
        ledgers = [*root.glob(f"{STEPS}/*/*/{LEDGER}")]
    dated = []
    for path in ledgers:
        with suppress(OSError):
            dated.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(dated, reverse=True):
        if not _ATTEMPT.fullmatch(path.parent.name):
            continue
        with suppress(OSError, NewerLedger), open_regular(path) as file:
            first = file.readline()
            if first.startswith(HEAD_LINE) and Chain(is_known_kind).objection(first) is None:
                head = json.loads(first)
                if "step" in head:
                    yield path.parent, head["step"]


@dataclass(frozen=True, slots=True)
class StepStatus:
    """What the store has of a step."""

    state: Literal["finished", "partial", "damaged"]
    attempt: int
    origin: str
    """The run for which it was measured first, as `EXPERIMENT · NAME KEY#N`."""


def step_status(
    root: Path, key: str, extent: Extent, attempt: int | None = None
) -> StepStatus | None:
    """What the store has of a step; None if nothing.

    Args:
        root: Tracking root.
        key: The step key.
        extent: The extent that a run needs.
        attempt: The attempt that a run uses already; None for the one that it would use.

    Raises:
        RunError: the step's files cannot be read.
    """
    if attempt is not None and attempt in attempts(root, key):
        found: StepFold | None = read_step(attempt_folder(root, key, attempt))
    else:
        found = current_step(root, key, extent)
    if found is None:
        return None
    state: Literal["finished", "partial", "damaged"] = "partial"
    if found.damage:
        state = "damaged"
    elif found.finished(extent):
        state = "finished"
    return StepStatus(state, found.attempt, found.origin)


def read_step(folder: Path) -> StepFold:
    """What an attempt at a step measured. A damaged ledger gives its intact part.

    Runs share steps, so the last ones read are kept until their ledger changes.

    Raises:
        RunError: the folder contains no step, files that cannot be read, or files that a newer
            glitchrun wrote.
    """
    try:
        found = (folder / LEDGER).stat()
    except OSError:
        return inspect_step(folder)[0]
    return _read_unchanged(folder, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_unchanged(folder: Path, *state: int) -> StepFold:
    return inspect_step(folder)[0]


def is_intact(folder: Path, extent: Extent, *, done: bool) -> bool:
    """Whether the ledger of an attempt at a step is there and undamaged. Its facts are read only if
    the step has no end at this very extent.

    Args:
        folder: The attempt's folder.
        extent: The extent of a run that uses it.
        done: Whether that run has recorded the end of the step, which the ledger must then contain.

    Raises:
        RunError: the ledger cannot be read, or a newer glitchrun wrote it.
    """
    path = folder / LEDGER
    if not path.exists():
        return False
    with file_access(path), newer_format(path):
        inspection = inspect(path, is_known_kind)
    if inspection.damage is not None or inspection.chain.head is None:
        return False
    if not done:
        return True
    lines = (line for _, line in intact_lines(path, inspection.good_bytes))
    ends = (json.loads(line) for line in lines if line.startswith(b'{"kind":"step_done"'))
    return any(end["extent"] == extent for end in ends) or read_step(folder).finished(extent)


def inspect_step(folder: Path) -> tuple[StepFold, Inspection]:
    """What an attempt at a step measured, and how much of its ledger is intact.

    Raises:
        RunError: see `read_step`.
    """
    path = folder / LEDGER
    if not path.exists():
        raise RunError(f"{folder}: the facts of this step are missing; restore the folder")
    with file_access(path), newer_format(path):
        inspection = inspect(path, is_known_kind)
    fold = StepFold(folder)
    if inspection.chain.head is None and inspection.damage is None:
        missing = Damage(1, "the beginning of the ledger, or all of it, is missing")
        inspection = Inspection(inspection.chain, 0, missing)
    for number, line in intact_lines(path, inspection.good_bytes):
        with readable(path, number):
            fold.see_line(line)
    if inspection.damage is not None:
        fold.damage = described(path, inspection, inspection.damage)
    return fold, inspection
