"""The summary that `apply` prints at the end of a run."""

from __future__ import annotations

import os
import textwrap
from contextlib import suppress
from pathlib import Path

from glitchrun.ledger.record import RunRecord
from glitchrun.report.formatting import counted, duration, figure, percent, size
from glitchrun.report.headline import DIGITS, headline
from glitchrun.report.outcome import ROLES, gate_evidence, gate_rule, outcome
from glitchrun.report.run_details import scope
from glitchrun.report.step_tables import FOLDER, step_tables
from glitchrun.report.token_rows import (
    TokenRow,
    found_tokens,
    named_tokens,
    token_rows,
    worst_first,
)
from glitchrun.report.totals import is_about_tokens
from glitchrun.terminal import styled
from glitchrun.vocabulary.text import visible_token

SHOWN = 10
"""Tokens listed; the others are counted."""


def summary_lines(record: RunRecord, width: int | None = None) -> list[str]:
    """The result of a run, its gates and the paths of its files, as lines of plain text.

    Sentences are wrapped to `width` characters, if it is given.
    """
    top = headline(record)
    number = "" if top.number is None else f"{figure(top.number, DIGITS)} "
    beyond = record.model.beyond_training if record.model else ()
    return [
        f"{record.identity.experiment} · {record.identity.name}: {_ending(record)}",
        f"  {styled(f'{number}{top.unit}', 'heading')}",
        *(line for text in (*top.notices, *top.result) for line in _wrapped("  ", text, width)),
        *(line for text in top.caveats for line in _wrapped("  note     ", text, width)),
        *(part for line in _token_lines(record) for part in _wrapped("  ", line, width, 10)),
        *(line for text in top.details for line in _wrapped("  detail   ", text, width)),
        *_gate_lines(record, width),
        *(line for text in beyond for line in _wrapped("  warning  ", text, width)),
        *_work_lines(record),
        *_scope_lines(record, width),
        *_file_lines(record, width),
    ]


def _wrapped(label: str, text: str, width: int | None, indent: int = 0) -> list[str]:
    """`text` after its label, on lines of at most `width` characters; later lines are indented by
    `indent` more."""
    if not width:
        return [label + text.replace("\xa0", " ")]
    later = " " * (len(label) + indent)
    lines = textwrap.wrap(
        text.replace(" %", "\xa0%"),  # a number and its unit stay on one line
        width,
        initial_indent=label,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


def _file_lines(record: RunRecord, width: int | None) -> list[str]:
    """The paths of the files, relative to the working directory if they are in it."""
    folder = record.artifacts
    with suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    tables = step_tables(record)
    names = ", ".join(f"{one.step}.{one.name} {counted(len(one.rows), 'row')}" for one in tables)
    lines = [
        f"  report   {folder / 'report.html'}",
        *([f"  tokens   {folder / 'tokens.jsonl'}"] if is_about_tokens(record) else []),
        *([f"  tables   {folder / FOLDER}{os.sep}STEP.TABLE.json"] if tables else []),
    ]
    return [*lines, *(_wrapped(" " * 11, names, width) if tables else [])]


def _ending(record: RunRecord) -> str:
    ended = outcome(record)
    resumable = " (resumable)" if record.status == "KILLED" else ""
    return styled(f"{ended.words}{resumable}", ROLES[ended.tone])


def _token_lines(record: RunRecord) -> list[str]:
    """The tokens found, then the other tokens that the spec names individually."""
    rows = token_rows(record)
    found = worst_first(found_tokens(rows))
    known = {row.token.id for row in found}
    asked = [row for row in named_tokens(record, rows) if row.token.id not in known]
    return [*_first_lines(found, "more token"), *_first_lines(asked, "more named token")]


def _first_lines(rows: list[TokenRow], rest: str) -> list[str]:
    lines = [_token_line(row) for row in rows[:SHOWN]]
    hidden = len(rows) - len(lines)
    return [*lines, f"… and {counted(hidden, rest)}"] if hidden else lines


def _token_line(row: TokenRow) -> str:
    text = f"{row.token.id:>8}  «{visible_token(row.token)}»  {row.verdict}"
    if row.sampled:
        fact = row.sampled
        interval = f"{percent(fact.asr_low)} to {percent(fact.asr_high)}"
        text += f"  ASR {percent(fact.asr)} ({fact.failures}/{fact.attempts}; 95 %: {interval})"
    if row.closest:
        text += f"  p\xa0{figure(row.closest[1].p)}"
    return text if row.intact else f"{text}  (not presented intact)"


def _scope_lines(record: RunRecord, width: int | None) -> list[str]:
    """The scope by category, if it is known."""
    known = record.model is not None and record.model.categories
    return _wrapped("  scope    ", scope(record), width) if known else []


def _gate_lines(record: RunRecord, width: int | None) -> list[str]:
    lines = []
    for gate in record.gates:
        n = "" if gate.n is None else f", n = {gate.n:,}"
        observed = f"(observed {figure(gate.observed)}{n})"
        outcome = styled(gate.outcome, ROLES[gate.outcome])
        lines.append(f"  gate     {outcome}: {gate_rule(gate)} {observed}")
        if evidence := gate_evidence(gate):
            lines += _wrapped(" " * 11, evidence, width)
    return lines


def _work_lines(record: RunRecord) -> list[str]:
    lines = []
    for step in record.steps:
        state = f"  ({step.state})" if step.reused else "" if step.finished else "  (not finished)"
        lines.append(f"  step     {step.id} ({step.strategy}): {duration(step.seconds)}{state}")
    if record.model:
        weights, peak = size(record.model.bytes), size(record.model.peak_bytes)
        lines.append(f"  memory   model {weights}, peak {peak} on {record.model.device}")
    return lines
