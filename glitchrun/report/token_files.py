"""tokens.jsonl, with a line for each step and token, tokens.json, the MLflow table of them, and
attempts.jsonl, with a line for what was said in each attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.behaviour.symptoms import symptom
from glitchrun.events import Attempt, Control, ProbeResult, Sampled, Token, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.token_rows import (
    TokenRow,
    controls_elsewhere,
    controls_of,
    facts_by_token,
    most_interesting_first,
    token_rows,
)
from glitchrun.report.writing import mlflow_table, replacing, rounded, to_json
from glitchrun.vocabulary.text import visible, visible_token


def write_tokens(record: RunRecord, folder: Path) -> tuple[Path, Path]:
    """Writes tokens.jsonl and tokens.json. Equal records give equal bytes.

    Returns:
        The two paths. Each file appears whole or not at all.

    Raises:
        OSError: A file cannot be written.
    """
    lines, table = folder / "tokens.jsonl", folder / "tokens.json"
    with replacing(lines) as file:
        for line in token_lines(record):
            file.write(to_json(line) + "\n")
    rows = most_interesting_first(token_rows(record))
    with replacing(table) as file:
        file.writelines(
            mlflow_table(COLUMNS, ([cell(row) for cell in COLUMNS.values()] for row in rows))
        )
    return lines, table


def token_lines(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of tokens.jsonl: in step order, then in order of first appearance.

    Every line has every field; a field is None if the step did not measure it.
    """
    for step in record.steps:
        drawn = (*controls_of(step), *controls_elsewhere(step))
        controls = {control.token.id: control for control in drawn}
        for token_id, (verified, sampled) in facts_by_token(step).items():
            yield _line(step.id, verified, sampled, controls.pop(token_id, None))
        for control in controls.values():
            yield _control_line(step.id, control)


def _control_line(step: str, control: Control) -> dict[str, Any]:
    """The line of a token that the step examined as a control only. It has no verdict."""
    verified = control.fact if isinstance(control.fact, Verified) else None
    sampled = control.fact if isinstance(control.fact, Sampled) else None
    line = _line(step, verified, sampled, control)
    return line | {"glitch": None, "confirmed": None}


def _line(
    step: str, verified: Verified | None, sampled: Sampled | None, control: Control | None
) -> dict[str, Any]:
    fact = verified or sampled
    assert fact is not None
    token = fact.token
    return {
        "step": step,
        "token_id": token.id,
        "token": token.text,
        "piece": token.piece,
        "category": token.category,
        "norm": rounded(token.norm),
        "presented_intact": TokenRow(token, (step,), verified, sampled).intact,
        "probes": _probes(verified) if verified else None,
        "glitch": verified.glitch if verified else None,
        "emitted": verified.emitted if verified else None,
        "attempts": sampled.attempts if sampled else None,
        "failures": sampled.failures if sampled else None,
        "asr": rounded(sampled.asr) if sampled else None,
        "asr_low": rounded(sampled.asr_low) if sampled else None,
        "asr_high": rounded(sampled.asr_high) if sampled else None,
        "confirmed": sampled.confirmed if sampled else None,
        "emitted_text": verified.emitted_text if verified else None,
        "control_of": control.of if control else None,
        "control_alike": control.alike if control else None,
        "control_elsewhere": control.elsewhere if control else None,
        "false_alarm": control.alarm if control else None,
    }


def _probes(verified: Verified) -> dict[str, dict[str, Any]]:
    return {name: _probe(result) for name, result in verified.probes.items()}


def _probe(result: ProbeResult) -> dict[str, Any]:
    return {
        "p": rounded(result.p),
        "rank": result.rank,
        "entropy": rounded(result.entropy),
        "argmax": result.argmax,
        "gap": rounded(result.gap),
        "pass": result.passed,
        "decided_in": result.decided_in,
    }


# MLflow's view groups by the first column and compares the second; it drops leading spaces and
# shows line breaks as blanks, hence the visible form of the token.
COLUMNS: dict[str, Callable[[TokenRow], Any]] = {
    "token_repr": lambda row: visible_token(row.token),
    "verdict": lambda row: row.verdict,
    "step": lambda row: ", ".join(row.steps),
    "token_id": lambda row: row.token.id,
    "category": lambda row: row.token.category,
    "glitch": lambda row: row.glitch,
    "p": lambda row: rounded(row.closest[1].p) if row.closest else None,
    "rank": lambda row: row.closest[1].rank if row.closest else None,
    "entropy": lambda row: rounded(row.closest[1].entropy) if row.closest else None,
    "probe": lambda row: row.closest[0] if row.closest else None,
    "asr": lambda row: rounded(row.sampled.asr) if row.sampled else None,
    "asr_low": lambda row: rounded(row.sampled.asr_low) if row.sampled else None,
    "asr_high": lambda row: rounded(row.sampled.asr_high) if row.sampled else None,
    "attempts": lambda row: row.sampled.attempts if row.sampled else None,
    "failures": lambda row: row.sampled.failures if row.sampled else None,
    "confirmed": lambda row: row.confirmed,
    "emitted": lambda row: row.verified.emitted if row.verified else None,
    "emitted_repr": lambda row: None if row.answer is None else visible(row.answer),
    "norm": lambda row: rounded(row.token.norm),
    "presented_intact": lambda row: row.intact,
    "control_of": lambda row: row.control_of,
}
"""Columns of tokens.json. p, rank and entropy are of the probe with the highest probability."""


# What was said in the attempts


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
