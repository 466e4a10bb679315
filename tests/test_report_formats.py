"""The report as json, junit and Markdown."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from glitchrun.errors import RunError
from glitchrun.events import Control, Entry
from glitchrun.ledger.record import GateResult, RunRecord
from glitchrun.report import writing
from glitchrun.report.machine_readable import junit, run_json
from glitchrun.report.markdown import markdown
from glitchrun.report.token_rows import token_rows
from tests.support.records import Invented, write_run
from tests.support.reporting import run_of, sampled, step, verified

GLITCH = {"p": 0.01, "passed": False, "glitch": True}
GATES = (
    GateResult("asr/confirmed", ">=", 1.0, 3.0, 9, "pass", "spec.yaml:9:5"),
    GateResult("mine/glitch", "<", 0.5, 7.0, 12, "fail", "spec.yaml:10:5"),
    GateResult("mine/\x00\x1b\ufffe]]>", ">=", 1.0, None, None, "inconclusive", "spec.yaml:11:5"),
)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return replace(write_run(tmp_path), gates=GATES)


def test_junit_has_a_case_for_the_run_and_each_gate(record: RunRecord) -> None:
    suite = ElementTree.fromstring(junit(record).encode()).find("testsuite")
    assert suite is not None
    outcomes = [[child.tag for child in case] for case in suite.iter("testcase")]
    assert outcomes == [[], [], ["failure"], ["skipped"]]
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "4", "failures": "1", "skipped": "1", "errors": "0"}
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "observed 7, n = 12 (spec.yaml:10:5)"


def test_junit_has_a_case_for_each_check_and_reports_skips(tmp_path: Path) -> None:
    found = {"loading": "pass", "verification": "skip", "memory": "fail"}
    rows = [
        Entry("checks", {"check": name, "outcome": outcome, "reason": f"so {name}"})
        for name, outcome in found.items()
    ]
    made = run_of(tmp_path, step("ck", "check", *rows))
    suite = ElementTree.fromstring(junit(made).encode()).find("testsuite")
    assert suite is not None
    cases = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert cases == {
        "the run finishes": [],
        "ck: loading": [],
        "ck: verification": ["skipped"],
        "ck: memory": ["failure"],
    }
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_junit_fails_for_a_run_that_did_not_finish(tmp_path: Path, status: str) -> None:
    suite = ElementTree.fromstring(junit(write_run(tmp_path, Invented(status=status))).encode())
    assert suite.get("failures") == "1"
    failure = suite.find("testsuite/testcase/failure")
    assert failure is not None
    assert {"KILLED": "INTERRUPTED"}.get(status, status) in failure.get("message", "")


def test_the_json_report_agrees_with_the_record(record: RunRecord) -> None:
    data = json.loads(json.dumps(run_json(record), allow_nan=False))
    assert data["status"] == "FINISHED"
    assert data["headline"]["number"] == record.metrics["asr/confirmed"].value
    assert data["metrics"].keys() == record.metrics.keys()
    assert [gate["outcome"] for gate in data["gates"]] == ["pass", "fail", "inconclusive"]
    verified_tokens = sum(row["verified"] for row in data["verdicts"])
    assert verified_tokens == record.metrics["mine/verified"].value
    totals = {row["name"]: row["total"] for row in data["counters"]}
    assert totals == record.notes


def test_the_json_report_of_a_run_that_failed_before_loading(tmp_path: Path) -> None:
    bare = replace(run_of(tmp_path, status="FAILED"), model=None, plan={}, error="no such model")
    data = json.loads(json.dumps(run_json(bare), allow_nan=False))
    assert (data["model"], data["headline"]["number"]) == (None, None)
    assert data["error"] == "no such model"


def test_markdown_shows_the_headline_and_the_tokens(record: RunRecord) -> None:
    text = markdown(record)
    confirmed = sum(row.verdict == "confirmed" for row in token_rows(record))
    assert f"**{confirmed} confirmed glitch tokens**" in text
    assert "| `asr/confirmed >= 1` | pass | 3 |" in text
    assert "glitchrun apply specs/smollm2-quickstart.yaml --fresh" in text
    assert "| confirmed |" in text


def test_markdown_has_tables_of_severity_and_controls(tmp_path: Path) -> None:
    severe = {"p": 1e-6, "passed": False, "glitch": True}
    controls = [Control(2, True, verified(90 + i, **(severe if i else {}))) for i in range(4)]
    own = [verified(1), verified(2, **severe), verified(3, **GLITCH)]
    mine = step("mine|", "mine", *own, *controls)
    text = markdown(run_of(tmp_path, mine))
    assert "| below 1e-05 (severe) | 1 | 33.3 % | 1 |" in text
    assert "| 0.01 to 0.1 | 1 | 33.3 % | 1 |" in text
    assert "| all failures | 2 | 66.7 % | 2 |" in text
    assert "| `mine\\|` | 2 of 3 | 66.7 % | 4 | 100 % | 3 | 75 % | 30.1 % to 95.4 % |" in text
    assert "Probes passed" not in text  # with one probe the verdicts say it all
    strict = [replace(one, probes={**one.probes, "explain": one.probes["repeat"]}) for one in own]
    text = markdown(run_of(tmp_path / "strict", step("mine", "mine", *strict)))
    assert "| `mine` | repeat fail, explain fail | 2 | 1 |" in text
    assert "False alarms" not in text


def test_markdown_has_no_severity_table_without_failures(tmp_path: Path) -> None:
    text = markdown(run_of(tmp_path, step("scan", "scan", verified(1))))
    assert "Failures by probability" not in text


def test_markdown_puts_hostile_tokens_into_code_spans(tmp_path: Path) -> None:
    texts = ["<script>x</script>", "a|b", "``` `` `", "\n| x |\n", "\u202e"]
    mine = [verified(i, text=text, **GLITCH) for i, text in enumerate(texts)]
    tokens = [sampled(i, 5, text=text) for i, text in enumerate(texts)]
    record = run_of(tmp_path, step("mine", "mine", *mine), step("asr", "validate", *tokens))
    lines = markdown(record).splitlines()
    rows = [line for line in lines if line.endswith("| 0.0100 |")]
    assert len(rows) == len(texts)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows), "cells stay cells"
    assert rows[0].startswith("| `<script>x</script>` | 0 |")
    assert any(row.startswith("| ```` ```␣``␣` ```` | 2 |") for row in rows)
    assert rows[4].startswith("| `⟨U+202E⟩` | 4 |")


def test_markdown_escapes_markup_in_names(tmp_path: Path) -> None:
    record = run_of(tmp_path, step("scan", "scan", verified(1)))
    hostile = replace(record.identity, name="<img src=x> *a*", experiment="[x](javascript:0)")
    first = markdown(replace(record, identity=hostile)).splitlines()[0]
    assert first == r"## \[x\](javascript:0) · \<img src=x\> \*a\*: FINISHED"
    override = {"system": "spec.yaml:1:1 (--set system=x\n````\n<b>\u202e)"}
    lines = markdown(replace(record, origins=override)).splitlines()
    fences = [place for place, line in enumerate(lines) if line.startswith("`````")]
    assert lines[fences[0]] == "`````sh"
    assert fences[0] < lines.index("````") < fences[1] == len(lines) - 1


def test_markdown_counts_omitted_tokens(tmp_path: Path) -> None:
    facts = [verified(i, **GLITCH) for i in range(35)]
    text = markdown(run_of(tmp_path, step("scan", "scan", *facts)))
    assert "… and 5 more in `tokens.jsonl`." in text
    assert text.count("| glitch |") == 30


def test_a_named_pipe_without_a_reader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_PIPE_SECONDS", 0.0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(RunError, match="no process reads from this pipe"):
        writing.write_document(pipe, "text", "-o")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writing.write_document(pipe, "text", "-o")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
