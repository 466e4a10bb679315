"""What the model said in each attempt, and attempts.jsonl, which has a line for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.behaviour.symptoms import symptom
from glitchrun.events import Attempt, Sampled, Token
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.token_rows import controls_elsewhere, controls_of, facts_by_token
from glitchrun.report.writing import replacing, to_json


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """A continuation with its symptom."""

    token: Token
    attempt: Attempt
    symptom: str | None
    """A key of `SYMPTOMS`; None if the model said the token."""
    control: bool = False
    """Whether the step examined the token as a control only."""


def attempts_by_token(step: StepRecord) -> dict[int, tuple[AttemptRow, ...]]:
    """The attempts on each token of a step by token id, by probe and then by number.

    The step's own tokens come first, then its controls. Empty for steps that sample nothing, and
    for steps recorded by a version that did not keep what was said.
    """
    facts = [(sampled, False) for _, sampled in facts_by_token(step).values()]
    own = {fact.token.id for fact, _ in facts if fact}
    drawn = (*controls_of(step), *controls_elsewhere(step))
    facts += [
        (control.fact, True)
        for control in drawn
        if isinstance(control.fact, Sampled) and control.token.id not in own
    ]
    return {
        fact.token.id: tuple(_row(fact.token, one, is_control) for one in fact.continuations)
        for fact, is_control in facts
        if fact and fact.continuations
    }


def _row(token: Token, attempt: Attempt, is_control: bool) -> AttemptRow:
    found = None if attempt.said else symptom(token.text, attempt.text)
    return AttemptRow(token, attempt, found, is_control)


def symptom_counts(step: StepRecord) -> Counter[str]:
    """How many continuations of a step's own tokens have each symptom."""
    rows = [row for some in attempts_by_token(step).values() for row in some]
    return Counter(row.symptom for row in rows if row.symptom and not row.control)


def attempt_lines(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of attempts.jsonl, by step, token, probe and number."""
    for step in record.steps:
        for rows in attempts_by_token(step).values():
            for row in rows:
                yield {
                    "step": step.id,
                    "token_id": row.token.id,
                    "probe": row.attempt.probe,
                    "attempt": row.attempt.number,
                    "text": row.attempt.text,
                    "ids": row.attempt.ids,
                    "said": row.attempt.said,
                    "symptom": row.symptom,
                    "control": row.control,
                }


def write_attempts(record: RunRecord, folder: Path) -> list[Path]:
    """Writes attempts.jsonl if the run kept attempts. Equal records give equal bytes.

    Returns:
        Its path, if it was written.

    Raises:
        OSError: The file cannot be written.
    """
    lines = attempt_lines(record)
    first = next(lines, None)
    if first is None:
        return []
    path = folder / "attempts.jsonl"
    with replacing(path) as file:
        file.write(to_json(first) + "\n")
        for line in lines:
            file.write(to_json(line) + "\n")
    return [path]
