"""The data of the searchable table of tokens, which page/report.js renders, and of the details of
each row, which page/details.js shows when it is opened."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.events import SEVERE, Sampled
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import spelled, spelled_token
from glitchrun.report.token_files import AttemptRow, attempts_by_token
from glitchrun.report.token_rows import VERDICTS, TokenRow, most_interesting_first
from glitchrun.report.writing import all_rounded, rounded
from glitchrun.spec.probes import PROBES, TOKEN

DIGITS = 3
"""Significant digits of numbers on the page; tokens.jsonl has more."""


ATTEMPTS = 20_000
"""Continuations on the page, those of the most interesting tokens; attempts.jsonl has all."""


Attempts = Mapping[str, Mapping[int, Sequence[AttemptRow]]]
"""By step and token id."""


@dataclass(frozen=True, slots=True)
class TokenColumn:
    """A column of the table. `kind` tells report.js how to show and sort its cells."""

    label: str
    kind: str
    """token, id, choice (cells are indices into `choices`), integer, number (three significant
    digits), fixed (a fixed number of decimals) or rate (cells are failures, attempts and both
    bounds)."""
    meaning: str
    cells: Sequence[Any]
    in_details: bool = False
    """Whether only opened rows show it. It can be filtered by all the same."""


_VERDICTS = tuple(VERDICTS)


def _columns(rows: Sequence[TokenRow], attempts: Attempts) -> list[TokenColumn]:
    """Each column for all rows: a vocabulary has many."""
    return [*_verdict_columns(rows), *_answer_columns(rows), *_origin_columns(rows, attempts)]


def _verdict_columns(rows: Sequence[TokenRow]) -> list[TokenColumn]:
    """The token and its verdict."""
    tokens = [row.token for row in rows]
    return [
        TokenColumn("Token", "token", "Decoded text, or its bytes.", [*map(spelled_token, tokens)]),
        TokenColumn(
            "Piece", "token", "Vocabulary entry.", [spelled(one.piece) for one in tokens], True
        ),
        TokenColumn("Id", "id", "Token id.", [token.id for token in tokens]),
        TokenColumn("Verdict", "choice", "See the legend.", [row.verdict for row in rows]),
        TokenColumn(
            "ASR",
            "rate",
            "Failed attempts of all attempts, with Wilson's 95 % interval.",
            [row.sampled and _rate(row.sampled) for row in rows],
        ),
    ]


def _answer_columns(rows: Sequence[TokenRow]) -> list[TokenColumn]:
    """What the model answered to the probe in which the token was most probable."""
    closest = [row.closest for row in rows]
    answers = [row.answer for row in rows]
    return [
        TokenColumn(
            "p",
            "number",
            "Probability of the token where the probe asks for it.",
            all_rounded((one[1].p if one else None for one in closest), DIGITS),
        ),
        TokenColumn(
            "Rank",
            "integer",
            "Rank of the token there, from 1.",
            [one[1].rank if one else None for one in closest],
        ),
        TokenColumn(
            "Entropy",
            "fixed",
            "Entropy of the next token there, in nats.",
            [one[1].entropy if one else None for one in closest],
        ),
        TokenColumn(
            "Instead",
            "choice",
            "Kind of answer given instead of the token.",
            [row.verified.emitted if row.verified else None for row in rows],
        ),
        TokenColumn(
            "Answer",
            "token",
            "The answer given instead of the token.",
            [None if answer is None else spelled(answer) for answer in answers],
        ),
    ]


def _origin_columns(rows: Sequence[TokenRow], attempts: Attempts) -> list[TokenColumn]:
    """Where the token and its verdict come from, and what was said in its attempts."""
    tokens = [row.token for row in rows]
    closest = [row.closest for row in rows]
    return [
        TokenColumn(
            "Category", "choice", "Kind of vocabulary entry.", [token.category for token in tokens]
        ),
        TokenColumn(
            "Norm", "fixed", "L2 norm of the input embedding.", [token.norm for token in tokens]
        ),
        TokenColumn(
            "Probe",
            "choice",
            "The probe with the highest probability; p, rank and entropy come from it.",
            [one[0] if one else None for one in closest],
            True,
        ),
        TokenColumn(
            "Decided in",
            "choice",
            "Dtype in which the verdict was decided.",
            [row.decided_in or None for row in rows],
            True,
        ),
        TokenColumn(
            "Intact",
            "choice",
            "Whether the prompt, encoded as text, keeps the token's id.",
            ["yes" if row.intact else "no" for row in rows],
            True,
        ),
        TokenColumn(
            "Steps",
            "choice",
            "Steps that examined the token.",
            [", ".join(row.steps) for row in rows],
        ),
        TokenColumn(
            "Control of",
            "id",
            "Id of the token that this one is a control for.",
            [row.control_of for row in rows],
        ),
        TokenColumn(
            "Symptom",
            "choice",
            "The most frequent kind of answer in the failed attempts.",
            [_symptom(row, attempts) for row in rows],
        ),
    ]


_ALWAYS = ("Token", "Id", "Verdict")
"""Columns that are shown whatever they contain."""


def token_table(record: RunRecord) -> str:
    """The table as one JSON object, safe inside `<script type="application/json">`.

    Columns that are empty are left out, and those with one value for all tokens are under `folded`.
    """
    rows = most_interesting_first(record)
    attempts = attempts_by_step(record)
    columns = _columns(rows, attempts)
    shown = [_head_and_cells(one) for one in columns if _is_shown(one)]
    alike = [one for one in columns if not _is_shown(one)] if len(rows) > 1 else []
    values = [(one.label, _first(one.cells)) for one in alike]
    data = {
        "columns": [head for head, _ in shown],
        "cells": [cells for _, cells in shown],
        "folded": [[label, _plain(value)] for label, value in values if value is not None],
        "count": len(rows),
        "severe": SEVERE,
        "details": token_details(record, rows, columns[0].cells, attempts),
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # `<` and `&` only occur inside strings, where an escape has the same meaning: no text can close
    # the script element.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _is_shown(column: TokenColumn) -> bool:
    """Whether two of its cells have different values, or it is the only one of the table."""
    if column.label in _ALWAYS:
        return True
    first = _first(column.cells)
    if len(column.cells) == 1:
        return first is not None
    return any(cell != first for cell in column.cells if cell is not None)


def _first(cells: Sequence[Any]) -> Any:
    """The first cell that is not empty; None if all are."""
    return next((cell for cell in cells if cell is not None), None)


def _plain(value: Any) -> Any:
    """A value that all tokens share: a rate as text, a number rounded."""
    if isinstance(value, list):
        return f"{value[0]}/{value[1]}"
    return rounded(value, DIGITS) if isinstance(value, float) else value


def _head_and_cells(column: TokenColumn) -> tuple[dict[str, Any], Sequence[Any]]:
    head: dict[str, Any] = {"label": column.label, "kind": column.kind, "title": column.meaning}
    cells = column.cells
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
    if not row.sampled:
        return None
    found = Counter(one.symptom for one in attempts_on(row, attempts) if one.symptom)
    return min(found, key=lambda name: (-found[name], name)) if found else None


def _rate(fact: Sampled) -> list[Any]:
    return [fact.failures, fact.attempts, rounded(fact.asr_low, 3), rounded(fact.asr_high, 3)]


# The details of each row


def token_details(
    record: RunRecord, rows: Sequence[TokenRow], shown: Sequence[str], attempts: Attempts
) -> dict[str, Any]:
    """JSON-ready data in addition to the columns of the table; lists have an item for each row.
    `shown` is the column of the tokens' texts."""
    probes = dict.fromkeys(name for row in rows if row.verified for name in row.verified.probes)
    dtypes: dict[str, int] = {}
    steps: dict[tuple[str, str], int] = {}
    places = [steps.setdefault((row.steps[0], row.steps[-1]), len(steps)) for row in rows]
    return {
        "raw": {
            place: row.token.text
            for place, (row, text) in enumerate(zip(rows, shown, strict=True))
            if text.replace("␣", " ") != row.token.text
        },
        "steps": places if len(steps) > 1 else [],
        "stepPairs": [*steps],
        "probes": [
            {"name": name, "results": [_result(row, name, dtypes) for row in rows]}
            for name in probes
        ],
        "answers": {
            place: [
                [name, _shown(answer.text), answer.expected, int(answer.passed)]
                for name, answer in row.verified.answers.items()
            ]
            for place, row in enumerate(rows)
            if row.verified and row.verified.answers
        },
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
    """The continuations of a row; empty if the token was not sampled or they were not kept."""
    return attempts.get(row.steps[-1], {}).get(row.token.id, ()) if row.sampled else ()


def _result(row: TokenRow, probe: str, dtypes: dict[str, int]) -> list[Any] | int | None:
    """Marks, gap, the most probable id and, unless the table has them because the probe decides,
    p, rank and entropy. The marks alone if the token is the most probable one.

    The marks are the sum of 1 for passed, 2 for intact, and 4 times the place of the dtype.
    """
    found = row.verified.probes.get(probe) if row.verified else None
    if found is None:
        return None
    marks = found.passed + 2 * found.intact + 4 * dtypes.setdefault(found.decided_in, len(dtypes))
    answer = [marks, rounded(found.gap, DIGITS), found.argmax]
    if row.closest is not None and row.closest[0] == probe:
        return marks if not found.gap and found.argmax == row.token.id else answer
    p, entropy = rounded(found.p, DIGITS), rounded(found.entropy, DIGITS + 1)
    return [*answer, p, found.rank, entropy]


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
