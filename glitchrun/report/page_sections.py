"""What report.html shows, section by section, as plain text and numbers."""

from __future__ import annotations

import json
from typing import Any

from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report import run_details
from glitchrun.report.alarms import Alarms, alarms
from glitchrun.report.formatting import MISSING, count, duration, figure, share, size
from glitchrun.report.headline import declared_headline, headline
from glitchrun.report.outcome import gate_rule, gates_outcome, outcome
from glitchrun.report.severity_tables import severity_tables
from glitchrun.report.step_tables import StepColumn, StepTable, step_tables
from glitchrun.report.token_rows import VERDICTS
from glitchrun.report.totals import MILD, Severity, is_about_tokens, severity, tallies, thresholds
from glitchrun.spec.schema import fragments
from glitchrun.spec.strategy import STRATEGIES

SHOWN = 300
"""Rows of a step's table on the page; its file has all of them."""


def sections(record: RunRecord) -> dict[str, Any]:
    """Everything that page/report.html.j2 shows, except the figures and the token table."""
    return {
        "experiment": record.identity.experiment,
        "run": record.identity.name,
        "description": record.identity.description,
        "outcome": outcome(record),
        "gates_outcome": gates_outcome(record),
        "headline": headline(record),
        "cards": _cards(record),
        "setup": run_details.setup(record),
        "steps": [run_details.step_row(step) for step in record.steps],
        "tables": [_table(table) for table in step_tables(record)],
        "about_tokens": is_about_tokens(record),
        "searched": any(map(_has_searched, record.steps)),
        "gates": record.gates,
        "gate_rule": gate_rule,
        "figure": figure,
        "tallies": tallies(record),
        "share": share,
        **severity_tables(record),
        "legend": VERDICTS,
        "memory": run_details.memory(record),
        "census": run_details.census(record.model),
        "quantized": record.model is not None and record.model.quantization in ("int8", "int4"),
        "unquantized": record.model.unquantized if record.model else (),
        "timing": run_details.timing(record),
        "counters": run_details.counter_rows(record),
        "metrics": [(name, figure(m.value, 4), count(m.n)) for name, m in record.metrics.items()],
        "commands": run_details.commands(record),
        "provenance": run_details.provenance(record),
        "spec": json.dumps(record.spec, indent=2, ensure_ascii=False, default=str),
    }


def _has_searched(step: StepRecord) -> bool:
    strategy = STRATEGIES.get(step.strategy)
    return strategy is not None and strategy.searches and bool(step.batches)


def _cards(record: RunRecord) -> list[tuple[str, str, str]]:
    """The key figures at the top of the page: label, number, and what it counts."""
    cards = [
        *_verdict_cards(severity(record), thresholds(record).probability),
        *map(_alarm_card, alarms(record)),
    ]
    cards += [card for step in record.steps for card in _step_cards(step)]
    rates = [
        (step.id, metric.value)
        for step in record.steps
        if (metric := step.metrics.get("tokens_per_second"))
    ]
    cards += [(f"{step} speed", figure(value), "tokens per second") for step, value in rates]
    if record.model:
        cards.append(("peak memory", size(record.model.peak_bytes), f"on {record.model.device}"))
    whole = run_details.run_seconds(record)
    return [*cards, *([] if whole is None else [("time", duration(whole), "of the whole run")])]


def _verdict_cards(found: Severity, limit: float) -> list[tuple[str, str, str]]:
    """Without counts that equal that of the glitch tokens because they are below `limit`."""
    if not found.verified:
        return []
    severe = ("severe", count(found.severe), f"glitch tokens, p < {SEVERE:g}")
    mild = (f"p < {MILD:g}", count(found.mild), "glitch tokens, severe ones included")
    return [
        ("verified", count(found.verified), "tokens with a verdict"),
        *([severe] if limit > SEVERE else []),
        *([mild] if limit > MILD and found.mild < found.glitch else []),
        ("glitch", count(found.glitch), f"{share(found.glitch, found.verified)} of those verified"),
    ]


def _alarm_card(found: Alarms) -> tuple[str, str, str]:
    rate = share(found.alarms, found.controls)
    return f"{found.step} false alarms", rate, f"{found.alarms:,} of {found.controls:,} controls"


def _step_cards(step: StepRecord) -> list[tuple[str, str, str]]:
    """The metrics that the strategy's `x-headline` names as cards."""
    named = (declared_headline(step) or {}).get("cards", ())
    declared = fragments().get(step.strategy, {}).get("x-metrics", {})
    cards = []
    for name in named:
        if metric := step.metrics.get(name):
            unit = declared.get(name, {}).get("unit", "")
            number = size(metric.value) if unit == "bytes" else figure(metric.value)
            label = f"{step.id} {name.replace('_', ' ')}".removesuffix(" bytes")
            cards.append((label, number, "" if unit == "bytes" else unit))
    return cards


def _table(table: StepTable) -> dict[str, Any]:
    """The first `SHOWN` rows of a table as text, and the number of the others."""
    folded = table.constant
    columns = [column for column in table.filled if column not in folded]
    texts = [table.texts(column, SHOWN) for column in columns]
    return {
        "step": table.step,
        "id": f"table-{table.step}-{table.name}",
        "title": table.title,
        "description": table.description,
        "path": table.path,
        "columns": [(column, table.is_numeric(column)) for column in columns],
        "folded": [(column, _the_value(table, column)) for column in folded],
        "rows": list(zip(*texts, strict=True)),
        "hidden": max(0, len(table.rows) - SHOWN),
    }


def _the_value(table: StepTable, column: StepColumn) -> str:
    return next(text for text in table.texts(column) if text != MISSING)
