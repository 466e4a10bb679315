"""The report as Markdown, for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.report.agreement import agreement_tables
from glitchrun.report.formatting import (
    MISSING,
    code,
    count,
    escaped,
    fenced,
    figure,
    grid,
    percent,
    prose,
    share,
    size,
    spelled_token,
)
from glitchrun.report.headline import DIGITS, headline
from glitchrun.report.outcome import gate_evidence, gate_rule, outcome
from glitchrun.report.run_details import commands
from glitchrun.report.severity_tables import severity_tables
from glitchrun.report.step_tables import StepColumn, StepTable, step_tables
from glitchrun.report.token_rows import TokenRow, found_tokens, token_rows, worst_first
from glitchrun.report.totals import tallies
from glitchrun.terminal import visible_lines

SHOWN = 30
"""Rows shown of each table of tokens or entries."""


def markdown(record: RunRecord) -> str:
    """The report of a run as Markdown."""
    top = headline(record)
    number = "" if top.number is None else f"{figure(top.number, DIGITS)} "
    identity = record.identity
    parts = [
        f"## {prose(identity.experiment)} · {prose(identity.name)}: {outcome(record).words}",
        f"**{number}{escaped(top.unit)}**",
        *map(prose, top.notices),
        *map(escaped, top.result),
        "\n".join(f"- {escaped(sentence)}" for sentence in top.caveats),
        *map(escaped, top.details),
        *_gates(record),
        *_verdicts(record),
        *_agreement(record),
        *_severity(record),
        *_tokens(token_rows(record)),
        *(part for table in step_tables(record) for part in _step_table(table)),
        *_model(record),
        fenced(visible_lines("\n".join(commands(record))), "sh"),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _gates(record: RunRecord) -> list[str]:
    if not record.gates:
        return []
    rows = [(code(gate_rule(gate)), gate.outcome, figure(gate.observed)) for gate in record.gates]
    evidence = [
        f"- {code(gate.metric)}: {prose(text)}"
        for gate in record.gates
        if (text := gate_evidence(gate))
    ]
    return [grid(("Gate", "Outcome", "Observed"), rows), "\n".join(evidence)]


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


def _agreement(record: RunRecord) -> list[str]:
    """Counts by each definition, and the agreement of every two."""
    found = agreement_tables(record)
    if not found["definitions"]:
        return []
    names = ("found", "n", "share", "interval", "source")
    rows = [
        [code(one["step"]), escaped(one["name"]), *(escaped(one[name]) for name in names)]
        for one in found["definitions"]
    ]
    head = ("Step", "Definition", "Glitch tokens", "Of", "Share", "95 % interval", "Source")
    pairs = [[*map(escaped, one.values())] for one in found["agreements"]]
    other = ("Definitions", "Both", "Only the first", "Only the second", "Neither", "By chance")
    return [
        "**Glitch tokens by definition**, of the same tokens",
        grid(head, rows),
        "**Agreement of definitions**",
        grid((*other, "Reading", "Equal verdicts", "Cohen's kappa"), pairs),
    ]


def _severity(record: RunRecord) -> list[str]:
    """Bands of probability, probes passed and false alarms."""
    found = severity_tables(record)
    return [
        *_bands(found),
        *_patterns(found["patterns"]),
        *_symptoms(found["symptoms"]),
        *_alarms(found["alarms"]),
        *_alarms_by_kind(found),
    ]


def _bands(found: dict[str, Any]) -> list[str]:
    if not found["bands"]:
        return []
    kinds = map(escaped, found["kinds"])
    head = ("Probability", "Failed", "Of verified", "Glitch", *kinds, "Sampled", "Confirmed")
    rows = [_band_row(_band_name(band), band) for band in found["bands"]]
    title = f"**Failures by probability** (severe below {found['severe_below']}) and kind of answer"
    return [title, grid(head, [*rows, _band_row("all failures", found["band_sums"])])]


def _band_name(band: dict[str, Any]) -> str:
    label = escaped(band["label"])
    return f"{label} (severe)" if band["severe"] else label


def _band_row(label: str, band: dict[str, Any]) -> list[str]:
    kinds = [f"{number} ({part})" if part else number for number, part in band["kinds"]]
    before = [band["failed"], band["share"], band["glitch"]]
    return [label, *map(escaped, [*before, *kinds, band["sampled"], band["confirmed"]])]


def _patterns(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    rows = [
        (
            code(one["step"]),
            escaped(", ".join(f"{name} {outcome}" for name, outcome in one["probes"])),
            one["tokens"],
            one["severe"],
        )
        for one in found
    ]
    return ["**Probes passed**", grid(("Step", "Probes", "Tokens", "Severe"), rows)]


def _symptoms(found: list[dict[str, str]]) -> list[str]:
    if not found:
        return []
    names = ("meaning", "continuations", "share", "tokens")
    rows = [
        [code(one["step"]), code(one["symptom"]), *(escaped(one[name]) for name in names)]
        for one in found
    ]
    head = ("Step", "Symptom", "Meaning", "Continuations", "Share", "Tokens")
    return ["**What was said in the attempts**", grid(head, rows)]


def _alarms(found: list[dict[str, str]]) -> list[str]:
    if not found:
        return []
    names = ("own", "own_share", "controls", "alike", "alarms", "rate", "interval")
    head = ("Step", "Candidates flagged", "Share", "Controls", "Same script and spacing")
    rows = [[code(one["step"]), *(escaped(one[name]) for name in names)] for one in found]
    title = "**False alarms**: the same check on ordinary tokens (controls)"
    return [title, grid((*head, "Controls flagged", "False-alarm rate", "95 % interval"), rows)]


def _alarms_by_kind(found: dict[str, Any]) -> list[str]:
    rows = found["alarms_by_kind"]
    if not rows:
        return []
    names = ("kind", "own", "alarms", "rate", "interval")
    cells = [[code(one["step"]), *(escaped(one[name]) for name in names)] for one in rows]
    head = ("Step", "Kind of token", "Candidates flagged", "Controls flagged")
    title = "**False alarms by kind of token**"
    return [title, grid((*head, "False-alarm rate", "95 % interval"), cells)]


def _tokens(rows: Sequence[TokenRow]) -> list[str]:
    found = worst_first(found_tokens(rows))
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
    texts = [[_cell(text, column) for text in table.texts(column, SHOWN)] for column in columns]
    rows = list(zip(*texts, strict=True))
    title = f"**{prose(table.title)}** ({code(table.step)})"
    parts = [title, grid([prose(column.label) for column in columns], rows)]
    hidden = len(table.rows) - len(rows)
    return [*parts, f"… and {hidden:,} more in `{table.path}`."] if hidden else parts


def _cell(text: str, column: StepColumn) -> str:
    return code(text) if column.kind == "token" and text != MISSING else escaped(text)


def _model(record: RunRecord) -> list[str]:
    model = record.model
    if model is None:
        return []
    sentence = (
        f"{prose(model.architecture)}, {model.quantization} on {model.device}: "
        f"weights {size(model.bytes)}, peak memory {size(model.peak_bytes)}; template "
        f"{prose(model.template)} ({prose(model.template_rule)})."
    )
    return [sentence]
