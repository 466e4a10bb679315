"""A comparison for people: titled sections of sentences and tables, without markup.

`sections` yields them in order. Two sides are compared in full; more sides as one matrix for each
figure. `comparison.output` writes sections as text or Markdown, `comparison.page` as HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.report.comparison import Column, Section
from glitchrun.report.comparison.pairs import Pair
from glitchrun.report.comparison.regressions import Regression
from glitchrun.report.comparison.results import (
    cells_of,
    gates_cell,
    leader_sentence,
    metrics,
    results,
    seconds,
)
from glitchrun.report.comparison.sides import Side
from glitchrun.report.comparison.token_sections import sections_of_many, sections_of_two
from glitchrun.report.formatting import (
    counted,
    in_one_unit,
)


def sections(
    by: str,
    sides: Sequence[Side],
    pairs: Sequence[Pair],
    shown: int | None,
    regressed: Regression | None = None,
    *,
    equal_rows: bool = False,
) -> Iterator[Section]:
    """The sections of a comparison.

    Args:
        by: The kind of verdict that is compared.
        sides: Two or more sides.
        pairs: Every two of the sides, from `all_pairs`.
        shown: Rows of each table of tokens; None for all.
        regressed: The metrics against those of the first side, if that was asked.
        equal_rows: Whether to list metrics and, up to `shown`, tokens on which all sides agree.
    """
    yield _compared(sides)
    if regressed is not None:
        yield regressed.section()
    about_tokens = [pair for pair in pairs if pair.left.tokens and pair.right.tokens]
    if len(about_tokens) == 1:
        yield from sections_of_two(by, about_tokens[0], shown, equal_rows)
    elif about_tokens:
        with_tokens = [side for side in sides if side.tokens]
        yield from sections_of_many(by, with_tokens, about_tokens, shown, equal_rows)
    yield from _metrics(sides, equal_rows)
    yield from _changes(sides, pairs)


def matrix_section(records: Sequence[RunRecord]) -> Section:
    """The table of a matrix' cells: their results, gates and times.

    Args:
        records: The runs of the cells.
    """
    sides = cells_of(records)
    columns, rows = _results_table(sides, "Cell")
    leader = leader_sentence(sides)
    title = f"{records[0].identity.experiment}: {counted(len(records), 'cell')}"
    return Section(title, (leader,) if leader else (), columns, rows)


def _compared(sides: Sequence[Side]) -> Section:
    columns, rows = _results_table(sides, "Run" if all(s.record for s in sides) else "Run or file")
    keys = [s.record.identity.key[:12] if s.record else "" for s in sides]
    rows = tuple(
        (side.label, row[0], *([key] if any(keys) else []), *row[1:])
        for side, key, row in zip(sides, keys, rows, strict=True)
    )
    head = (Column("", "key"), columns[0], *([Column("Key", "key")] if any(keys) else []))
    leader = leader_sentence(sides)
    return Section("Compared", (leader,) if leader else (), (*head, *columns[1:]), rows)


def _results_table(
    sides: Sequence[Side], name: str
) -> tuple[tuple[Column, ...], tuple[tuple[str, ...], ...]]:
    """A row for each side: its name, its main results, gates, time and note."""
    found = results(sides)
    times = [seconds(side.record) if side.record else None for side in sides]
    unit, spent = in_one_unit(times, "s")
    extra = {
        Column("Gates", "key"): [gates_cell(s.record) if s.record else "" for s in sides],
        Column(f"Time ({unit})" if unit else "Time", "number"): spent if any(times) else [],
        Column("Note"): [side.note or "" for side in sides],
    }
    extra = {column: cells for column, cells in extra.items() if any(cells)}
    columns = [
        Column(name, "key"),
        *(Column(_capital(one.head), "number") for one in found),
        *extra,
    ]
    cells = [[side.title for side in sides], *(one.texts for one in found), *extra.values()]
    return tuple(columns), tuple(zip(*cells, strict=True))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _metrics(sides: Sequence[Side], every_row: bool) -> Iterator[Section]:
    runs = [side for side in sides if side.metrics]
    every = [(one, in_one_unit(one.values, one.unit)) for one in metrics(runs)]
    if len(runs) < 2 or not every:
        return
    rows = [(one.label, *texts, unit) for one, (unit, texts) in every]
    equal = [len(set(row[1:-1])) == 1 for row in rows]
    same = sum(equal)
    columns = (
        Column("Metric", "key"),
        *(Column(side.label, "number") for side in runs),
        Column("Unit"),
    )
    sentence = f"{counted(same, 'metric is', 'metrics are')} equal on all sides."
    kept = [place for place in range(len(rows)) if every_row or not equal[place]]
    yield Section(
        "Metrics",
        (sentence,) if same else (),
        columns,
        tuple(rows[place] for place in kept),
        hidden=len(rows) - len(kept),
        equal=tuple(equal[place] for place in kept),
    )


def _changes(sides: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[Section]:
    """Differences between the runs other than their results: settings, then the specs."""
    runs = [side for side in sides if side.spec is not None]
    if len(runs) < 2:
        return
    rows = [*_setting_rows(runs), *_spec_rows(runs, pairs)]
    if not rows:
        yield Section("What differs", ("None: the same spec, model contents and versions.",))
        return
    columns = (
        Column("What", "key"),
        Column("Kind", "key"),
        *(Column(side.label) for side in runs),
    )
    yield Section("What differs", (), columns, tuple(rows))


def _setting_rows(runs: Sequence[Side]) -> Iterator[tuple[str, ...]]:
    for name in dict.fromkeys(name for side in runs for name in side.setting):
        values = [_shown(side.setting.get(name)) for side in runs]
        if len(set(values)) > 1:
            yield (name, "setting", *values)


def _spec_rows(runs: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[tuple[str, ...]]:
    """The values of the spec that differ between the first run and any other."""
    changes = {
        pair.right.label: {path: (kind, old, new) for path, kind, old, new in pair.changes}
        for pair in pairs
        if pair.left.label == runs[0].label and pair.right.spec is not None
    }
    for path in dict.fromkeys(path for found in changes.values() for path in found):
        kind, first = next((c[path][0], c[path][1]) for c in changes.values() if path in c)
        others = (_new_value(path, changes[side.label], first) for side in runs[1:])
        yield (path, kind, *map(_shown, (first, *others)))


def _new_value(path: str, changes: Mapping[str, tuple[str, Any, Any]], first: Any) -> Any:
    """A run's value at a path, from its changes since the first run."""
    if path in changes:
        return changes[path][2]
    whole = any(path.startswith((f"{other}.", f"{other}[")) for other in changes)
    return "(in the value above)" if whole else first


def _shown(value: Any) -> str:
    if value is None:
        return "(absent)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
