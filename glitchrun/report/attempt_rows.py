"""What the model said in each attempt, and attempts.jsonl, which has a line for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.behaviour.symptoms import MEANINGS, symptom
from glitchrun.events import Attempt, Sampled, Token
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import count, share
from glitchrun.report.token_rows import controls_elsewhere, controls_of, facts_by_token
from glitchrun.report.writing import replacing, to_json

FIELDS = ("step", "token_id", "probe", "attempt", "text", "ids", "said", "symptom", "control")
"""The fields of a line of attempts.jsonl, in order."""


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
        fact.token.id: attempts_of(fact, control=is_control)
        for fact, is_control in facts
        if fact and fact.continuations
    }


def attempts_of(fact: Sampled, *, control: bool = False) -> tuple[AttemptRow, ...]:
    """The attempts on one token, by probe and then by number."""
    return tuple(
        AttemptRow(
            fact.token, one, None if one.said else symptom(fact.token.text, one.text), control
        )
        for one in fact.continuations
    )


def symptom_rows(record: RunRecord) -> list[dict[str, str]]:
    """How often a step's own tokens had each symptom, as text: one row per step and symptom that
    occurs, the most frequent first, then a row for the continuations that contain the token."""
    found = []
    for step in record.steps:
        rows = [row for some in attempts_by_token(step).values() for row in some if not row.control]
        tokens: dict[str | None, set[int]] = {}
        counts = Counter(row.symptom for row in rows)
        for row in rows:
            tokens.setdefault(row.symptom, set()).add(row.token.id)
        found += [
            {
                "step": step.id,
                "symptom": name or "said",
                "meaning": MEANINGS[name] if name else "the token itself",
                "continuations": count(number),
                "share": share(number, len(rows)),
                "tokens": count(len(tokens[name])),
            }
            for name, number in sorted(
                counts.items(), key=lambda item: (item[0] is None, -item[1], item[0])
            )
        ]
    return found


def attempt_lines(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of attempts.jsonl, by step, token, probe and number."""
    for step in record.steps:
        for rows in attempts_by_token(step).values():
            for row in rows:
                one = row.attempt
                said = (one.probe, one.number, one.text, one.ids, one.said)
                cells = (step.id, row.token.id, *said, row.symptom, row.control)
                yield dict(zip(FIELDS, cells, strict=True))


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
