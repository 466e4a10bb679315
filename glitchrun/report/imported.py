"""The JSON file that `glitchrun import` writes, with one token on a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PureWindowsPath
from typing import Any

from glitchrun.imports import ImportedFile
from glitchrun.imports.formats.own_files import KIND
from glitchrun.imports.records import tally
from glitchrun.report.writing import to_json
from glitchrun.vocabulary.vocabulary_fit import MISFITS, Fit, tallies

_HIDDEN = ("text_in_file", "said")
"""Fields of a token, other than its own text, that contain text of the file."""


def import_json(
    found: ImportedFile, fits: Sequence[Fit], model: str, rows: int, *, redact: bool = False
) -> Iterator[str]:
    """The pieces of the file: its source, checks and counts, then every token that fits the model.

    Args:
        found: The imported file.
        fits: Its tokens, checked against the model's vocabulary.
        model: Path of the model as given.
        rows: Size of the model's vocabulary.
        redact: Whether to omit every text and path; tokens keep ids, verdicts and numbers.
    """
    kept = [fit for fit in fits if fit.fit not in MISFITS]
    left_out = _kinds(found.left_out) if redact else dict(found.left_out)
    checked = {"model": _name(model) if redact else model}
    head = {
        "kind": KIND,
        "version": 1,
        "source": asdict(found.source),
        "checked": {**checked, "vocabulary_size": rows, **tallies(fits)},
        "counts": {
            "entries": found.entries,
            "duplicates": found.duplicates,
            "conflicts": found.conflicts,
            "left_out": left_out,
            "tokens": len(kept),
            "verdicts": tally(fit.token for fit in kept),
        },
        "extra": dict(found.extra),
    }
    if redact:
        head |= {"source": _nameless(found), "extra": {}, "redacted": True}
    yield "{\n"
    for key, value in head.items():
        yield f"{to_json(key)}: {to_json(_finite(value))},\n"
    yield '"tokens": ['
    for place, fit in enumerate(kept):
        row = _row(fit)
        if redact:
            row = {key: None if key == "token" else row[key] for key in row if key not in _HIDDEN}
        yield f"{',' if place else ''}\n{to_json(_finite(row))}"
    yield "\n]\n}\n"


def _nameless(found: ImportedFile) -> dict[str, Any]:
    """The source without settings, which may contain texts, and without folders."""
    claimed = found.source.claimed_model
    return asdict(found.source) | {
        "settings": {},
        "claimed_model": _name(claimed) if claimed else claimed,
    }


def _kinds(left_out: Mapping[str, int]) -> dict[str, int]:
    """The counts of left-out tokens without the file's own words, which are in brackets."""
    kinds: Counter[str] = Counter()
    for what, number in left_out.items():
        kinds[what.partition(" (")[0]] += number
    return dict(kinds)


def _name(path: str) -> str:
    """The last part of a path with separators of any system."""
    return PureWindowsPath(path).name


def _row(fit: Fit) -> dict[str, Any]:
    """A token's fields; `token` is its decoded text, as in tokens.jsonl."""
    token = fit.token
    row = {
        "token_id": token.id,
        "token": fit.here,
        "verdict": token.verdict,
        "glitch": token.glitch,
        "confirmed": token.confirmed,
        "filtered": token.filtered or None,
        "p": token.p,
        "rank": token.rank,
        "entropy": token.entropy,
        "asr": token.asr,
        "attempts": token.attempts,
        "failures": token.failures,
        "norm": token.norm,
        "text_in_file": token.text if token.text != fit.here else None,
        "fit": fit.fit,
        "place": token.place,
        "said": dict(token.said) or None,
    }
    required = ("token_id", "token", "verdict", "glitch", "confirmed")
    return {key: value for key, value in row.items() if value is not None or key in required}


def _finite(value: Any) -> Any:
    """`value` with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value
