"""The summary that `apply` prints at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from glitchrun.ledger.record import RunRecord, status_word
from glitchrun.report.formatting import counted, duration, figure, percent, size
from glitchrun.report.headline import DIGITS, declared_headline, headline
from glitchrun.report.run_details import scope
from glitchrun.report.step_tables import StepColumn, StepTable, shown, step_tables
from glitchrun.report.token_rows import TokenRow, found_tokens, token_rows
from glitchrun.report.totals import is_about_tokens
from glitchrun.vocabulary.text import visible_token

SHOWN = 10
"""Tokens listed; the others are counted."""
_REASON = StepColumn("reason")


def summary_lines(record: RunRecord) -> list[str]:
    """The result of a run, its gates and the paths of its files, as lines of plain text."""
    top = headline(record)
    number = "" if top.number is None else f"{figure(top.number, DIGITS)} "
    return [
        f"{record.identity.experiment} · {record.identity.name}: {_status(record)}",
        f"  {number}{top.unit}",
        *(f"  {sentence}" for sentence in top.sentences),
        *_answer_lines(record),
        *_check_lines(record),
        *_token_lines(record),
        *_gate_lines(record),
        *(f"  warning  {note}" for note in (record.model.beyond_training if record.model else ())),
        *_work_lines(record),
        *_scope_lines(record),
        f"  report   {record.artifacts / 'report.html'}",
        *_file_lines(record),
    ]


def _file_lines(record: RunRecord) -> list[str]:
    tables = [
        f"  table    {record.artifacts / table.path} ({counted(len(table.rows), 'row')})"
        for table in step_tables(record)
    ]
    tokens = [f"  tokens   {record.artifacts / 'tokens.jsonl'}"]
    return [*tables, *(tokens if is_about_tokens(record) else ())]


def _check_lines(record: RunRecord) -> list[str]:
    """The checks that did not pass, with their reasons."""
    return [
        f"  check    {row['outcome']}: {row['check']}: {shown(row['reason'], _REASON)}"
        for table in step_tables(record)
        if table.name == "checks"
        for row in table.rows
        if row["outcome"] != "pass"
    ]


def _status(record: RunRecord) -> str:
    word = status_word(record.status)
    return f"{word} (resumable)" if record.status == "KILLED" else word


def _answer_lines(record: RunRecord) -> list[str]:
    """The answers of each step, as its strategy declares them in `x-headline`."""
    lines = []
    for step in record.steps:
        rows = {found.name: found for found in step_tables(record) if found.step == step.id}
        for answer in (declared_headline(step) or {}).get("answers", ()):
            lines += _answers(answer, rows)
    return lines


def _answers(answer: Mapping[str, Any], tables: Mapping[str, StepTable]) -> list[str]:
    """A line for each of the first `most` rows of the declared table."""
    about = tables.get(answer["table"])
    if about is None:
        return []
    most = answer.get("most", len(about.rows))
    lines = []
    for row in about.rows[:most]:
        column = answer.get("where")
        known = column is None or row.get(column) is not None
        text = answer["line"] if known else answer.get("else")
        if text:
            lines.append(f"  answer   {_filled(text, about, row, tables)}")
    hidden = 0 if answer.get("most") == 1 else len(about.rows) - most
    return [*lines, f"  … and {counted(hidden, 'more row')} in the table"] if hidden > 0 else lines


def _filled(
    text: str, about: StepTable, row: Mapping[str, Any], tables: Mapping[str, StepTable]
) -> str:
    """`text` with `{column}` from the row and `{table.column}` from another table's first row."""

    def cell(found: re.Match[str]) -> str:
        name, dot, column = found[1].rpartition(".")
        source = tables.get(name) if dot else about
        cells = row if source is about else source.rows[0] if source else {}
        kinds = {one.name: one for one in source.columns} if source else {}
        return shown(cells.get(column), kinds.get(column, StepColumn(column)))

    return re.sub(r"\{([\w.]+)\}", cell, text)


def _token_lines(record: RunRecord) -> list[str]:
    """The tokens found, then the other tokens that the spec names individually."""
    rows = token_rows(record)
    found = found_tokens(rows)
    known = {row.token.id for row in found}
    asked = [row for row in _named_tokens(record, rows) if row.token.id not in known]
    return [*_first_lines(found, "more token"), *_first_lines(asked, "more named token")]


def _first_lines(rows: list[TokenRow], rest: str) -> list[str]:
    lines = [f"  {_token_line(row)}" for row in rows[:SHOWN]]
    hidden = len(rows) - len(lines)
    return [*lines, f"  … and {counted(hidden, rest)}"] if hidden else lines


def _named_tokens(record: RunRecord, rows: list[TokenRow]) -> list[TokenRow]:
    """The tokens of steps whose `tokens` are ids or texts, each once, whatever their verdict."""
    named = {
        step.id
        for step in record.steps
        if isinstance(tokens := step.params.get("tokens"), Mapping)
        and (tokens.get("ids") or tokens.get("texts"))
    }
    first: dict[int, TokenRow] = {}
    for row in rows:
        if row.control_of is None and named.intersection(row.steps):
            first.setdefault(row.token.id, row)
    return list(first.values())


def _token_line(row: TokenRow) -> str:
    text = f"{row.token.id:>8}  «{visible_token(row.token)}»  {row.verdict}"
    if row.sampled:
        fact = row.sampled
        interval = f"{percent(fact.asr_low)} to {percent(fact.asr_high)}"
        text += f"  ASR {percent(fact.asr)} ({fact.failures}/{fact.attempts}; 95 %: {interval})"
    if row.closest:
        text += f"  p {figure(row.closest[1].p)}"
    return text if row.intact else f"{text}  (not presented intact)"


def _scope_lines(record: RunRecord) -> list[str]:
    """The scope by category, if it is known."""
    known = record.model is not None and record.model.categories
    return [f"  scope    {scope(record)}"] if known else []


def _gate_lines(record: RunRecord) -> list[str]:
    return [
        f"  gate     {gate.outcome}: {gate.metric} {gate.op} {gate.value:g} "
        f"(observed {figure(gate.observed)}{'' if gate.n is None else f', n = {gate.n:,}'})"
        for gate in record.gates
    ]


def _work_lines(record: RunRecord) -> list[str]:
    lines = []
    for step in record.steps:
        state = "" if step.finished else "  (not finished)"
        lines.append(f"  step     {step.id} ({step.strategy}): {duration(step.seconds)}{state}")
    if record.model:
        weights, peak = size(record.model.bytes), size(record.model.peak_bytes)
        lines.append(f"  memory   model {weights}, peak {peak} on {record.model.device}")
    return lines
