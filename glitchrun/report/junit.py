"""Gates and checks as JUnit XML, which CI systems show as test cases."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from glitchrun.ledger.record import GateResult, RunRecord, status_word
from glitchrun.report.formatting import figure
from glitchrun.report.outcome import check_rows, gate_rule
from glitchrun.vocabulary.text import visible


def junit(record: RunRecord) -> str:
    """One test case for each gate and each check (`Strategy.test_cases`), and one for the run
    itself, which fails unless it FINISHED.

    A gate that is inconclusive is a skipped test case with its reason.
    """
    name = f"{record.identity.experiment} · {record.identity.name}"
    suite = ElementTree.Element("testsuite", name=_legible(name), errors="0")
    suite.append(_run_case(record))
    suite.extend(_gate_case(record, gate) for gate in record.gates)
    suite.extend(_check_cases(record))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("*/failure"))))
    suite.set("skipped", str(len(suite.findall("*/skipped"))))
    suites = ElementTree.Element("testsuites", dict(suite.attrib))
    suites.append(suite)
    ElementTree.indent(suites)
    xml = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}\n'


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
