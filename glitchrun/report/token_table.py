"""The data of the searchable table of tokens, which page/report.js renders."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord
from glitchrun.report.formatting import spelled, spelled_token
from glitchrun.report.token_details import (
    DIGITS,
    Attempts,
    attempts_by_step,
    attempts_on,
    token_details,
)
from glitchrun.report.token_rows import VERDICTS, TokenRow, most_interesting_first, token_rows
from glitchrun.report.writing import rounded


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table. `kind` tells report.js how to show and sort its cells."""

    label: str
    kind: str
    """token, id, choice (cells are indices into `choices`), integer, number (three significant
    digits), fixed (a fixed number of decimals) or rate (cells are failures, attempts and both
    bounds)."""
    meaning: str
    cell: Callable[[TokenRow], Any]
    in_details: bool = False
    """Whether only opened rows show it. It can be filtered by all the same."""


_VERDICTS = tuple(VERDICTS)
COLUMNS = (
    Column("Token", "token", "Decoded text, or its bytes.", lambda row: spelled_token(row.token)),
    Column(
        "Piece", "token", "Vocabulary entry.", lambda row: spelled(row.token.piece), in_details=True
    ),
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
        "fixed",
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
        "fixed",
        "L2 norm of the input embedding.",
        lambda row: row.token.norm,
    ),
    Column(
        "Probe",
        "choice",
        "The probe with the highest probability; p, rank and entropy are its.",
        lambda row: row.closest[0] if row.closest else None,
        in_details=True,
    ),
    Column(
        "Decided in",
        "choice",
        "Dtype in which the verdict was decided.",
        lambda row: row.decided_in or None,
        in_details=True,
    ),
    Column(
        "Intact",
        "choice",
        "Whether the prompt, encoded as text, keeps the token's id.",
        lambda row: "yes" if row.intact else "no",
        in_details=True,
    ),
    Column("Steps", "choice", "Steps that examined the token.", lambda row: ", ".join(row.steps)),
    Column(
        "Control of",
        "id",
        "Id of the token that this one is a control for.",
        lambda row: row.control_of,
    ),
)


_ALWAYS = ("Token", "Id", "Verdict")
"""Columns that are shown whatever they contain."""


def token_table(record: RunRecord) -> str:
    """The table as one JSON object, safe inside `<script type="application/json">`.

    Columns that are empty are left out, and those with one value for all tokens are under `folded`.
    """
    rows = most_interesting_first(token_rows(record))
    attempts = attempts_by_step(record)
    symptom = Column(
        "Symptom",
        "choice",
        "The most frequent kind of answer in the failed attempts.",
        partial(_symptom, attempts=attempts),
    )
    columns = [(one, [one.cell(row) for row in rows]) for one in (*COLUMNS, symptom)]
    values = [{*map(repr, cells)} - {"None"} for _, cells in columns]
    kept = [
        (column, cells)
        for (column, cells), found in zip(columns, values, strict=True)
        if column.label in _ALWAYS or len(found) > 1 or (found and len(rows) == 1)
    ]
    folded = [
        (column.label, next(cell for cell in cells if cell is not None))
        for (column, cells), found in zip(columns, values, strict=True)
        if column.label not in _ALWAYS and len(found) == 1 and len(rows) > 1
    ]
    shown = [_column(column, cells) for column, cells in kept]
    data = {
        "columns": [head for head, _ in shown],
        "cells": [cells for _, cells in shown],
        "folded": [[label, _plain(value)] for label, value in folded],
        "count": len(rows),
        "severe": SEVERE,
        "details": token_details(record, rows, columns[0][1], attempts),
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # `<` and `&` only occur inside strings, where an escape has the same meaning: no text can close
    # the script element.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    """A value that all tokens share: a rate as text, a number rounded."""
    if isinstance(value, list):
        return f"{value[0]}/{value[1]}"
    return rounded(value, DIGITS) if isinstance(value, float) else value


def _column(column: Column, cells: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    head: dict[str, Any] = {"label": column.label, "kind": column.kind, "title": column.meaning}
    if column.in_details:
        head["inDetails"] = True
    if column.kind == "choice":
        head["choices"] = _choices(cells)
        places = {choice: place for place, choice in enumerate(head["choices"])}
        cells = [places.get(cell) for cell in cells]
    if column.kind == "fixed":
        finite = [cell for cell in cells if cell is not None and math.isfinite(cell)]
        largest = max(map(abs, finite), default=0.0)
        head["decimals"] = max(0, DIGITS - math.floor(math.log10(largest))) if largest else 0
        cells = [_at(cell, head["decimals"]) for cell in cells]
    return head, cells


def _at(value: float | None, decimals: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, decimals)


def _choices(cells: Sequence[str | None]) -> list[str]:
    """The distinct values: verdicts in the order of `VERDICTS`, others alphabetically."""
    found = {cell for cell in cells if cell is not None}
    return [verdict for verdict in _VERDICTS if verdict in found] or sorted(found)


def _symptom(row: TokenRow, attempts: Attempts) -> str | None:
    found = Counter(one.symptom for one in attempts_on(row, attempts) if one.symptom)
    return min(found, key=lambda name: (-found[name], name)) if found else None


def _closest(row: TokenRow, name: str) -> float | None:
    if not row.closest:
        return None
    value = getattr(row.closest[1], name)
    return value if isinstance(value, int) or name == "entropy" else rounded(value, DIGITS)


def _rate(row: TokenRow) -> list[Any] | None:
    fact = row.sampled
    if not fact:
        return None
    return [fact.failures, fact.attempts, rounded(fact.asr_low, 3), rounded(fact.asr_high, 3)]
