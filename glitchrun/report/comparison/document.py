"""A comparison as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from glitchrun.report.comparison.pairs import Both, Pair
from glitchrun.report.comparison.sides import Judged, Side
from glitchrun.report.rows import rounded


def document(sides: Sequence[Side], pairs: Sequence[Pair], by: str) -> dict[str, Any]:
    """Everything, as JSON-ready data: the sides, then every pair of them."""
    return {"by": by, "sides": [_side(side) for side in sides], "pairs": [_pair(p) for p in pairs]}


def _side(side: Side) -> dict[str, Any]:
    return {
        "label": side.label,
        "name": side.name,
        "kind": side.kind,
        "tokens": len(side.tokens),
        "looked_at": side.looked_at,
        "lists_all": side.lists_all,
        "found": len(side.found),
        "vocabulary": side.vocabulary,
        "note": side.note,
        "metrics": {name: rounded(metric.value) for name, metric in side.metrics.items()},
        "setting": dict(side.setting),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    counts = pair.counts
    return {
        "left": pair.left.label,
        "right": pair.right.label,
        "scope": pair.scope,
        "tokens": counts.n,
        **asdict(counts),
        "agreement": rounded(counts.agreement),
        "agreement_by_chance": rounded(counts.by_chance),
        "kappa": rounded(counts.kappa),
        "other_texts": pair.other_texts,
        "p_distance": rounded(pair.p_distance),
        "overlaps": [
            {
                **asdict(one),
                "expected": rounded(one.expected),
                "p_more": rounded(one.p_more),
                "p_fewer": rounded(one.p_fewer),
                "reading": one.reading,
            }
            for one in pair.overlaps
        ],
        "differences": [_both(both) for both in pair.differences],
        "asr": {"tokens": len(pair.asr), "apart": [_both(both) for both in pair.asr_apart]},
        "changes": [
            {"path": path, "kind": kind, "left": old, "right": new}
            for path, kind, old, new in pair.changes
        ],
    }


def _both(both: Both) -> dict[str, Any]:
    text = both.left.text if both.left.text is not None else both.right.text
    return {
        "token_id": both.left.id,
        "token": text,
        "left": _judged(both.left),
        "right": _judged(both.right),
    }


def _judged(one: Judged) -> dict[str, Any]:
    return {
        "verdict": one.verdict,
        "found": one.found,
        "p": rounded(one.p),
        "asr": rounded(one.asr),
        "attempts": one.attempts,
        "failures": one.failures,
    }
