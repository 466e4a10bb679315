"""A failed or inconclusive gate and a failed check show wherever a run is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.cli.status import _line, _row
from glitchrun.events import Entry
from glitchrun.ledger import ROOT
from glitchrun.ledger.record import GateResult, RunRecord
from glitchrun.report.html import render
from glitchrun.report.machine_readable import run_json
from glitchrun.report.markdown import markdown
from glitchrun.report.outcome import outcome
from glitchrun.report.summary import summary_lines
from glitchrun.tracking.experiment import _view_state, _view_tag
from glitchrun.tracking.params_and_tags import run_tags
from tests.support.records import write_run
from tests.support.reporting import run_of, step, verified

PASS = GateResult("scan/glitch", ">=", 1.0, 3.0, 9, "pass", "s.yaml:1:1")
FAIL = GateResult("scan/glitch", ">=", 1000.0, 3.0, 9, "fail", "s.yaml:2:1")
FEW = GateResult("scan/verified", ">=", 1.0, 9.0, 9, "inconclusive", "s.yaml:3:1")
NONE = GateResult("scan/recall_low", ">=", 0.5, None, 9, "inconclusive", "s.yaml:4:1")


def gated(folder: Path, *gates: GateResult, status: str = "FINISHED") -> RunRecord:
    return replace(run_of(folder, step("scan", "scan", verified(1)), status=status), gates=gates)


def checked(folder: Path, *outcomes: str) -> RunRecord:
    rows = [
        Entry("checks", {"check": f"c{i}", "outcome": word, "reason": f"why {i}"})
        for i, word in enumerate(outcomes)
    ]
    return run_of(folder, step("check", "check", *rows))


@pytest.mark.parametrize(
    ("gates", "tone", "words"),
    [
        ((), "pass", "FINISHED"),
        ((PASS,), "pass", "FINISHED"),
        ((PASS, FAIL), "fail", "FINISHED, 1 of 2 gates failed"),
        ((PASS, NONE), "inconclusive", "FINISHED, 1 of 2 gates inconclusive"),
        ((FAIL, FEW), "fail", "FINISHED, 1 of 2 gates failed, 1 of 2 gates inconclusive"),
    ],
)
def test_gates_decide_the_outcome_of_a_finished_run(
    tmp_path: Path, gates: tuple[GateResult, ...], tone: str, words: str
) -> None:
    record = gated(tmp_path, *gates)
    found = outcome(record)
    assert (found.tone, found.words) == (tone, words)
    assert f'<span class="badge {tone}">{words}</span></h1>' in render(record)
    assert summary_lines(record)[0].endswith(f": {words}")
    assert markdown(record).splitlines()[0].endswith(words)
    assert run_json(record)["outcome"] == tone


@pytest.mark.parametrize(
    ("outcomes", "tone", "words"),
    [
        (("pass", "skip"), "pass", "FINISHED"),
        (("pass", "fail", "skip"), "fail", "FINISHED, 1 of 3 checks failed"),
    ],
)
def test_a_failed_check_fails_a_run_without_gates(
    tmp_path: Path, outcomes: tuple[str, ...], tone: str, words: str
) -> None:
    record = checked(tmp_path, *outcomes)
    assert (outcome(record).tone, outcome(record).words) == (tone, words)
    assert ("checks fail" in _line(_row(record))) == (tone == "fail")
    assert f'class="headline {tone}"' in render(record)


@pytest.mark.parametrize(
    ("status", "tone"),
    [("FAILED", "fail"), ("DAMAGED", "fail"), ("KILLED", "inconclusive")],
)
def test_the_status_of_an_unfinished_run_counts(tmp_path: Path, status: str, tone: str) -> None:
    assert outcome(gated(tmp_path, status=status)).tone == tone
    assert outcome(gated(tmp_path, FAIL, status=status)).tone == "fail"


def test_the_headline_says_why_and_the_navigation_leads_to_the_gates(tmp_path: Path) -> None:
    page = render(gated(tmp_path, FAIL, FEW, NONE))
    head = page[: page.index("</header>")]
    for sentence in (
        "Gate scan/glitch &gt;= 1000 failed: observed 3, n = 9.",
        "Gate scan/verified &gt;= 1 is inconclusive: observed 9, n = 9, fewer than its min_n.",
        "Gate scan/recall_low &gt;= 0.5 is inconclusive: the metric has no value.",
    ):
        assert sentence in head
    nav = head[head.index("<nav") :]
    assert re.search(r'href="#gates">Gates <span class="badge fail">fail</span>', nav)
    assert '<h2 id="gates">' in page
    assert "#gates" not in render(gated(tmp_path))


def test_status_tells_the_outcome_of_the_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / ROOT)
    done = CliRunner().invoke(main, ["status"])
    assert done.stdout.startswith("FINISHED    gates pass          2025-06-15 15:06:40 UTC")
    (row,) = json.loads(CliRunner().invoke(main, ["status", "-o", "json"]).stdout)["runs"]
    assert (row["gates"], row["started"]) == ("pass", "2025-06-15T15:06:40+00:00")
    assert "gates inconclusive" in _line(_row(gated(tmp_path / "a", NONE)))
    assert "gates fail" in _line(_row(gated(tmp_path / "b", FAIL, NONE)))


def test_mlflow_has_the_gates_as_a_tag_and_a_column(tmp_path: Path) -> None:
    record = gated(tmp_path, PASS, FAIL)
    assert run_tags(record)["glitchrun.gates"] == "fail"
    assert "glitchrun.gates" not in run_tags(gated(tmp_path))
    (tag,) = _view_tag(record, {}).values()
    assert "tags.`glitchrun.gates`" in _view_state(tag)["selectedColumns"]
