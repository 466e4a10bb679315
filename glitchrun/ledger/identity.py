"""run.json, cell.json, delivered.json and tags.json: which run a folder contains, the study that it
was added to later, where MLflow has it, and the tags that people set after it began.

The first line of a ledger repeats run.json, so either file can restore the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, get_origin, get_type_hints

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.checksums import VERSION, NewerLedger
from glitchrun.ledger.files import (
    CELL,
    DELIVERED,
    IDENTITY,
    LEDGER,
    TAGS,
    now,
    read_text,
    write_atomically,
)
from glitchrun.ledger.record import RunIdentity

INVALID_FIELD = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""Exceptions raised by reading a document whose fields are missing or of another type."""
_CELL_FIELDS = ("parent", "name", "assignments")
_LAST_MOMENT = 32_503_680_000_000
"""Milliseconds to the year 3000."""


class IdentityLost(RunError):
    """Neither run.json nor the ledger identifies the run in a folder."""


def run_document(
    identity: RunIdentity, spec: Mapping[str, Any], origins: Mapping[str, str]
) -> dict[str, Any]:
    """The document that run.json and the first line of the ledger contain."""
    return {
        "version": VERSION,
        "identity": asdict(identity),
        "spec": spec,
        "origins": dict(origins),
        "created_at": now(),
    }


def write_run_document(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes run.json unless it has this content already.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(run, ensure_ascii=False, indent=1) + "\n"
    try:
        same = read_text(folder / IDENTITY) == text
    except (OSError, ValueError):
        same = False
    if not same:
        write_atomically(folder / IDENTITY, text)


def read_run_document(folder: Path, fallback: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The content of run.json; `fallback` if the file is missing or invalid.

    Raises:
        IdentityLost: run.json is missing or invalid, and there is no fallback.
        RunError: a newer glitchrun wrote it, or it cannot be read.
    """
    path = folder / IDENTITY
    try:
        data = _load_run_document(path)
    except (ValueError, RecursionError) as exc:
        if fallback is not None:
            return _with_delivered_id(fallback, folder)
        raise IdentityLost(
            f"{path}: it does not identify the run ({exc}); restore it, or apply the run's "
            "spec again, which rewrites it"
        ) from exc
    version = data.get("version", 1)
    if isinstance(version, int) and version > VERSION:
        raise RunError(f"{path}: {NewerLedger(version)}")
    return data


def _load_run_document(path: Path) -> dict[str, Any]:
    with file_access(path):
        data = json.loads(read_text(path)) if path.exists() else None
    if not isinstance(data, dict):
        raise ValueError("it is missing" if data is None else "it contains no JSON object")
    if absent := {"identity", "spec", "created_at"} - data.keys():
        raise ValueError(f"it has no {min(absent)!r}")
    return data


def _with_delivered_id(run: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """`run` with the ledger id noted at delivery, by which its MLflow run is found again."""
    noted = read_delivered(folder).get("ledger")
    return {**run, "identity": {**run["identity"], "ledger": noted}} if noted else run


def parse_identity(fields: Mapping[str, Any]) -> RunIdentity:
    """The identity in a run document.

    Raises:
        TypeError: a field is missing, unknown or of another type.
    """
    identity = RunIdentity(**fields)
    for name, kind in get_type_hints(RunIdentity).items():
        value = getattr(identity, name)
        if not isinstance(value, kind if isinstance(kind, UnionType) else get_origin(kind) or kind):
            raise TypeError(f"{name} is {value!r:.40}")
    return identity


def add_to_study(
    folder: Path,
    identity: RunIdentity,
    parent: str,
    name: str,
    assignments: Mapping[str, Any],
    spec_path: str,
) -> None:
    """Makes a run a cell of another study. The ledger stays as it is.

    Args:
        folder: The attempt's folder.
        identity: The run's identity so far.
        parent: The key of the study.
        name: The name of the cell.
        assignments: Its values by axis.
        spec_path: The file of the study's spec.

    Raises:
        OSError: a file cannot be written.
    """
    former = [*dict.fromkeys([*former_names(folder), identity.name])]
    cell = {"parent": parent, "name": name, "assignments": assignments, "former": former}
    cell["spec_path"] = spec_path
    if ids := read_delivered(folder):
        mark_delivered(folder, {"study": identity.parent or "", "cell": identity.name, **ids})
    write_atomically(folder / CELL, json.dumps(cell, ensure_ascii=False, indent=1) + "\n")


def with_study(identity: RunIdentity, folder: Path) -> RunIdentity:
    """The identity with the study that the run in this folder was added to, if there is one. An
    invalid file counts as missing: the next `apply` of the study writes it again."""
    cell = _read_object(folder / CELL)
    if not cell:
        return identity
    try:
        fields = {**asdict(identity), **{name: cell[name] for name in _CELL_FIELDS}}
        return parse_identity(fields)
    except (KeyError, TypeError):
        return identity


def study_spec(folder: Path) -> str | None:
    """The file of the spec of the study that the run in this folder was added to; None for a run
    that was added to none."""
    found = _read_object(folder / CELL).get("spec_path")
    return found if isinstance(found, str) else None


def former_names(folder: Path) -> list[str]:
    """The names that the run in this folder had before it was added to its study."""
    found = _read_object(folder / CELL).get("former")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def parse_time(at: Any) -> int:
    """`at`, if it is a time in milliseconds since the epoch that a calendar can show.

    Raises:
        ValueError: it is anything else.
    """
    if type(at) is not int or not 0 <= at < _LAST_MOMENT:
        raise ValueError(f"no time: {at!r:.40}")
    return at


@contextmanager
def consistent_files(folder: Path) -> Iterator[None]:
    """Reports a missing or invalid field of run.json as files that do not fit together.

    Raises:
        RunError: the block raised one of `INVALID_FIELD`.
    """
    try:
        yield
    except INVALID_FIELD as exc:
        raise RunError(
            f"{folder}: its files do not fit together ({type(exc).__name__}: {exc}); they were "
            "changed by something other than glitchrun: restore them or start anew with --fresh"
        ) from exc


def contains_run(folder: Path) -> bool:
    """Whether an attempt's folder has a run.json or a ledger that is not empty."""
    ledger = folder / LEDGER
    return (folder / IDENTITY).exists() or (ledger.exists() and ledger.stat().st_size > 0)


def mark_delivered(folder: Path, ids: Mapping[str, str]) -> None:
    """Records the ids under which MLflow has this run.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(folder / DELIVERED, json.dumps(dict(ids)) + "\n")


def read_delivered(folder: Path) -> dict[str, str]:
    """The ids that `mark_delivered` recorded.

    Empty if the file is missing or invalid: the next delivery finds the MLflow run again.
    """
    data = _read_object(folder / DELIVERED)
    return {name: text for name, text in data.items() if isinstance(text, str)}


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or invalid."""
    try:
        data = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def read_tags(folder: Path) -> dict[str, str]:
    """The tags in an attempt's folder; an empty text means that the tag was removed.

    Empty if the file is missing or invalid; `change_tags` reports an invalid one.
    """
    try:
        return _load(folder / TAGS)
    except (OSError, ValueError, RecursionError):
        return {}


def change_tags(folder: Path, changes: Mapping[str, str]) -> None:
    """Sets tags of the run in an attempt's folder; those with an empty text are removed.

    Raises:
        RunError: the tags cannot be read or written.
    """
    path = folder / TAGS
    with file_access(path, "the tags cannot be changed"), _locked(folder):
        try:
            before = _load(path)
        except (ValueError, RecursionError) as exc:
            raise RunError(f"{path}: it contains no tags ({exc}); remove or restore it") from exc
        text = json.dumps({**before, **changes}, ensure_ascii=False, indent=1)
        write_atomically(path, text + "\n")


def _load(path: Path) -> dict[str, str]:
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
        raise ValueError("it is not an object of texts")
    return data


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes that change tags at once wait for each other."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network shares have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
