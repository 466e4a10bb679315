"""The description of a run in MLflow: its result, model, tokens, steps and how to repeat it."""

from __future__ import annotations

import re

from glitchrun.events import Token
from glitchrun.ledger.record import RunRecord
from glitchrun.report.formatting import counted, duration, fenced, figure, percent
from glitchrun.report.headline import DIGITS, headline
from glitchrun.report.outcome import gate_evidence, gate_rule
from glitchrun.report.run_details import apply_command, step_count
from glitchrun.report.token_rows import TokenRow, found_tokens, token_rows, worst_first
from glitchrun.report.totals import NOTES, is_about_tokens
from glitchrun.terminal import visible_lines
from glitchrun.tracking.metric_series import is_finite
from glitchrun.vocabulary.text import visible, visible_token

_TOKENS = 10
_SPECIAL = re.compile(r"[\\`*_{}\[\]()#+!|<>~$&@:-]|(?i:(?<=www))\.|(?<=^\d)\.|(?<=^\d\d)\.")
_AS_ENTITY = frozenset("<>&@:$.")
"""MLflow's Markdown has no backslash escape for these. As entities they cannot begin a tag, an
address or a mention."""


def run_description(record: RunRecord) -> str:
    """The description of a run as Markdown; texts in it cannot act as markup."""
    parts = [
        paragraphs(record.identity.description),
        _result(record),
        _gates(record),
        _tokens(record),
        _model(record),
        _steps(record),
        _counters(record),
        _how_to_repeat(record),
    ]
    return "\n\n".join(part for part in parts if part)


def escaped(text: str) -> str:
    """`text` as Markdown on one line; tags, links and mentions in it are shown as text."""
    return _without_markup(visible(text).replace("␣", " ").strip()) or "(empty)"


def _without_markup(text: str) -> str:
    return _SPECIAL.sub(_escape, text)


def paragraphs(text: str) -> str:
    """Each line of `text` as an escaped paragraph; empty for empty text."""
    return "\n\n".join(escaped(line) for line in text.splitlines() if line.strip())


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"&#{ord(character)};" if character in _AS_ENTITY else f"\\{character}"


def _code(token: Token) -> str:
    """A token for a table cell. `|` would end the cell, even in code."""
    shown = visible_token(token).replace("|", "¦").replace("`", "ˋ")
    return f"`{shown}`"


def _model(record: RunRecord) -> str:
    model = record.model
    path = escaped(str(record.spec.get("model", {}).get("path", "?")))
    if model is None:
        return f"Model **{path}**, not loaded yet."
    return (
        f"Model **{path}** ({escaped(model.architecture)}, {model.vocabulary_size:,} tokens) in "
        f"{model.quantization}, computed in {model.dtype} on {model.device}; template "
        f"{escaped(model.template)} ({escaped(model.template_rule)})."
    )


def _result(record: RunRecord) -> str:
    """The report's headline: the number, the result and its caveats."""
    top = headline(record)
    number = "" if top.number is None else f"{figure(top.number, DIGITS)} "
    caveats = "\n".join(f"- {_without_markup(sentence)}" for sentence in top.caveats)
    parts = [
        f"**{number}{_without_markup(top.unit)}**",
        *map(escaped, top.notices),
        *map(_without_markup, top.result),
        caveats,
    ]
    return "\n\n".join(filter(None, parts))


def _steps(record: RunRecord) -> str:
    rows = ["| step | strategy | items | time | state |", "|---|---|--:|--:|---|"]
    for step in record.steps:
        rows.append(
            f"| {step.id} | {step.strategy} | {step_count(step)} | {duration(step.seconds)} "
            f"| {step.state} |"
        )
    return "\n".join(rows)


def _tokens(record: RunRecord) -> str:
    """The worst tokens found; of those that are tied, readable ones."""
    found = worst_first(found_tokens(token_rows(record)))
    if not found:
        return ""
    rows = ["| token | id | verdict | ASR (95 %) | attempts | p |", "|---|--:|---|---|--:|--:|"]
    rows += map(_token_row, found[:_TOKENS])
    hidden = len(found) - _TOKENS
    return "\n".join(rows) + (f"\n\n{hidden:,} more in the report." if hidden > 0 else "")


def _token_row(row: TokenRow) -> str:
    asr, attempts = "–", "–"
    if fact := row.sampled:
        asr = f"{percent(fact.asr)} ({percent(fact.asr_low)} to {percent(fact.asr_high)})"
        attempts = str(fact.attempts)
    p = figure(row.closest[1].p) if row.closest else "–"
    return f"| {_code(row.token)} | {row.token.id} | {row.verdict} | {asr} | {attempts} | {p} |"


def _gates(record: RunRecord) -> str:
    lines = [
        f"- `{gate_rule(gate)}`: **{gate.outcome}** "
        f"(observed {_number(gate.observed)}, n = {_number(gate.n)})"
        + (f" {escaped(gate_evidence(gate))}" if gate.baseline else "")
        for gate in record.gates
    ]
    return "Gates:\n\n" + "\n".join(lines) if lines else ""


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _counters(record: RunRecord) -> str:
    """The counters of the run, and the metrics without a value."""
    lines = [
        f"- {escaped(NOTES.get(name, name.replace('_', ' ')))}: {count:,}"
        for name, count in record.notes.items()
    ]
    lines += [
        f"- {escaped(name)}: no finite value (from {counted(metric.n or 0, 'item')})"
        for name, metric in record.metrics.items()
        if not is_finite(metric.value)
    ]
    return "Counters:\n\n" + "\n".join(lines) if lines else ""


def _how_to_repeat(record: RunRecord) -> str:
    git = (record.environment.get("git") or {}).get("commit")
    commit = f"\n# at git commit {git}" if git else ""
    command = visible_lines(apply_command(record))
    tokens = "; tokens.jsonl contains every token" if is_about_tokens(record) else ""
    return (
        f"To repeat this run:\n\n{fenced(f'{command} --fresh{commit}')}\n\nThe artifact "
        f"report.html describes the whole run{tokens}."
    )
