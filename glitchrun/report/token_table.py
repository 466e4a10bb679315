"""The data of the searchable table of tokens, which page/report.js renders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.report.formatting import spelled, spelled_token
from glitchrun.report.token_rows import VERDICTS, TokenRow, most_interesting_first, token_rows
from glitchrun.report.writing import rounded

DIGITS = 4
"""Significant digits of numbers on the page; tokens.jsonl has more."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table. `kind` tells report.js how to show and sort its cells."""

    label: str
    kind: str
    """token, id, choice (cells are indices into `choices`), integer, number or rate (cells are
    failures, attempts and both bounds)."""
    meaning: str
    cell: Callable[[TokenRow], Any]


_VERDICTS = tuple(VERDICTS)
COLUMNS = (
    Column("Token", "token", "Decoded text, or its bytes.", lambda row: spelled_token(row.token)),
    Column("Piece", "token", "Vocabulary entry.", lambda row: spelled(row.token.piece)),
    Column("Id", "id", "Token id.", lambda row: row.token.id),
    Column("Verdict", "choice", "See the legend.", lambda row: row.verdict),
    Column(
        "ASR",
        "rate",
        "Failed attempts of all attempts, with Wilson's 95 % interval.",
        lambda row: _rate(row),
    ),
    Column(
        "p",
        "number",
        "Probability of the token where the probe asks for it.",
        lambda row: _closest(row, "p"),
    ),
    Column(
        "Rank", "integer", "Rank of the token there, from 1.", lambda row: _closest(row, "rank")
    ),
    Column(
        "Entropy",
        "number",
        "Entropy of the next token there, in nats.",
        lambda row: _closest(row, "entropy"),
    ),
    Column(
        "Instead",
        "choice",
        "Kind of answer given instead of the token.",
        lambda row: row.verified.emitted if row.verified else None,
    ),
    Column(
        "Answer",
        "token",
        "The answer given instead of the token.",
        lambda row: None if row.answer is None else spelled(row.answer),
    ),
    Column("Category", "choice", "Kind of vocabulary entry.", lambda row: row.token.category),
    Column(
        "Norm",
        "number",
        "L2 norm of the input embedding.",
        lambda row: rounded(row.token.norm, DIGITS),
    ),
    Column(
        "Probe",
        "choice",
        "The probe with the highest probability; p, rank and entropy are its.",
        lambda row: row.closest[0] if row.closest else None,
    ),
    Column(
        "Decided in",
        "choice",
        "Dtype in which the verdict was decided.",
        lambda row: row.decided_in or None,
    ),
    Column(
        "Intact",
        "choice",
        "Whether the prompt, encoded as text, keeps the token's id.",
        lambda row: "yes" if row.intact else "no",
    ),
    Column("Steps", "choice", "Steps that examined the token.", lambda row: ", ".join(row.steps)),
    Column(
        "Control of",
        "id",
        "Id of the token that this one is a control for.",
        lambda row: row.control_of,
    ),
)


def token_table(record: RunRecord) -> str:
    """The table as one JSON object, safe inside `<script type="application/json">`."""
    rows = most_interesting_first(token_rows(record))
    columns = [(column, [column.cell(row) for row in rows]) for column in COLUMNS]
    shown = [_column(column, cells) for column, cells in columns if _is_shown(column, cells)]
    data = {
        "columns": [head for head, _ in shown],
        "cells": [cells for _, cells in shown],
        "count": len(rows),
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # `<` and `&` only occur inside strings, where an escape has the same meaning: no text can close
    # the script element.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _column(column: Column, cells: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    head: dict[str, Any] = {"label": column.label, "kind": column.kind, "title": column.meaning}
    if column.kind == "choice":
        head["choices"] = _choices(cells)
        places = {choice: place for place, choice in enumerate(head["choices"])}
        cells = [places.get(cell) for cell in cells]
    return head, cells


def _choices(cells: Sequence[str | None]) -> list[str]:
    """The distinct values: verdicts in the order of `VERDICTS`, others alphabetically."""
    found = {cell for cell in cells if cell is not None}
    return [verdict for verdict in _VERDICTS if verdict in found] or sorted(found)


def _is_shown(column: Column, cells: Sequence[Any]) -> bool:
    """Whether to show a column: not if all its cells are empty, or equal and implied."""
    if column.label in ("Probe", "Decided in", "Intact", "Steps"):
        return len(set(cells)) > 1 or cells[:1] == ["no"]
    return any(cell is not None for cell in cells)


def _closest(row: TokenRow, name: str) -> float | None:
    if not row.closest:
        return None
    value = getattr(row.closest[1], name)
    return value if isinstance(value, int) else rounded(value, DIGITS)


def _rate(row: TokenRow) -> list[Any] | None:
    fact = row.sampled
    if not fact:
        return None
    return [fact.failures, fact.attempts, rounded(fact.asr_low, 3), rounded(fact.asr_high, 3)]
