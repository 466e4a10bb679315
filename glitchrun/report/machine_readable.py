"""The report for machines: a JSON document, and JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from glitchrun.ledger.record import GateResult, RunRecord, StepRecord, status_word
from glitchrun.report.agreement import agreement_json, shown
from glitchrun.report.alarms import Alarms, alarms
from glitchrun.report.formatting import figure
from glitchrun.report.headline import headline
from glitchrun.report.outcome import check_rows, gate_evidence, gate_rule, outcome
from glitchrun.report.step_tables import StepTable, step_tables
from glitchrun.report.totals import bands, counters, patterns, severity, tallies, thresholds
from glitchrun.report.writing import rounded, rounded_floats
from glitchrun.vocabulary.text import visible


def run_json(record: RunRecord) -> dict[str, Any]:
    """The report as JSON-ready data; its tokens are in tokens.jsonl."""
    identity = record.identity
    top = headline(record)
    return {
        "experiment": identity.experiment,
        "name": identity.name,
        "key": identity.key,
        "attempt": identity.attempt,
        "run_id": record.delivered_to.get("run_id"),
        "status": record.status,
        "outcome": outcome(record).tone,
        "error": record.error,
        "damage": record.damage,
        "repairs": list(record.repairs),
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "headline": {**asdict(top), "sentences": list(top.sentences)},
        "thresholds": asdict(thresholds(record)),
        "verdicts": [asdict(tally) for tally in tallies(record)],
        "emitted": dict(severity(record).emitted),
        "severity": asdict(severity(record)),
        "bands": [asdict(band) for band in bands(record)],
        "probe_patterns": [asdict(pattern) for pattern in patterns(record)],
        **({"agreement": found} if (found := agreement_json(record))["definitions"] else {}),
        **({"shown": asdict(both)} if (both := shown(record)) else {}),
        "false_alarms": [_alarms(found) for found in alarms(record)],
        "steps": [_step(step) for step in record.steps],
        "tables": [_table(table) for table in step_tables(record)],
        "counters": [_counter(name, found) for name, found in counters(record).items()],
        "metrics": {
            name: {"value": rounded(metric.value), "n": metric.n}
            for name, metric in record.metrics.items()
        },
        "gates": [rounded_floats(asdict(gate)) for gate in record.gates],
        "model": asdict(record.model) if record.model else None,
        "plan": dict(record.plan),
        "environment": dict(record.environment),
        "assignments": dict(identity.assignments),
        "digests": dict(identity.digests),
        "tags": record.tags,
        "spec": dict(record.spec),
        "artifacts_dir": str(record.artifacts),
    }


def _step(step: StepRecord) -> dict[str, Any]:
    return {
        "id": step.id,
        "strategy": step.strategy,
        "params": dict(step.params),
        "finished": step.finished,
        "stage": step.batches[-1].batch.stage if step.batches else "",
        "done": step.batches[-1].batch.done if step.batches else 0,
        "total": step.batches[-1].batch.total if step.batches else None,
        "tokens": step.examined,
        "seconds": rounded(step.seconds),
        "own_seconds": rounded(step.own_seconds),
        "key": step.key,
        "attempt": step.attempt,
        "reused": step.reused,
        "origin": step.origin,
    }


def _alarms(found: Alarms) -> dict[str, Any]:
    kinds = [rounded_floats(asdict(one)) for one in found.kinds]
    return {**rounded_floats(asdict(found)), "kinds": kinds}


def _table(table: StepTable) -> dict[str, Any]:
    return {
        "step": table.step,
        "name": table.name,
        "title": table.title,
        "description": table.description,
        "columns": [asdict(column) for column in table.columns],
        "rows": [rounded_floats(row) for row in table.rows],
        "path": table.path,
    }


def _counter(name: str, by_step: Mapping[str | None, int]) -> dict[str, Any]:
    return {"name": name, "total": sum(by_step.values()), "steps": _named(by_step)}


def _named(by_step: Mapping[str | None, int]) -> dict[str, int]:
    return {step: number for step, number in by_step.items() if step}


# JUnit


def junit(*records: RunRecord) -> str:
    """One test suite for each run, with a test case for each gate and each check
    (`Strategy.test_cases`), and one for the run itself, which fails unless it FINISHED.

    A gate that is inconclusive is a skipped test case with its reason.
    """
    made = [_suite(record) for record in records]
    totals = {
        name: str(sum(int(suite.get(name, "0")) for suite in made))
        for name in ("tests", "failures", "skipped", "errors")
    }
    suites = ElementTree.Element("testsuites", {"name": made[0].get("name", ""), **totals})
    suites.extend(made)
    ElementTree.indent(suites)
    xml = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}\n'


def _suite(record: RunRecord) -> ElementTree.Element:
    name = f"{record.identity.experiment} · {record.identity.name}"
    suite = ElementTree.Element("testsuite", name=_legible(name), errors="0")
    suite.append(_run_case(record))
    suite.extend(_gate_case(record, gate) for gate in record.gates)
    suite.extend(_check_cases(record))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("*/failure"))))
    suite.set("skipped", str(len(suite.findall("*/skipped"))))
    return suite


def _run_case(record: RunRecord) -> ElementTree.Element:
    seconds = ((record.ended_at or record.started_at) - record.started_at) / 1000
    case = _case(record, "the run finishes")
    case.set("time", f"{seconds:.3f}")
    if record.status != "FINISHED":
        message = f"status {status_word(record.status)}" + (
            f": {record.error}" if record.error else ""
        )
        ElementTree.SubElement(case, "failure", message=_legible(message))
    return case


def _gate_case(record: RunRecord, gate: GateResult) -> ElementTree.Element:
    case = _case(record, gate_rule(gate))
    n = "" if gate.n is None else f", n = {gate.n:,}"
    message = _legible(f"observed {figure(gate.observed)}{n} ({gate.origin})")
    message = " ".join(filter(None, (message, _legible(gate_evidence(gate)))))
    if gate.outcome == "inconclusive":
        ElementTree.SubElement(case, "skipped", message=f"inconclusive: {message}")
    elif gate.outcome != "pass":
        ElementTree.SubElement(case, "failure", message=message)
    return case


def _check_cases(record: RunRecord) -> Iterator[ElementTree.Element]:
    """A skipped check is a skipped test case, so that a green report does not hide it."""
    for step, row in check_rows(record):
        case = _case(record, f"{step}: {row['check']}")
        tag = {"skip": "skipped", "fail": "failure"}.get(row["outcome"])
        if tag:
            ElementTree.SubElement(case, tag, message=_legible(row["reason"]))
        yield case


def _case(record: RunRecord, name: str) -> ElementTree.Element:
    owner = f"glitchrun.{record.identity.experiment}.{record.identity.name}"
    return ElementTree.Element("testcase", classname=_legible(owner), name=_legible(name))


def _legible(text: str) -> str:
    """Text with control characters spelled out, most of which XML 1.0 cannot represent."""
    return visible(text).replace("␣", " ")
