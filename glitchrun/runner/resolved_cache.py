"""Answers about a tokenizer that `plan` keeps in the user's cache folder.

Loading a tokenizer and sorting its vocabulary into categories takes seconds; the answers are small.
A file contains the answers about one model for one state of the program. An answer is found by its
question and everything that the question depends on. A file that is missing, damaged or of another
state is ignored and written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glitchrun import __version__
from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.errors import PreflightError
from glitchrun.ledger.files import write_atomically
from glitchrun.spec.digest import digest
from glitchrun.spec.probes import PROBES
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES

_PACKAGES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "gguf", "torch")
"""The packages that load and run tokenizers and their templates."""
_MOST_FILES = 100
"""Largest number of files in the folder; the oldest are removed."""
_MOST = 200
"""Largest number of answers in a file; the oldest are dropped."""


class Answers:
    """The kept answers about one model.

    Args:
        fingerprint: Of the model's contents; None keeps nothing.
    """

    def __init__(self, fingerprint: str | None) -> None:
        self._path = _file(fingerprint) if fingerprint else None
        self._known: dict[str, Any] = _read(self._path) if self._path else {}

    def get(self, question: str, settings: Any, answer: Callable[[], Any]) -> Any:
        """The kept answer, or else that of `answer`, which is then kept.

        Args:
            question: What is asked.
            settings: Everything other than the model that the answer depends on, as plain data.
            answer: Returns plain data. What it raises is passed on, and nothing is kept.
        """
        key = f"{question} {digest(settings)}"
        if key not in self._known:
            self._known[key] = answer()
            self._write()
        return self._known[key]

    def _write(self) -> None:
        if self._path is None:
            return
        kept = dict(list(self._known.items())[-_MOST:])
        text = json.dumps({"sum": digest(kept), "answers": kept}, ensure_ascii=True)
        with suppress(OSError):  # a cache that cannot be written costs only time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, text)
            _drop_oldest(self._path.parent)


def _drop_oldest(folder: Path) -> None:
    """Removes the files of earlier states of the program and of models no longer used."""
    by_age = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in by_age[:-_MOST_FILES]:
        path.unlink(missing_ok=True)


def _file(fingerprint: str) -> Path | None:
    """The file of a model's answers; None where answers cannot be kept.

    Packages that add strategies, searches, probes or templates may change any answer.
    """
    if any(registry.outside for registry in (STRATEGIES, SEARCHES, PROBES, FAMILIES)):
        return None
    try:
        folder = cache_folder()
    except PreflightError:
        return None
    return folder / "resolved" / f"{digest([fingerprint, _program()])[:32]}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
        answers: Mapping[str, Any] = data["answers"]
        return dict(answers) if data["sum"] == digest(answers) else {}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}


@cache
def _program() -> list[Any]:
    """The state of the program: versions, and the size and time of its own files."""
    root = Path(__file__).parents[1]
    files = [
        (path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)
        for pattern in ("**/*.py", "**/*.json")
        for path in sorted(root.glob(pattern))
        for status in (path.stat(),)
    ]
    return [__version__, [_version(name) for name in _PACKAGES], files]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
