"""The few lines a run ends with in a terminal."""

from __future__ import annotations

from glitchrun.ledger.record import RunRecord
from glitchrun.report.headline import DIGITS, headline
from glitchrun.report.numbers import counted, duration, figure, percent, size
from glitchrun.report.overview import is_about_tokens
from glitchrun.report.step_tables import StepColumn, shown, step_tables
from glitchrun.report.table import Row, found_tokens, table
from glitchrun.vocabulary.text import visible_token

SHOWN = 10
"""Tokens listed before the rest is only counted."""
_REASON = StepColumn("reason")


def summary_lines(record: RunRecord) -> list[str]:
    """What a run found, what its gates say and where its files are: plain text, no colour."""
    top = headline(record)
    number = "" if top.number is None else f"{figure(top.number, DIGITS)} "
    return [
        f"{record.identity.experiment} · {record.identity.name}: {record.status}",
        f"  {number}{top.unit}",
        *(f"  {sentence}" for sentence in top.sentences),
        *_check_lines(record),
        *_token_lines(table(record)),
        *_gate_lines(record),
        *_work_lines(record),
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
    """The checks that did not pass, and why."""
    return [
        f"  check    {row['outcome']}: {row['check']}: {shown(row['reason'], _REASON)}"
        for table in step_tables(record)
        if table.name == "checks"
        for row in table.rows
        if row["outcome"] != "pass"
    ]


def _token_lines(rows: list[Row]) -> list[str]:
    found = found_tokens(rows)
    lines = [f"  {_token_line(row)}" for row in found[:SHOWN]]
    hidden = len(found) - len(lines)
    return [*lines, f"  … and {counted(hidden, 'more token')}"] if hidden else lines


def _token_line(row: Row) -> str:
    text = f"{row.token.id:>8}  «{visible_token(row.token)}»  {row.verdict}"
    if row.sampled:
        fact = row.sampled
        interval = f"{percent(fact.asr_low)} to {percent(fact.asr_high)}"
        text += f"  ASR {percent(fact.asr)} ({fact.failures}/{fact.attempts}; 95 %: {interval})"
    if row.closest:
        text += f"  p {figure(row.closest[1].p)}"
    return text if row.intact else f"{text}  (not presented intact)"


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
        held, peak = size(record.model.bytes), size(record.model.peak_bytes)
        lines.append(f"  memory   model {held}, peak {peak} on {record.model.device}")
    return lines
