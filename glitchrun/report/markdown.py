"""The report as Markdown, for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glitchrun.ledger.record import RunRecord, status_word
from glitchrun.report.formatting import (
    code,
    count,
    escaped,
    figure,
    grid,
    percent,
    prose,
    share,
    size,
    spelled_token,
)
from glitchrun.report.headline import DIGITS, headline
from glitchrun.report.overview import tallies
from glitchrun.report.sections import commands
from glitchrun.report.severity_markdown import severity_parts
from glitchrun.report.step_tables import StepColumn, StepTable, shown, step_tables
from glitchrun.report.token_rows import TokenRow, found_tokens, token_rows

SHOWN = 30
"""Tokens, and rows of a table, listed before the rest is only counted."""


def markdown(record: RunRecord) -> str:
    """The headline, gates, verdict counts, severity, false alarms, the tokens found and how to
    reproduce them."""
    top = headline(record)
    number = "" if top.number is None else f"{figure(top.number, DIGITS)} "
    identity = record.identity
    parts = [
        f"## {prose(identity.experiment)} · {prose(identity.name)}: {status_word(record.status)}",
        f"**{number}{top.unit}**",
        *map(prose, top.sentences),
        *_gates(record),
        *_verdicts(record),
        *severity_parts(record),
        *_tokens(token_rows(record)),
        *(part for table in step_tables(record) for part in _step_table(table)),
        *_model(record),
        "```sh\n" + "\n".join(commands(record)) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _gates(record: RunRecord) -> list[str]:
    if not record.gates:
        return []
    rows = [
        (code(f"{gate.metric} {gate.op} {gate.value:g}"), gate.outcome, figure(gate.observed))
        for gate in record.gates
    ]
    return [grid(("Gate", "Outcome", "Observed"), rows)]


def _verdicts(record: RunRecord) -> list[str]:
    rows = [
        (
            code(row.step),
            row.category,
            count(row.verified),
            count(row.glitch),
            share(row.glitch, row.verified),
            count(row.sampled),
            count(row.confirmed),
        )
        for row in tallies(record)
    ]
    head = ("Step", "Category", "Verified", "Glitch", "Share", "Sampled", "Confirmed")
    return [grid(head, rows)] if rows else []


def _tokens(rows: Sequence[TokenRow]) -> list[str]:
    found = found_tokens(rows)
    if not found:
        return []
    lines = [
        (code(spelled_token(row.token)), str(row.token.id), row.verdict, _asr(row), _p(row))
        for row in found[:SHOWN]
    ]
    parts = [grid(("Token", "Id", "Verdict", "ASR (95 % interval)", "p"), lines)]
    hidden = len(found) - len(lines)
    return [*parts, f"… and {hidden:,} more in `tokens.jsonl`."] if hidden else parts


def _asr(row: TokenRow) -> str:
    if not row.sampled:
        return "–"
    low, high = percent(row.sampled.asr_low), percent(row.sampled.asr_high)
    return f"{row.sampled.failures}/{row.sampled.attempts} ({low} to {high})"


def _p(row: TokenRow) -> str:
    return figure(row.closest[1].p) if row.closest else "–"


def _step_table(table: StepTable) -> list[str]:
    columns = table.filled
    rows = [
        [_cell(row.get(column.name), column) for column in columns] for row in table.rows[:SHOWN]
    ]
    title = f"**{prose(table.title)}** ({code(table.step)})"
    parts = [title, grid([prose(column.label) for column in columns], rows)]
    hidden = len(table.rows) - len(rows)
    return [*parts, f"… and {hidden:,} more in `{table.path}`."] if hidden else parts


def _cell(cell: Any, column: StepColumn) -> str:
    text = shown(cell, column)
    return code(text) if column.kind == "token" and cell is not None else escaped(text)


def _model(record: RunRecord) -> list[str]:
    model = record.model
    if model is None:
        return []
    sentence = (
        f"{prose(model.architecture)}, {model.quantization} on {model.device}: "
        f"{size(model.bytes)} held, peak {size(model.peak_bytes)}; template "
        f"{prose(model.template)} ({prose(model.template_rule)})."
    )
    return [sentence]
