"""A comparison for people: headed tables and sentences, without their markup."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from glitchrun.report.comparison.matrix_sections import matrix_sections
from glitchrun.report.comparison.pair_sections import pair_sections
from glitchrun.report.comparison.pairs import Pair
from glitchrun.report.comparison.section import Section
from glitchrun.report.comparison.sides import Side
from glitchrun.report.numbers import count, figure


def sections(sides: Sequence[Side], pairs: Sequence[Pair], shown: int | None) -> Iterator[Section]:
    """The comparison; of long tables `shown` rows, all where it is None."""
    yield _sides(sides)
    if not _about_tokens(sides):
        pass  # profiles, predictions: their numbers are the comparison
    elif len(pairs) == 1:
        yield from pair_sections(pairs[0], shown)
    else:
        yield from matrix_sections(sides, pairs, shown)
    yield from _metrics(sides)
    for pair in pairs[: len(sides) - 1]:  # every side against the first
        yield from _changes(pair)


def _about_tokens(sides: Sequence[Side]) -> bool:
    return any(side.tokens for side in sides)


def _sides(sides: Sequence[Side]) -> Section:
    if not _about_tokens(sides):
        named = tuple((side.label, side.name, side.note or "") for side in sides)
        return Section("Compared", (), ("", "What", "Note"), named)
    rows = [
        (side.label, side.name, count(side.looked_at), count(len(side.found)), side.note or "")
        for side in sides
    ]
    return Section("Compared", (), ("", "What", "Looked at", "Found", "Note"), tuple(rows))


def _metrics(sides: Sequence[Side]) -> Iterator[Section]:
    runs = [side for side in sides if side.metrics]
    names = dict.fromkeys(name for side in runs for name in side.metrics)
    if not runs:
        return
    rows = tuple(
        (name, *(_metric(side, name) for side in runs))
        for name in names
        if any(name in side.metrics and side.metrics[name].value is not None for side in runs)
    )
    yield Section("Metrics", (), ("Metric", *(side.label for side in runs)), rows)


def _metric(side: Side, name: str) -> str:
    return figure(side.metrics[name].value) if name in side.metrics else ""


def _changes(pair: Pair) -> Iterator[Section]:
    left, right = pair.left, pair.right
    if left.spec is None or right.spec is None:
        return
    setting = [
        (name, "setting", _shown(left.setting.get(name)), _shown(right.setting.get(name)))
        for name in dict.fromkeys((*left.setting, *right.setting))
        if left.setting.get(name) != right.setting.get(name)
    ]
    spec = [(path, kind, _shown(old), _shown(new)) for path, kind, old, new in pair.changes]
    title = f"What differs between {left.label} and {right.label}"
    if not setting and not spec:
        yield Section(title, ("Nothing: the same spec, model contents and versions.",))
        return
    head = ("What", "Kind", left.label, right.label)
    yield Section(title, (), head, (*setting, *spec))


def _shown(value: Any) -> str:
    return "(absent)" if value is None else json.dumps(value, ensure_ascii=False)
