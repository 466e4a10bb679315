"""Writes the artifacts about tokens: tokens.jsonl, with a line for each step and token;
tokens.json, the MLflow table of them; and attempts.jsonl, with a line for each continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glitchrun.behaviour.symptoms import symptom
from glitchrun.events import Attempt, Control, ProbeResult, Sampled, Token, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.indicators import of_step
from glitchrun.report.token_rows import (
    TokenRow,
    controls_elsewhere,
    controls_of,
    facts_by_token,
    most_interesting_first,
)
from glitchrun.report.writing import (
    Encoded,
    all_rounded,
    json_rows,
    mlflow_table,
    replacing,
    to_json,
)
from glitchrun.verdicts import classes
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
        file.writelines(f"{line}\n" for line in json_rows(_fields(_lines(record), _encoded_probes)))
    with replacing(table) as file:
        file.writelines(mlflow_table(_table_columns(most_interesting_first(record))))
    return lines, table


def token_lines(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of tokens.jsonl: in step order, then in order of first appearance.

    Every line has every field; a field is None if the step did not measure it.
    """
    fields = _fields(_lines(record), _probes)
    for cells in zip(*fields.values(), strict=True):
        yield dict(zip(fields, cells, strict=True))


class _Line(NamedTuple):
    """The results of one step for one token: a line of tokens.jsonl."""

    step: str
    token: Token
    verified: Verified | None
    sampled: Sampled | None
    control: Control | None
    indicators: dict[str, float | None] | None
    own: bool = True
    """False for a token that the step examined as a control only. It has no verdict."""


def _lines(record: RunRecord) -> list[_Line]:
    return [line for step in record.steps for line in _lines_of(step)]


def _lines_of(step: StepRecord) -> Iterator[_Line]:
    drawn = (*controls_of(step), *controls_elsewhere(step))
    controls = {control.token.id: control for control in drawn}
    found = of_step(step)
    for token_id, (verified, sampled) in facts_by_token(step).items():
        token = (verified or sampled).token  # type: ignore[union-attr]
        values = found.of(token_id) if found else None
        yield _Line(step.id, token, verified, sampled, controls.pop(token_id, None), values)
    for control in controls.values():
        verified = control.fact if isinstance(control.fact, Verified) else None
        sampled = control.fact if isinstance(control.fact, Sampled) else None
        values = found.of(control.token.id) if found else None
        yield _Line(step.id, control.token, verified, sampled, control, values, own=False)


_Probes = Callable[[Sequence[Verified | None]], Sequence[Any]]


def _fields(lines: Sequence[_Line], probes: _Probes) -> dict[str, Sequence[Any]]:
    """The fields of tokens.jsonl, by name, each of them for all lines: a vocabulary has many.

    Args:
        lines: The lines.
        probes: What makes the field `probes` of verdicts.
    """
    tokens = [line.token for line in lines]
    verified = [line.verified for line in lines]
    sampled = [line.sampled for line in lines]
    controls = [line.control for line in lines]
    return {
        "step": [line.step for line in lines],
        "token_id": [token.id for token in tokens],
        "token": [token.text for token in tokens],
        "piece": [token.piece for token in tokens],
        "category": [token.category for token in tokens],
        "norm": all_rounded(token.norm for token in tokens),
        "presented_intact": [
            (not one or one.presented_intact) and (not other or other.intact)
            for one, other in zip(verified, sampled, strict=True)
        ],
        "probes": probes(verified),
        "glitch": [one.verified.glitch if one.verified and one.own else None for one in lines],
        "emitted": [one.emitted if one else None for one in verified],
        "attempts": [one.attempts if one else None for one in sampled],
        "failures": [one.failures if one else None for one in sampled],
        "asr": all_rounded(one.asr if one else None for one in sampled),
        "asr_low": all_rounded(one.asr_low if one else None for one in sampled),
        "asr_high": all_rounded(one.asr_high if one else None for one in sampled),
        "confirmed": [one.sampled.confirmed if one.sampled and one.own else None for one in lines],
        "emitted_text": [one.emitted_text if one else None for one in verified],
        "control_of": [one.of if one else None for one in controls],
        "control_alike": [one.alike if one else None for one in controls],
        "control_elsewhere": [one.elsewhere if one else None for one in controls],
        "false_alarm": [one.alarm if one else None for one in controls],
        "indicators": [line.indicators for line in lines],
        **_classes(verified),
    }


def _classes(verified: Sequence[Verified | None]) -> dict[str, Sequence[Any]]:
    """The field `classes`; nothing where no protocol has any, as in most runs."""
    found = [(classes(one) or None) if one else None for one in verified]
    return {"classes": found} if any(found) else {}


def _probes(verified: Sequence[Verified | None]) -> list[dict[str, dict[str, Any]] | None]:
    """The field `probes`: the results by probe; None without a verdict."""
    columns = _results(verified)
    rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    return [
        {name: next(rows) | _positions(result) for name, result in one.probes.items()}
        | _answers(one)
        if one
        else None
        for one in verified
    ]


def _positions(result: ProbeResult) -> dict[str, Any]:
    """The probabilities at several greedy positions; nothing for one, as in most probes."""
    return {"at_positions": all_rounded(result.at_positions)} if result.at_positions else {}


def _answers(verified: Verified) -> dict[str, dict[str, Any]]:
    """The answers that were compared as text, by probe."""
    return {
        name: {
            "expected": answer.expected,
            "answer": answer.text,
            "pass": answer.passed,
            "decided_in": answer.decided_in,
        }
        for name, answer in verified.answers.items()
    }


def _encoded_probes(verified: Sequence[Verified | None]) -> list[Encoded | None]:
    """The field `probes` as JSON."""
    rows = iter(json_rows(_results(verified)))
    names = {name: to_json(name) for one in verified if one for name in one.probes}
    return [_encoded(one, names, rows) if one else None for one in verified]


def _encoded(verified: Verified, names: Mapping[str, str], rows: Iterator[str]) -> Encoded:
    parts = [f"{names[name]}:{next(rows)}" for name in verified.probes]
    for place, result in enumerate(verified.probes.values()):
        if result.at_positions:
            parts[place] = f"{parts[place][:-1]},{to_json(_positions(result))[1:]}"
    if verified.answers:
        parts.append(to_json(_answers(verified))[1:-1])
    return Encoded(f"{{{','.join(parts)}}}")


def _results(verified: Sequence[Verified | None]) -> dict[str, Sequence[Any]]:
    """The fields of all results of all probes, by name."""
    results = [result for one in verified if one for result in one.probes.values()]
    return {
        "p": all_rounded(result.p for result in results),
        "rank": [result.rank for result in results],
        "entropy": all_rounded(result.entropy for result in results),
        "argmax": [result.argmax for result in results],
        "gap": all_rounded(result.gap for result in results),
        "pass": [result.passed for result in results],
        "decided_in": [result.decided_in for result in results],
    }


def _table_columns(rows: Sequence[TokenRow]) -> dict[str, Sequence[Any]]:
    """The columns of tokens.json; p, rank and entropy are of the probe with the highest p.

    MLflow's view groups by the first column and compares the second; it drops leading spaces and
    shows line breaks as blanks, hence the visible form of the token.
    """
    tokens = [row.token for row in rows]
    sampled = [row.sampled for row in rows]
    closest = [row.closest[1] if row.closest else None for row in rows]
    return {
        "token_repr": [visible_token(token) for token in tokens],
        "verdict": [row.verdict for row in rows],
        "step": [", ".join(row.steps) for row in rows],
        "token_id": [token.id for token in tokens],
        "category": [token.category for token in tokens],
        "glitch": [row.glitch for row in rows],
        "p": all_rounded(result.p if result else None for result in closest),
        "rank": [result.rank if result else None for result in closest],
        "entropy": all_rounded(result.entropy if result else None for result in closest),
        "probe": [row.closest[0] if row.closest else None for row in rows],
        "asr": all_rounded(one.asr if one else None for one in sampled),
        "asr_low": all_rounded(one.asr_low if one else None for one in sampled),
        "asr_high": all_rounded(one.asr_high if one else None for one in sampled),
        "attempts": [one.attempts if one else None for one in sampled],
        "failures": [one.failures if one else None for one in sampled],
        "confirmed": [row.confirmed for row in rows],
        "emitted": [row.verified.emitted if row.verified else None for row in rows],
        "emitted_repr": [None if row.answer is None else visible(row.answer) for row in rows],
        "norm": all_rounded(token.norm for token in tokens),
        "presented_intact": [row.intact for row in rows],
        "control_of": [row.control_of for row in rows],
    }


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
