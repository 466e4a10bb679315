"""Which spec files are in folders: all but those of other people's code and of finished runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from glitchrun.errors import UsageError

NOT_SEARCHED = frozenset(
    {
        "__pycache__",
        "__pypackages__",
        "_build",
        "build",
        "buck-out",
        "dist",
        "mlruns",
        "node_modules",
        "site-packages",
        "venv",
    }
)
"""Folders that a search passes over, as linters do (the list is ruff's), and the runs' own. Hidden
ones and virtual environments of any other name are passed over as well."""


@dataclass
class Found:
    """The spec files of some paths, and the folders that were not searched for them."""

    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def find_files(paths: Iterable[Path | str]) -> Found:
    """The files at `paths`, folders replaced by the YAML files in and below them, each once.

    A path that is named is always read; below a named folder, hidden files and the folders of
    `NOT_SEARCHED` are passed over, unless the folder is itself such a one.
    Raises UsageError for a folder without spec files.
    """
    found = Found()
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 - false for any text, where Path raises
            found.files.append(path)
            continue
        inside = _search(path, found)
        if not inside:
            raise UsageError(f"{path}: no .yaml or .yml file in this folder or below it")
        found.files += inside
    found.files = list(dict.fromkeys(found.files))
    found.skipped = sorted(set(found.skipped))
    return found


def _search(root: Path, found: Found) -> list[Path]:
    """The YAML files below `root`, sorted; notes in `found` what was passed over."""
    everything = _is_not_searched(root)
    files = []
    for folder, below, names in os.walk(root):
        here = Path(folder)
        kept = []
        for name in sorted(below):
            hidden = name.startswith(".")
            if hidden or (not everything and _is_not_searched(here / name)):
                found.skipped.append(here / name)
            else:
                kept.append(name)
        below[:] = kept
        files += [here / name for name in names if _is_spec_name(name)]
    return sorted(files)


def _is_not_searched(folder: Path) -> bool:
    return folder.name in NOT_SEARCHED or (folder / "pyvenv.cfg").is_file()


def _is_spec_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and not name.startswith(".")
