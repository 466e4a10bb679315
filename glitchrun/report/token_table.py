"""The data of the searchable table of tokens, which page/report.js renders, and of what is behind
each row, which page/details.js shows when it is opened."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from glitchrun.events import SEVERE, ProbeResult
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import spelled, spelled_token
from glitchrun.report.token_files import AttemptRow, attempts_by_token
from glitchrun.report.token_rows import VERDICTS, TokenRow, most_interesting_first, token_rows
from glitchrun.report.writing import rounded
from glitchrun.spec.probes import PROBES, TOKEN

DIGITS = 3
"""Significant digits of numbers on the page; tokens.jsonl has more."""


ATTEMPTS = 20_000
"""Continuations on the page, those of the most interesting tokens; attempts.jsonl has all."""


Attempts = Mapping[str, Mapping[int, Sequence[AttemptRow]]]
"""By step and token id."""


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


# What is behind each row


def token_details(
    record: RunRecord, rows: Sequence[TokenRow], shown: Sequence[str], attempts: Attempts
) -> dict[str, Any]:
    """JSON-ready data beside the columns of the table; lists have an item for each row. `shown`
    is the column of the tokens' texts."""
    probes = dict.fromkeys(name for row in rows if row.verified for name in row.verified.probes)
    dtypes: dict[str, int] = {}
    steps: dict[tuple[str, str], int] = {}
    return {
        "raw": {
            place: row.token.text
            for place, (row, text) in enumerate(zip(rows, shown, strict=True))
            if text.replace("␣", " ") != row.token.text
        },
        "steps": [steps.setdefault((row.steps[0], row.steps[-1]), len(steps)) for row in rows],
        "stepPairs": [*steps],
        "probes": [
            {"name": name, "results": [_result(row, name, dtypes) for row in rows]}
            for name in probes
        ],
        "dtypes": [*dtypes],
        "prompts": [prompt for step in record.steps for prompt in _prompts(step)],
        "outcomes": {
            place: "".join("x" if failed else "." for failed in row.sampled.outcomes)
            for place, row in enumerate(rows)
            if row.sampled
        },
        **_attempts(rows, attempts),
    }


def attempts_by_step(record: RunRecord) -> Attempts:
    """The continuations that the steps kept."""
    return {step.id: found for step in record.steps if (found := attempts_by_token(step))}


def attempts_on(row: TokenRow, attempts: Attempts) -> Sequence[AttemptRow]:
    """The continuations behind a row; empty if the token was not sampled or they were not kept."""
    return attempts.get(row.steps[-1], {}).get(row.token.id, ()) if row.sampled else ()


def _result(row: TokenRow, probe: str, dtypes: dict[str, int]) -> list[Any] | None:
    """p, rank, entropy, gap, the most probable id, and one number for passed (1), intact (2) and
    the place of the dtype (times 4).

    The probe that decides has None for p, rank and entropy, which are in the table.
    """
    found = row.verified.probes.get(probe) if row.verified else None
    if found is None:
        return None
    decides = row.closest is not None and row.closest[0] == probe
    numbers = (None, None, None) if decides else _numbers(found)
    dtype = dtypes.setdefault(found.decided_in, len(dtypes))
    marks = found.passed + 2 * found.intact + 4 * dtype
    return [*numbers, rounded(found.gap, DIGITS), found.argmax, marks]


def _numbers(found: ProbeResult) -> tuple[Any, Any, Any]:
    return rounded(found.p, DIGITS), found.rank, rounded(found.entropy, DIGITS + 1)


def _prompts(step: StepRecord) -> list[dict[str, Any]]:
    """The prompts of a step by probe: as sent, or as the probe defines them in old records."""
    sent: dict[str, Sequence[str]] = {}
    for timed in step.batches:
        for name, parts in timed.batch.prompts.items():
            sent.setdefault(name, parts)
    asked = dict.fromkeys(name for timed in step.batches for name in _probes(timed.batch.facts))
    return [
        {"step": step.id, "probe": name, "sent": name in sent, "texts": [*map(_shown, texts)]}
        for name in (*sent, *(name for name in asked if name not in sent))
        if (texts := sent.get(name) or _defined(name))
    ]


def _probes(facts: Sequence[Any]) -> list[str]:
    facts = [getattr(fact, "fact", fact) for fact in facts]
    return [name for fact in facts for name in getattr(fact, "probes", ())]


def _defined(probe: str) -> Sequence[str]:
    """The probe's user text around the token, and below it the beginning of the answer."""
    if probe not in PROBES:
        return ()
    before, _, after = PROBES[probe].user.partition(TOKEN)
    return before, f"{after}\n{PROBES[probe].prefill}"


def _shown(text: str) -> str:
    """Text with invisible characters spelled out, except spaces and line breaks."""
    return "\n".join(spelled(line).replace("␣", " ") for line in text.split("\n"))


def _attempts(rows: Sequence[TokenRow], attempts: Attempts) -> dict[str, Any]:
    """`attempts` by row, as [place of the probe, number, said, text, place of the symptom]."""
    probes: dict[str, int] = {}
    symptoms: dict[str | None, int] = {}
    found: dict[int, list[list[Any]]] = {}
    left = ATTEMPTS
    for place, row in enumerate(rows):
        said = attempts_on(row, attempts)
        if said and len(said) <= left:
            left -= len(said)
            found[place] = [
                [
                    probes.setdefault(one.attempt.probe, len(probes)),
                    one.attempt.number,
                    int(one.attempt.said),
                    _shown(one.attempt.text),
                    symptoms.setdefault(one.symptom, len(symptoms)),
                ]
                for one in said
            ]
    return {"attempts": found, "attemptProbes": [*probes], "symptoms": [*symptoms]}
