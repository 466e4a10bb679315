"""Magikarp's results: the verifications of Land and Bartolo (arXiv 2405.05417)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from glitchrun.imports.fields import items, mapping, settings, share, string, token
from glitchrun.imports.records import Content, Format, ImportedToken
from glitchrun.imports.result_file import Malformed, ResultFile

_CLASSES = frozenset(
    {
        "strong_verified",
        "weak_verified",
        "weak_rejected",
        "strong_rejected",
        "verification_encoding_failed",
    }
)
_THRESHOLD = 0.01
"""Their tables count the tokens whose largest probability is below this."""


def _magikarp(document: ResultFile) -> Content:
    """A line for each entry of the vocabulary. Only the verified ones become tokens. They are
    glitch tokens if their largest probability is below 0.01, and filtered if no prompt encodes to
    them."""
    first = document.first
    names = [string(name, "line 1.indicator_names") for name in first.get("indicator_names") or ()]
    verified = [(line, row) for line, row in document.data if row.get("verification")]
    left_out: Counter[str] = Counter()
    left_out["entries that were not verified"] = len(document.data) - len(verified)
    for line, row in verified:
        found = items(row["verification"], f"line {line}.verification")
        left_out["generated texts"] += sum(
            "output" in mapping(one, f"line {line}.verification") for one in found
        )
    kept = settings(mapping(first.get("model_info") or {}, "line 1.model_info"))
    return Content(
        tokens=[_verified(row, f"line {line}", names) for line, row in verified],
        settings={**kept, "vocab_size": len(document.data)},
        left_out=dict(+left_out),
    )


def _verified(row: Mapping[str, Any], place: str, names: list[str]) -> ImportedToken:
    tests = [mapping(one, f"{place}.verification") for one in row["verification"]]
    ps = [share(one["max_prob"], f"{place}.max_prob") for one in tests if "max_prob" in one]
    p = max((p for p in ps if p is not None), default=None)
    name = row.get("magikarp")
    if name is not None and name not in _CLASSES:
        raise Malformed(f"{place}.magikarp", f"no class of Magikarp: {name!r:.40}")
    encoded = [one.get("encodeable") is not False for one in tests]
    values = items(row.get("indicators") or [], f"{place}.indicators")
    said = {"category": row.get("category"), "magikarp": name, "piece": row.get("raw_vocab")}
    said |= {"indicators": dict(zip(names, values, strict=False))} if names else {}
    filtered = (p is None or p <= 0.1) and not any(encoded)
    return token(
        {"id": row.get("i"), "text": row.get("decoded"), "p": p},
        place,
        glitch=None if filtered or p is None else p < _THRESHOLD,
        filtered=filtered,
        said={key: value for key, value in said.items() if value is not None},
    )


def _is_magikarp(document: ResultFile) -> bool:
    return {"i", "raw_vocab", "category"} <= document.first.keys()


FORMATS = (
    Format(
        "magikarp",
        "results/verifications/MODEL.jsonl(.gz) of Magikarp: lines with 'i' and 'raw_vocab'",
        _is_magikarp,
        _magikarp,
    ),
)
