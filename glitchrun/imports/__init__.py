"""Reads result files of this and other tools: chooses the format and merges duplicate entries.

Whether the ids and texts fit a tokenizer is checked in `vocabulary/vocabulary_fit.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from glitchrun.errors import RunError
from glitchrun.imports.formats import FORMATS
from glitchrun.imports.records import Content, Format, ImportedFile, ImportedToken, ResultSource
from glitchrun.imports.result_file import Malformed, ResultFile, parse

__all__ = ["ImportedFile", "ImportedToken", "ResultSource", "read"]

_FACTS = ("glitch", "confirmed", "p", "rank", "entropy", "norm", "asr", "attempts", "failures")


def read(path: Path) -> ImportedFile:
    """The tokens of a result file of any known format, each once.

    Raises:
        RunError: the file cannot be read, has no known format, or is malformed; the message names
            the place.
    """
    document = parse(path)
    form = _format(document, path)
    try:
        content = form.read(document)
        tokens = list(content.tokens)
    except Malformed as error:
        raise RunError(f"{path}: {error} (read as {form.name}: {form.shape})") from error
    kept, conflicts = _each_once(tokens)
    return ImportedFile(
        source=_source(document, form, content, _looked_at(content, kept)),
        tokens=kept,
        entries=len(tokens) + content.repeated,
        duplicates=len(tokens) - len(kept) + content.repeated,
        conflicts=conflicts,
        left_out={**document.left_out, **content.left_out},
        extra=content.extra,
    )


def _format(document: ResultFile, path: Path) -> Format:
    fitting = [form for form in FORMATS if form.matches(document)]
    if not fitting:
        known = "\n".join(f"  {form.name:<22} {form.shape}" for form in FORMATS)
        raise RunError(f"{path}: is none of the formats that can be read:\n{known}")
    return fitting[0]


def _looked_at(content: Content, tokens: Iterable[ImportedToken]) -> int | None:
    if content.looked_at is not None or content.lists == "findings":
        return content.looked_at
    return sum(token.verdict != "listed" for token in tokens) or None


def _source(
    document: ResultFile, form: Format, content: Content, looked_at: int | None
) -> ResultSource:
    return ResultSource(
        file=document.name,
        format=form.name,
        sha256=document.sha256,
        claimed_model=content.claimed_model,
        lists=content.lists,
        looked_at=looked_at,
        settings=content.settings,
    )


def _each_once(tokens: Iterable[ImportedToken]) -> tuple[tuple[ImportedToken, ...], int]:
    """The first entry of each token, completed by later ones, and the number of later entries that
    contradict it."""
    kept: dict[int, ImportedToken] = {}
    conflicts = 0
    for token in tokens:
        first = kept.setdefault(token.id, token)
        if first is token:
            continue
        both = [(name, getattr(first, name), getattr(token, name)) for name in (*_FACTS, "text")]
        conflicts += any(None not in (old, new) and old != new for _, old, new in both)
        missing = {name: new for name, old, new in both if old is None and new is not None}
        kept[token.id] = replace(first, **missing, said={**token.said, **first.said})
    return tuple(kept.values()), conflicts
