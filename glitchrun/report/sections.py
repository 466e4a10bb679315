"""What stands on the page, section by section, as plain text and numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.events import SEVERE
from glitchrun.ledger.command import apply_command
from glitchrun.ledger.record import ModelRecord, RunRecord, StepRecord, status_word
from glitchrun.report.formatting import MISSING, count, duration, figure, moment, share, size
from glitchrun.report.headline import declared_headline, headline
from glitchrun.report.overview import (
    NOTES,
    counters,
    is_about_tokens,
    not_finite,
    tallies,
    thresholds,
)
from glitchrun.report.severity import MILD, Alarms, Severity, alarms, severity
from glitchrun.report.severity_page import severity_sections
from glitchrun.report.step_tables import StepTable, shown, step_tables
from glitchrun.report.token_rows import VERDICTS
from glitchrun.spec.schema import strategies

SHOWN = 300
"""Rows of a step's table on the page; all of them are in its file."""

Pairs = list[tuple[str, str]]


def sections(record: RunRecord) -> dict[str, Any]:
    """Everything page/report.html.j2 shows but the figures and the token table."""
    return {
        "experiment": record.identity.experiment,
        "run": record.identity.name,
        "description": record.identity.description,
        "status": record.status,
        "status_word": status_word(record.status),
        "headline": headline(record),
        "cards": _cards(record),
        "setup": _setup(record),
        "steps": [_step(step) for step in record.steps],
        "tables": [_table(table) for table in step_tables(record)],
        "about_tokens": is_about_tokens(record),
        "searched": any(step.strategy == "mine" and step.batches for step in record.steps),
        "gates": record.gates,
        "figure": figure,
        "tallies": tallies(record),
        "share": share,
        **severity_sections(record),
        "legend": VERDICTS,
        "memory": _memory(record),
        "census": _census(record.model),
        "unquantized": record.model.unquantized if record.model else (),
        "timing": _timing(record),
        "counters": _counters(record),
        "metrics": [(name, figure(m.value, 4), count(m.n)) for name, m in record.metrics.items()],
        "commands": commands(record),
        "provenance": _provenance(record),
        "spec": json.dumps(record.spec, indent=2, ensure_ascii=False, default=str),
    }


def commands(record: RunRecord) -> list[str]:
    """Shell commands that do the run again."""
    identity = record.identity
    commit = _commit(record)
    checkout = [f"git checkout {commit}"] if commit else []
    return [
        *checkout,
        f"{apply_command(record)} --fresh",
        f"glitchrun report {identity.key[:12]}",
    ]


def _cards(record: RunRecord) -> list[tuple[str, str, str]]:
    """Label, number and what it means, for the row of figures at the top."""
    cards = [*_verdict_cards(severity(record)), *map(_alarm_card, alarms(record))]
    cards += [card for step in record.steps for card in _step_cards(step)]
    rates = [
        (step.id, metric.value)
        for step in record.steps
        if (metric := step.metrics.get("tokens_per_second"))
    ]
    cards += [(f"{step} speed", figure(value), "tokens per second") for step, value in rates]
    if record.model:
        cards.append(("peak memory", size(record.model.peak_bytes), f"on {record.model.device}"))
    return [*cards, ("time", duration(_elapsed(record)), "spent in steps and loading")]


def _verdict_cards(found: Severity) -> list[tuple[str, str, str]]:
    if not found.verified:
        return []
    mild = (f"p < {MILD:g}", count(found.mild), "glitch tokens, severe ones too")
    return [
        ("verified", count(found.verified), "tokens with a verdict"),
        ("severe", count(found.severe), f"glitch tokens, p < {SEVERE:g}"),
        *([mild] if found.mild < found.glitch else []),
        ("glitch", count(found.glitch), f"{share(found.glitch, found.verified)} of those verified"),
    ]


def _alarm_card(found: Alarms) -> tuple[str, str, str]:
    rate = share(found.alarms, found.controls)
    return f"{found.step} false alarms", rate, f"{found.alarms:,} of {found.controls:,} controls"


def _step_cards(step: StepRecord) -> list[tuple[str, str, str]]:
    """The metrics that the strategy's `x-headline` names as cards."""
    named = (declared_headline(step) or {}).get("cards", ())
    declared = strategies().get(step.strategy, {}).get("x-metrics", {})
    cards = []
    for name in named:
        if metric := step.metrics.get(name):
            unit = declared.get(name, {}).get("unit", "")
            number = size(metric.value) if unit == "bytes" else figure(metric.value)
            label = f"{step.id} {name.replace('_', ' ')}".removesuffix(" bytes")
            cards.append((label, number, "" if unit == "bytes" else unit))
    return cards


def _elapsed(record: RunRecord) -> float:
    return record.loading_seconds + sum(step.seconds for step in record.steps)


def _setup(record: RunRecord) -> Pairs:
    """What was run, apart from the steps."""
    level = thresholds(record)
    meaning = [
        ("Vocabulary in scope", scope(record)),
        *_excluded(record),
        ("Glitch", f"every probe failed, with p < {level.probability:g} in each"),
        ("Confirmed", f"ASR ≥ {level.asr:g}" if level.asr else "ASR > 0"),
    ]
    pairs = [
        ("Model", _text((record.spec.get("model") or {}).get("path"))),
        *_model_pairs(record.model),
        *_beyond_training(record),
        (
            "System text",
            _text(record.spec["system"]) if record.spec.get("system") else "none in the spec",
        ),
        ("Seed", _text(record.spec.get("seed", 0))),
        *(meaning if is_about_tokens(record) else ()),
        ("Started", moment(record.started_at)),
        ("Ended", moment(record.ended_at)),
    ]
    cell = ", ".join(f"{key} = {_text(value)}" for key, value in _assigned(record).items())
    return [("Matrix cell", cell), *pairs] if cell else pairs


def _beyond_training(record: RunRecord) -> Pairs:
    notes = record.model.beyond_training if record.model else ()
    return [("Beyond the model's length", "; ".join(notes))] if notes else []


def _excluded(record: RunRecord) -> Pairs:
    patterns = (record.spec.get("tokens") or {}).get("exclude")
    if not patterns:
        return []
    number = f"{record.model.excluded:,} tokens: " if record.model else ""
    return [("Left out of it", f"{number}{', '.join(map(_text, patterns))}")]


def scope(record: RunRecord) -> str:
    """Which part of the vocabulary could be looked at, and how much of it that leaves out."""
    scope = [*map(str, (record.spec.get("tokens") or {}).get("categories") or ["normal"])]
    held = record.model.categories if record.model else {}
    if not held:
        return ", ".join(scope)
    inside = sum(held.get(name, 0) for name in scope)
    others = [f"{number:,} {name}" for name, number in held.items() if name not in scope]
    told = f"{', '.join(scope)}: {inside:,} of {sum(held.values()):,} tokens"
    return f"{told}; left out: {', '.join(others)}" if others else told


def _assigned(record: RunRecord) -> Mapping[str, Any]:
    return record.identity.assignments or {}


def _model_pairs(model: ModelRecord | None) -> Pairs:
    if model is None:
        return [("Loaded", "no: the run did not get that far")]
    return [
        ("Architecture", f"{model.architecture}, {model.vocabulary_size:,} tokens"),
        ("Quantization", f"{model.quantization}, computing in {model.dtype} on {model.device}"),
        ("Template", f"{model.template}: {model.template_rule}"),
        *([("Engine", model.engine)] if model.engine else []),
        *([("Tokenizer", model.tokenizer)] if model.tokenizer else []),
    ]


def _step(step: StepRecord) -> dict[str, Any]:
    last = step.batches[-1].batch if step.batches else None
    state = "finished" if step.finished else "stopped" if step.started_at else "not started"
    return {
        "id": step.id,
        "strategy": step.strategy,
        "params": [(key, _text(value)) for key, value in step.params.items()],
        "state": state,
        "done": last.done if last else 0,
        "total": last.total if last else None,
        "seconds": duration(step.seconds) if step.batches else MISSING,
    }


def _table(table: StepTable) -> dict[str, Any]:
    """A table's text; what is beyond `SHOWN` rows is counted."""
    columns = table.filled
    return {
        "step": table.step,
        "id": f"table-{table.step}-{table.name}",
        "title": table.title,
        "description": table.description,
        "path": table.path,
        "columns": [(column, table.is_numeric(column)) for column in columns],
        "rows": [
            [shown(row.get(column.name), column) for column in columns]
            for row in table.rows[:SHOWN]
        ],
        "hidden": max(0, len(table.rows) - SHOWN),
    }


def _memory(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """What, estimated, measured, measured against estimated."""
    plan = record.plan.get("memory") or {}
    model = record.model
    found = [
        ("model weights", plan.get("weight_bytes"), model.bytes if model else None),
        ("peak", plan.get("total_bytes"), model.peak_bytes if model else None),
    ]
    rows = [
        (name, size(planned), size(measured), _deviation(planned, measured))
        for name, planned, measured in found
    ]
    if plan:
        free = f"{size(plan.get('free_bytes'))} free on {plan.get('device')}: {plan.get('verdict')}"
        rows.append(("device when planned", free, MISSING, MISSING))
    return rows


def _deviation(planned: float | None, measured: float | None) -> str:
    if not planned or measured is None:
        return MISSING
    return f"{100 * (measured - planned) / planned:+.1f} %"


def _census(model: ModelRecord | None) -> list[tuple[str, str, str]]:
    if model is None:
        return []
    by_size = sorted(model.census.items(), key=lambda item: -item[1])
    total = sum(model.census.values())
    return [(dtype, size(held), share(held, total)) for dtype, held in by_size]


def _timing(record: RunRecord) -> list[tuple[str, str]]:
    rows = []
    if planned := record.plan.get("seconds"):
        rows.append(("whole run, as planned", f"at most {duration(planned[-1])}"))
    if record.model:
        rows.append(("loading the model", duration(record.loading_seconds)))
    rows += [(f"step {step.id}", duration(step.seconds)) for step in record.steps if step.batches]
    if record.ended_at:
        elapsed = (record.ended_at - record.started_at) / 1000
        rows.append(("from start to end, pauses included", duration(elapsed)))
    return rows


def _counters(record: RunRecord) -> list[tuple[str, list[str]]]:
    """What was counted and how often, by step."""
    rows = [
        (NOTES.get(name, name.replace("_", " ")), [_in_step(*item) for item in by_step.items()])
        for name, by_step in counters(record).items()
    ]
    if odd := not_finite(record):
        rows.insert(0, ("probes in which the model gave no finite number", [count(odd)]))
    return rows


def _in_step(step: str | None, number: int) -> str:
    return f"{count(number)} in {step}" if step else count(number)


def _provenance(record: RunRecord) -> Pairs:
    """Where the run came from: digests, versions, platform, commit."""
    identity = record.identity
    delivered = record.delivered_to.get("run_id")
    return [
        ("Spec", identity.spec_path),
        ("Run key", f"{identity.key}, attempt {identity.attempt}"),
        *((f"Digest of {name}", digest) for name, digest in identity.digests.items()),
        *_flat(record.environment),
        *((f"Tag {name}", str(value)) for name, value in identity.tags.items()),
        *([("MLflow run", delivered)] if delivered else []),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Pairs:
    pairs: Pairs = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += _flat(value, "" if name == "packages" else f"{name} ")
        else:
            pairs.append((name, _text(value)))
    return pairs


def _commit(record: RunRecord) -> str | None:
    """The commit the spec's repository stood at."""
    git = record.environment.get("git")
    return git.get("commit") if isinstance(git, Mapping) else None


def _text(value: Any) -> str:
    """A value of a spec as a person would write it."""
    if isinstance(value, str):
        return value
    if value is None:
        return MISSING
    if isinstance(value, Sequence | Mapping | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
