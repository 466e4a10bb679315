"""`glitchrun explain`: shows the items behind a metric."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from glitchrun.errors import UsageError
from glitchrun.events import Batch, Entry, Sampled, TokenFact, Verified
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.ledger.record import StepRecord
from glitchrun.report.formatting import counted
from glitchrun.report.token_files import AttemptRow, attempts_of
from glitchrun.runner.lookup import find_run
from glitchrun.spec.schema import fragments
from glitchrun.terminal import fitted, say
from glitchrun.vocabulary.text import visible, visible_token

_SHOWN = 20
_QUOTED = 3
_CHARACTERS = 80
"""Tokens listed, continuations quoted of each, and characters of each quotation."""


@click.command("explain")
@click.argument("run")
@click.argument("metric")
@click.option("--all", "every", is_flag=True, help="List every item, not only the first few.")
def command(run: str, metric: str, every: bool) -> None:
    """Shows the items, seed, probes and thresholds behind METRIC of RUN."""
    record = find_run(run, ROOT)
    metrics = record.metrics
    if metric not in metrics:
        known = ", ".join(sorted(metrics)) or "none yet"
        raise UsageError(f"the run has no metric {metric!r}; it has: {known}")
    value = metrics[metric]
    count = "" if value.n is None else f"  (n = {value.n:,})"
    say(f"{metric} = {value.value}{count}")
    step_id, _, name = metric.partition("/")
    step = next((step for step in record.steps if step.id == step_id), None)
    if step is None:
        say("  measured while loading the model; see environment.json")
        return
    for line in _lines(record, step, name, every):
        say(fitted(line))


def _lines(record: RunRecord, step: StepRecord, name: str, every: bool) -> Iterator[str]:
    meaning = fragments()[step.strategy]["x-metrics"].get(name, {}).get("description", "")
    yield f"  meaning     {meaning}"
    yield f"  step        {step.id} ({step.strategy}) {json.dumps(dict(step.params))}"
    if step.reused:
        yield f"  reused      from {step.origin}, step {step.key}#{step.attempt}"
    yield f"  seed        {record.spec.get('seed', 0)}"
    yield from _thresholds(record)
    yield f"  template    {record.model.template_rule}" if record.model else "  template    ?"
    facts = [fact for timed in step.batches for fact in _facts_of(timed.batch, name)]
    probes = sorted({name for fact in facts if isinstance(fact, Verified) for name in fact.probes})
    if probes:
        yield f"  probes      {', '.join(probes)}"
    if name in _RECALL:
        yield from _about_audit(step)
    chosen = [fact for fact in facts if _counts(fact, name)]
    entries = [entry for timed in step.batches for entry in timed.batch.entries]
    if facts or not entries:
        yield f"  items       {len(chosen):,} of {len(facts):,}"
        yield from _legend(chosen)
        shown = [_item(fact) for fact in (chosen if every else chosen[:_SHOWN])]
        yield from (f"    {line}" for lines in shown for line in lines)
        yield from _more(len(chosen) - len(shown))
    if entries:
        counted_rows = [entry for entry in entries if _is_counted(entry, name)]
        of = f" of {len(entries):,}" if len(counted_rows) < len(entries) else ""
        yield f"  rows        {len(counted_rows):,}{of}"
        yield from _listed([_row(entry) for entry in counted_rows], every)


def _listed(lines: Sequence[str], every: bool) -> Iterator[str]:
    shown = lines if every else lines[:_SHOWN]
    yield from (f"    {line}" for line in shown)
    yield from _more(len(lines) - len(shown))


def _more(hidden: int) -> Iterator[str]:
    if hidden:
        yield f"    … {hidden:,} more; --all lists them"


def _legend(facts: Sequence[TokenFact]) -> Iterator[str]:
    """The legend of the letters and quotations after sampled tokens."""
    sampled = [fact for fact in facts if isinstance(fact, Sampled)]
    if not sampled:
        return
    yield "  attempts    x failed: no probe made the model say the token; . said it"
    if any(fact.continuations for fact in sampled):
        yield f"  quoted      up to {_QUOTED} continuations of each: probe, attempt, symptom, text"
        yield "              attempts.jsonl has all of them, docs/verdicts.md defines the symptoms"
    else:
        yield "  quoted      nothing: the version that sampled did not keep what was said"


def _thresholds(record: RunRecord) -> Iterator[str]:
    """Each threshold and its location in the spec."""
    written: Mapping[str, Any] = record.spec.get("thresholds", {})
    for name, value in written.items():
        origin = record.origins.get(f"thresholds.{name}", "default")
        yield f"  threshold   {name} = {value}  ({origin})"
    if not written:
        yield "  threshold   defaults of asr and probability"


_RECALL = ("recall", "recall_low", "recall_high")


def _about_audit(step: StepRecord) -> Iterator[str]:
    """How many tokens a cascade verified in its front and in its audits."""
    stages = [timed.batch.stage for timed in step.batches if timed.batch.token_facts]
    rounds = sum(
        stage == "audit" != before for before, stage in zip(["", *stages], stages, strict=False)
    )
    facts = {
        name: [
            fact
            for timed in step.batches
            if timed.batch.stage == name
            for fact in timed.batch.token_facts
        ]
        for name in ("front", "audit")
    }
    screened = sum(len(one.token_ids) for timed in step.batches for one in timed.batch.screened)
    for name, how in (("front", "in the order of the screen"), ("audit", "drawn at random")):
        glitch = sum(fact.flagged for fact in facts[name])
        tokens = counted(len(facts[name]), "token")
        yield f"  {name:<11} {tokens} {how}; {counted(glitch, 'glitch token')}"
    left = screened - len(facts["front"])
    yield f"  left out    {left:,} of {screened:,} tokens by the front; the audit is their sample"
    if rounds > 1:
        yield f"  audits      {rounds}; audited tokens that a later front reached belong to it"


_ON_CONTROLS = (
    "controls",
    "false_alarms",
    "false_alarm_rate",
    "false_alarm_low",
    "false_alarm_high",
)


def _facts_of(batch: Batch, metric: str) -> tuple[TokenFact, ...]:
    """The facts of a batch that a metric is computed from."""
    if metric in _ON_CONTROLS:
        return tuple(control.fact for control in batch.controls)
    if metric in ("controls_elsewhere", "false_alarms_elsewhere"):
        return tuple(control.fact for control in batch.controls_elsewhere)
    if metric in _RECALL and batch.stage:  # records of earlier versions do not name the audit
        return batch.token_facts if batch.stage == "audit" else ()
    return batch.token_facts


def _counts(fact: TokenFact, metric: str) -> bool:
    """Whether a metric that counts some of the facts counts this one."""
    if metric in ("false_alarms", "false_alarms_elsewhere"):
        return fact.flagged
    if metric == "severe" and isinstance(fact, Verified):
        return fact.severe
    if metric == "glitch" and isinstance(fact, Verified):
        return fact.glitch
    if metric == "confirmed" and isinstance(fact, Sampled):
        return fact.confirmed
    return True


def _is_counted(entry: Entry, metric: str) -> bool:
    """Whether a row belongs to those that a metric of phrases counts; true for other metrics."""
    if not metric.startswith("phrases"):
        return True
    if metric == "phrases_dropped":
        return entry.table == "pairs"
    if entry.table != "phrases":
        return False
    own, control = (entry.cells[name] for name in ("result", "control_result"))
    failed = own == "fail", control == "fail"
    rates = entry.cells.get("asr", failed[0]), entry.cells.get("control_asr", failed[1])
    counted = {
        "phrases_failed": failed[0],
        "phrases_control_failed": failed[1],
        "phrases_worse": rates[0] > rates[1],
        "phrases_better": rates[0] < rates[1],
    }
    return bool(counted.get(metric, True))


def _row(entry: Entry) -> str:
    cells = [
        f"{name} {visible(cell).replace('␣', ' ') if isinstance(cell, str) else _figure(cell)}"
        for name, cell in entry.cells.items()
        if cell is not None
    ]
    return f"{entry.table}: {'  '.join(cells)}"


def _figure(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else json.dumps(cell, ensure_ascii=False)


def _item(fact: TokenFact) -> list[str]:
    """A token and its measurement on one line, and lines that quote some of its attempts."""
    head = f"{fact.token.id:>8}  «{visible_token(fact.token)}»"
    if isinstance(fact, Sampled):
        attempts = "".join("x" if failed else "." for failed in fact.outcomes)
        asr = f"ASR {fact.asr:.3g} [{fact.asr_low:.3g}, {fact.asr_high:.3g}]"
        return [f"{head}  {asr}  {attempts}", *map(_quotation, _quoted(fact))]
    probes = "  ".join(f"{n}: p {r.p:.3g} rank {r.rank}" for n, r in fact.probes.items())
    return [f"{head}  {'glitch' if fact.glitch else 'ok'}  {probes}"]


def _quoted(fact: Sampled) -> list[AttemptRow]:
    """Some continuations of a token: those with another symptom than the ones before come first."""
    rows = attempts_of(fact)
    first = {row.symptom: place for place, row in reversed(list(enumerate(rows)))}
    order = sorted(range(len(rows)), key=lambda place: (place not in first.values(), place))
    return [rows[place] for place in sorted(order[:_QUOTED])]


def _quotation(row: AttemptRow) -> str:
    one = row.attempt
    text = visible(one.text.strip(" ")).replace("␣", " ")
    text = f"{text[:_CHARACTERS]}…" if len(text) > _CHARACTERS else text
    return f"{'':10}{one.probe} {one.number}  {row.symptom or 'said'}: {text}"
