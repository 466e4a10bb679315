"""Tables that steps record in addition to verdicts: declared columns, readable cells, MLflow files.

A strategy declares its tables under `x-tables` of its schema fragment and emits rows for them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import (
    MISSING,
    duration,
    figure,
    fitness,
    percent,
    points,
    probability,
    size,
    spelled,
)
from glitchrun.report.relatives import relatives_tables
from glitchrun.report.writing import mlflow_table, replacing, rounded
from glitchrun.spec.schema import fragments
from glitchrun.vocabulary.text import visible

FOLDER = "tables"
DIGITS = 4
FOLDED_FROM = 3
"""Number of rows from which a column with a single value is replaced by one sentence."""
_RUNS = re.compile(" {2,}")
_NUMERIC = ("number", "bytes", "seconds", "share", "probability", "fitness", "points", "change")


@dataclass(frozen=True, slots=True)
class StepColumn:
    """A column, as the strategy declares it."""

    name: str
    description: str = ""
    unit: str = ""
    kind: str = ""
    """The form in which cells are shown: `token` (every space visible), `prose` (text in the page's
    font), `outcome` (pass, fail or skip), `id`, `bytes`, `seconds`, `share`, `probability`
    (exponential if small), `fitness` (more digits near 1) or `change` (0.1 is `+10 %`). Other cells
    are shown by their type."""
    measured: bool = False
    """Whether the value depends on the clock or the machine, and so differs between equal runs."""

    @property
    def label(self) -> str:
        """Its name and unit, for a table's head."""
        label = self.name.replace("_", " ")
        return f"{label} ({self.unit})" if self.unit else label


@dataclass(frozen=True, slots=True)
class StepTable:
    """The rows that a step emitted for one table, in order."""

    step: str
    name: str
    title: str
    description: str
    columns: tuple[StepColumn, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def path(self) -> str:
        """Path of the table's file within the run's artifacts."""
        return f"{FOLDER}/{self.step}.{self.name}.json"

    @property
    def filled(self) -> tuple[StepColumn, ...]:
        """The columns with at least one value that is not an empty text."""
        return tuple(
            column
            for column in self.columns
            if any(row.get(column.name) not in (None, "") for row in self.rows)
        )

    @property
    def constant(self) -> tuple[StepColumn, ...]:
        """The columns in which all rows have the same value, empty cells not counted.

        Empty for tables of fewer than `FOLDED_FROM` rows. Never the first column, nor outcomes.
        """
        if len(self.rows) < FOLDED_FROM:
            return ()
        return tuple(
            column
            for column in self.filled[1:]
            if column.kind != "outcome" and len({*map(repr, self._values(column))}) == 1
        )

    def is_numeric(self, column: StepColumn) -> bool:
        """Whether the column is aligned as numbers."""
        return column.kind in _NUMERIC or all(map(_is_number, self._values(column)))

    def texts(self, column: StepColumn, most: int | None = None) -> list[str]:
        """The column's cells as text, of the first `most` rows.

        Numbers of a column have the same unit and, where all of them stay legible, the same number
        of decimals.
        """
        text = _column_format(column, self._values(column))
        cells = (row.get(column.name) for row in self.rows[:most])
        return [MISSING if cell is None else text(cell) for cell in cells]

    def _values(self, column: StepColumn) -> list[Any]:
        cells = (row.get(column.name) for row in self.rows)
        return [cell for cell in cells if cell is not None and cell != ""]


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _column_format(column: StepColumn, values: Sequence[Any]) -> Callable[[Any], str]:
    """How the cells of a column are written, given all of them."""
    if values and all(map(_is_number, values)):
        if column.kind == "probability" and any(0 < value < 1e-4 for value in values):
            return figure
        if column.kind == "share" and all(not v or abs(v) >= 1e-3 for v in values):
            decimals = int(any(abs(100 * v - round(100 * v)) > 1e-9 for v in values))
            return lambda cell: f"{100 * cell:.{decimals}f} %"
        if column.kind == "" and (decimals := _decimals(values)):
            return lambda cell: f"{cell:,.{decimals}f}"
    return lambda cell: shown(cell, column)


def _decimals(values: Sequence[float]) -> int:
    """Decimals at which the largest number has `DIGITS` digits and the smallest at least two; 0 if
    there are none, or if all numbers are whole."""
    sizes = [abs(value) for value in values if value]
    if not sizes or not all(map(math.isfinite, sizes)) or all(size == int(size) for size in sizes):
        return 0
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(max(sizes))))
    return decimals if min(sizes) >= 10 ** (1 - decimals) else 0


def step_tables(record: RunRecord) -> list[StepTable]:
    """Every table with at least one row, by step, in the order of the strategy's declaration; then
    those of tokens that are related by their text."""
    tables = [table for step in record.steps for table in _of_step(step)]
    for found in relatives_tables(record):
        columns = _columns(found.columns, found.rows)
        about = (found.step, found.name, found.title, found.description)
        tables.append(StepTable(*about, columns, found.rows))
    return tables


def _of_step(step: StepRecord) -> Iterator[StepTable]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for timed in step.batches:
        for entry in timed.batch.entries:
            found.setdefault(entry.table, []).append(entry.cells)
    declared = fragments().get(step.strategy, {}).get("x-tables", {})
    for name in sorted(found, key=[*declared, *found].index):
        table = declared.get(name, {})
        yield StepTable(
            step=step.id,
            name=name,
            title=table.get("title", name),
            description=table.get("description", ""),
            columns=_columns(table.get("columns", {}), found[name]),
            rows=tuple(found[name]),
        )


def _columns(
    declared: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[StepColumn, ...]:
    """The declared columns, then undeclared ones, which other versions of glitchrun may write."""
    names = dict.fromkeys([*declared, *(name for row in rows for name in row)])
    return tuple(StepColumn(name, **declared.get(name, {})) for name in names)


def shown(cell: Any, column: StepColumn) -> str:
    """A cell as readable text, invisible characters spelled out, markup not escaped."""
    if cell is None:
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int | float):
        return _number(cell, column.kind)
    if isinstance(cell, str):
        return _TEXTS.get(column.kind, _text)(cell)
    if isinstance(cell, list | tuple):
        return ", ".join(shown(item, column) for item in cell)
    return _text(json.dumps(cell, ensure_ascii=False))


def _number(value: float, kind: str) -> str:
    match kind:
        case "id":
            return str(value)
        case "bytes":
            return size(value)
        case "seconds":
            return duration(value)
        case "share":
            return percent(value)
        case "probability":
            return probability(value)
        case "fitness":
            return fitness(value, DIGITS)
        case "points":
            return points(value)
        case "change":
            return f"{100 * value:+,.1f} %"
        case _:
            return figure(value, DIGITS)


def _text(text: str) -> str:
    """Text with leading, trailing and repeated spaces made visible."""
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    words = _RUNS.sub(lambda run: "␣" * len(run[0]), spelled(inner).replace("␣", " "))
    return "␣" * start + words + "␣" * (len(text) - start - len(inner))


def _prose(text: str) -> str:
    return " ".join(spelled(text).replace("␣", " ").split())


_TEXTS = {"token": spelled, "prose": _prose}


def write_tables(record: RunRecord, folder: Path) -> list[Path]:
    """Writes `folder/tables/STEP.NAME.json` for every table, in MLflow's table format.

    MLflow's table view drops leading and trailing spaces, so text is written in its visible form.

    Raises:
        OSError: A file cannot be written.
    """
    paths = []
    for table in step_tables(record):
        path = folder / table.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.writelines(
                mlflow_table(
                    {
                        column.name: [_plain(row.get(column.name), column) for row in table.rows]
                        for column in table.columns
                    }
                )
            )
        paths.append(path)
    return paths


def _plain(cell: Any, column: StepColumn) -> Any:
    """A cell for MLflow: numbers and booleans as they are, everything else as text."""
    if isinstance(cell, float):
        return rounded(cell)
    if isinstance(cell, str):
        return visible(cell) if column.kind == "token" else _text(cell)
    return shown(cell, column) if isinstance(cell, list | tuple | dict) else cell
