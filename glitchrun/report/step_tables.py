"""Tables that steps record beside their verdicts: declared columns, readable cells, MLflow files.

A strategy declares its tables under `x-tables` of its schema fragment and emits rows for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
    probability,
    size,
    spelled,
)
from glitchrun.report.writing import mlflow_table, replacing, rounded
from glitchrun.spec.schema import fragments
from glitchrun.vocabulary.text import visible

FOLDER = "tables"
DIGITS = 4
_RUNS = re.compile(" {2,}")
_NUMERIC = ("number", "bytes", "seconds", "share", "probability", "fitness", "change")


@dataclass(frozen=True, slots=True)
class StepColumn:
    """A column, as the strategy declares it."""

    name: str
    description: str = ""
    unit: str = ""
    kind: str = ""
    """How cells are shown: `token` (every space visible), `outcome` (pass, fail or skip), `id`,
    `bytes`, `seconds`, `share`, `probability` (exponential if small), `fitness` (more digits near
    1) or `change` (0.1 is `+10 %`). Other cells are shown by their type."""
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
        """The columns with at least one value."""
        return tuple(
            column
            for column in self.columns
            if any(row.get(column.name) is not None for row in self.rows)
        )

    def is_numeric(self, column: StepColumn) -> bool:
        """Whether the column is aligned as numbers."""
        cells = [row.get(column.name) for row in self.rows]
        return column.kind in _NUMERIC or all(
            cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
            for cell in cells
        )


def step_tables(record: RunRecord) -> list[StepTable]:
    """Every table with at least one row, by step, in the order of the strategy's declaration."""
    return [table for step in record.steps for table in _of_step(step)]


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
        return spelled(cell) if column.kind == "token" else _text(cell)
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
                    (column.name for column in table.columns),
                    (
                        [_plain(row.get(column.name), column) for column in table.columns]
                        for row in table.rows
                    ),
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
