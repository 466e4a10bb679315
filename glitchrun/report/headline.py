"""The result of a run: one number, the sentences that name it, its caveats, and details."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import counted, figure
from glitchrun.report.step_tables import StepColumn, StepTable, shown, step_tables
from glitchrun.report.token_findings import findings
from glitchrun.report.token_rows import remembered
from glitchrun.spec.schema import fragments

DIGITS = 3
"""Significant digits of a metric in the headline."""
MOST = 3
"""Rows of a step's table that the headline quotes, unless the strategy declares another number."""

_STOPPED = {
    "RUNNING": "The run is not over: the numbers are those at the time of writing.",
    "KILLED": "The run was stopped before its end: the numbers cover what had finished by then. "
    "It can be resumed: run the same glitchrun apply again.",
    "DAMAGED": "The run's ledger is damaged: the numbers cover its intact part.",
    "FAILED": "The run failed: the numbers cover what had finished by then.",
}
_UNTIL = re.compile(r"\((--until .*)\)\Z")
_PLACE = re.compile(r"\{([\w.]+)(?:\|([^|{}]*)\|([^|{}]*))?\}")


@dataclass(frozen=True, slots=True)
class Headline:
    """The main number of a run, its unit, and sentences in four parts.

    In all but `notices`, invisible characters of tokens are spelled out.
    """

    number: float | None
    unit: str
    notices: tuple[str, ...] = ()
    """Whether the run was stopped, failed or repaired."""
    result: tuple[str, ...] = ()
    """The result itself: the tokens, the sequence, the predictions."""
    caveats: tuple[str, ...] = ()
    """What limits the result."""
    details: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences, in order."""
        return (*self.notices, *self.result, *self.caveats, *self.details)


@remembered
def headline(record: RunRecord) -> Headline:
    """The main result: confirmed tokens; else severe glitch tokens; else the metric that the last
    step with an `x-headline` declares; else no number."""
    tokens = findings(record)
    number: float | None = tokens.number
    unit, result, details = tokens.unit, list(tokens.result), list(tokens.details)
    declared = [step for step in record.steps if declared_headline(step)]
    measured = [step for step in declared if _is_measured(step)]
    if measured and number is None:
        number, unit = _declared_number(measured[-1])
        result = []
    tables = step_tables(record) if declared else []
    for step in declared:
        prefix = f"{step.id}: " if len(record.steps) > 1 else ""
        own = {table.name: table for table in tables if table.step == step.id}
        sentences = [*_answers(step, own), *(_sentences(step) if step in measured else [])]
        result += [prefix + sentence for sentence in sentences]
    return Headline(number, unit, _notices(record), tuple(result), tokens.caveats, tuple(details))


def _notices(record: RunRecord) -> tuple[str, ...]:
    limit = record.spec.get("limit")
    found = [
        f"Smoke run: at most {counted(limit, 'item')} per step." if limit else None,
        _STOPPED.get(record.status),
        f"Reason: {record.error}" if record.error else None,
    ]
    found += [
        "The ledger was damaged when the run was resumed. The lost part was computed again: "
        f"{repair}."
        for repair in record.repairs
    ]
    found += [_ended_early(record, place) for place in range(len(record.steps))]
    return tuple(filter(None, found))


def _ended_early(record: RunRecord, place: int) -> str | None:
    """That the user ended the search of a step; None where it ended by itself."""
    step = record.steps[place]
    option = _UNTIL.search(record.origins.get(f"steps[{place}].budget", ""))
    done = sum(len(timed.batch.token_facts) for timed in step.batches)
    if (
        option is None
        or record.spec.get("limit")
        or not step.finished
        or done < (step.params["budget"] or 0)
    ):
        return None
    return (
        f"The user ended the search of step {step.id} early, after {done:,} verifications "
        f"({option[1]})."
    )


def declared_headline(step: StepRecord) -> Mapping[str, Any] | None:
    """The `x-headline` of the step's strategy: metric, unit, sentence, when, cards, answers."""
    found: Mapping[str, Any] | None = fragments().get(step.strategy, {}).get("x-headline")
    return found


def _is_measured(step: StepRecord) -> bool:
    """Whether the step has measured the metric of its `x-headline`."""
    declared = declared_headline(step)
    return declared is not None and declared["metric"] in step.metrics


def _declared_number(step: StepRecord) -> tuple[float | None, str]:
    declared = declared_headline(step) or {}
    value = step.metrics[declared["metric"]].value
    if value is None:
        return None, declared.get("none", f"no {declared['unit']}")
    return value, declared.get("one", declared["unit"]) if value == 1 else declared["unit"]


def _sentences(step: StepRecord) -> list[str]:
    """The declared sentence with those whose metric is not 0; none if the metric has no value."""
    declared = declared_headline(step) or {}
    values = {name: metric.value for name, metric in step.metrics.items()}
    if values[declared["metric"]] is None:
        return []
    conditional = [text for name, text in declared.get("when", {}).items() if values.get(name)]

    def number(name: str, one: str, many: str) -> str:
        value = values.get(name)
        noun = one if value == 1 else many
        return f"{figure(value, DIGITS)} {noun}" if noun else figure(value, DIGITS)

    return [_filled(" ".join([declared["sentence"], *conditional]), number)]


def _filled(text: str, value: Callable[[str, str, str], str]) -> str:
    """`text` with the value of each `{name}` or `{name|singular|plural}`."""
    return _PLACE.sub(lambda found: value(found[1], found[2] or "", found[3] or ""), text)


# The answers of a step: rows of its tables as sentences


def _answers(step: StepRecord, tables: Mapping[str, StepTable]) -> list[str]:
    declared = (declared_headline(step) or {}).get("answers", ())
    return [line for answer in declared for line in _answer_lines(answer, tables)]


def _answer_lines(answer: Mapping[str, Any], tables: Mapping[str, StepTable]) -> list[str]:
    """A sentence for each of the first `most` rows that the answer is about."""
    table = tables.get(answer["table"])
    if table is None:
        return []
    where, unless = answer.get("where", {}), answer.get("unless", {})
    rows = [
        row
        for row in table.rows
        if all(row.get(name) in values for name, values in where.items())
        and not any(row.get(name) in values for name, values in unless.items())
    ]
    if by := answer.get("by"):
        rows.sort(key=lambda row: -(row.get(by) or 0))
    most = answer.get("most", MOST)
    lines = [_row_line(answer["line"], table, row, tables) for row in rows[:most]]
    hidden = 0 if most == 1 else len(rows) - len(lines)
    return [*lines, f"{counted(hidden, 'more row')}: {table.path}."] if hidden > 0 else lines


def _row_line(
    text: str, table: StepTable, row: Mapping[str, Any], tables: Mapping[str, StepTable]
) -> str:
    """`text` with `{column}` from the row and `{table.column}` from another table's first row."""

    def cell(place: str, *_: str) -> str:
        name, dot, column = place.rpartition(".")
        source = tables.get(name) if dot else table
        cells = row if source is table else source.rows[0] if source else {}
        kinds = {one.name: one for one in source.columns} if source else {}
        return shown(cells.get(column), kinds.get(column, StepColumn(column)))

    return _filled(text, cell)
