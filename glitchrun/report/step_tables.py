"""The tables that steps keep of things other than tokens: as declared, as shown, and for MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.numbers import MISSING, duration, figure, fitness, percent, probability, size
from glitchrun.report.rows import replacing, rounded, to_json
from glitchrun.report.spelling import spelled
from glitchrun.spec.schema import strategies
from glitchrun.vocabulary.text import visible

FOLDER = "tables"
DIGITS = 4
_RUNS = re.compile(" {2,}")
_NUMERIC = ("number", "bytes", "seconds", "share", "probability", "fitness", "change")


@dataclass(frozen=True, slots=True)
class StepColumn:
    """A column as the strategy's fragment declares it under `x-tables`."""

    name: str
    description: str = ""
    unit: str = ""
    kind: str = ""
    """How cells are shown: `token` (every space made visible), `outcome` (pass, fail or skip),
    `id`, `bytes`, `seconds`, `share`, `probability` (a share that is not cut off below), `fitness`
    (told apart up to 1) or `change` (0.1 is `+10 %`); anything else by the type of the cell."""
    measured: bool = False
    """Whether the clock or the machine gave it, so that it differs from run to run."""

    @property
    def label(self) -> str:
        label = self.name.replace("_", " ")
        return f"{label} ({self.unit})" if self.unit else label


@dataclass(frozen=True, slots=True)
class StepTable:
    """The rows that a step emitted for one table, in that order."""

    step: str
    name: str
    title: str
    description: str
    columns: tuple[StepColumn, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def path(self) -> str:
        """Where the table is among the run's artifacts."""
        return f"{FOLDER}/{self.step}.{self.name}.json"

    @property
    def filled(self) -> tuple[StepColumn, ...]:
        """The columns that hold anything."""
        return tuple(
            column
            for column in self.columns
            if any(row.get(column.name) is not None for row in self.rows)
        )

    def is_numeric(self, column: StepColumn) -> bool:
        """Whether its cells are to be set under one another as numbers."""
        cells = [row.get(column.name) for row in self.rows]
        return column.kind in _NUMERIC or all(
            cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
            for cell in cells
        )


def step_tables(record: RunRecord) -> list[StepTable]:
    """Every table with at least one row, by step, then as the strategy declares them."""
    return [table for step in record.steps for table in _of_step(step)]


def _of_step(step: StepRecord) -> Iterator[StepTable]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for timed in step.batches:
        for entry in timed.batch.entries:
            found.setdefault(entry.table, []).append(entry.cells)
    declared = strategies().get(step.strategy, {}).get("x-tables", {})
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
    """The declared columns, then those that only a row of another version of glitchrun has."""
    names = dict.fromkeys([*declared, *(name for row in rows for name in row)])
    return tuple(StepColumn(name, **declared.get(name, {})) for name in names)


def shown(cell: Any, column: StepColumn) -> str:
    """A cell as a person reads it. Nothing in it is hidden, and none of it is markup yet."""
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
    """Text with single spaces left as they are, those at its ends and in rows made visible."""
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    words = _RUNS.sub(lambda run: "␣" * len(run[0]), spelled(inner).replace("␣", " "))
    return "␣" * start + words + "␣" * (len(text) - start - len(inner))


def write_tables(record: RunRecord, folder: Path) -> list[Path]:
    """Writes `folder/tables/STEP.NAME.json` for every table, in MLflow's table format.

    MLflow's table view groups by the first column and compares the second; it drops spaces at the
    ends of a text, so that texts are written in their visible form.
    """
    paths = []
    for table in step_tables(record):
        path = folder / table.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.writelines(_mlflow(table))
        paths.append(path)
    return paths


def _mlflow(table: StepTable) -> Iterator[str]:
    yield f'{{"columns":{to_json([column.name for column in table.columns])},"data":['
    for place, row in enumerate(table.rows):
        cells = to_json([_plain(row.get(column.name), column) for column in table.columns])
        yield f"{',' if place else ''}\n{cells}"
    yield "\n]}\n"


def _plain(cell: Any, column: StepColumn) -> Any:
    """A cell as MLflow's table shows it."""
    if isinstance(cell, float):
        return rounded(cell)
    if isinstance(cell, str):
        return visible(cell) if column.kind == "token" else _text(cell)
    return shown(cell, column) if isinstance(cell, list | tuple | dict) else cell
