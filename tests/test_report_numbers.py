"""Numbers that people see: times by phase, one unit per column, labels of counters."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import glitchrun
from glitchrun.cli import environment_checks
from glitchrun.cli.explain import _lines
from glitchrun.events import Answered, Batch, Control, Entry, Screened
from glitchrun.ledger.fold import Fold
from glitchrun.ledger.record import Metric, StepRecord, TimedBatch
from glitchrun.report.formatting import points
from glitchrun.report.headline import headline
from glitchrun.report.html import render
from glitchrun.report.run_details import run_seconds, stage_seconds, timing
from glitchrun.report.step_tables import step_tables
from glitchrun.report.totals import NOTES
from tests.support.records import Invented, invented_entries, invented_identity, write_run
from tests.support.reporting import run_of, sampled, step, verified

GLITCH = {"p": 1e-4, "passed": False, "glitch": True}


def timed(*batches: Batch) -> tuple[TimedBatch, ...]:
    return tuple(TimedBatch(place, batch) for place, batch in enumerate(batches))


def cascade() -> StepRecord:
    """A step of 100 s: screen 20, front 5 and 7 of choosing, audit 30, controls 8."""
    scores = Screened((1, 2, 3, 4), (-9.0, -8.0, -1.0, -1.0), (5.0, 5.0, 0.0, 0.0))
    batches = timed(
        Batch((scores,), 4, 4, search_seconds=20.0, stage="screen"),
        Batch((verified(1, **GLITCH),), 1, None, 5.0, search_seconds=7.0, stage="front"),
        Batch((verified(3),), 1, 2, 10.0, stage="audit"),
        Batch((verified(4, **GLITCH),), 2, 2, 20.0, stage="audit"),
        Batch((Control(1, True, verified(9)),), 1, 1, 8.0, stage="controls"),
    )
    params = {"search": "cascade"}
    return StepRecord("mine", "mine", params, 0, 100_000, batches, elapsed=100.0)


def test_the_stages_of_a_step_add_up_to_its_wall_time() -> None:
    found = stage_seconds(cascade())
    assert found == {
        "screen": 20.0,
        "verification": 5.0,
        "verification of the audit": 30.0,
        "controls": 8.0,
        "choosing tokens": 7.0,
        "preparing and recording": 30.0,
    }
    assert sum(found.values()) == cascade().seconds
    old = replace(step("asr", "validate", sampled(2, 5)), elapsed=1.5)
    assert stage_seconds(old) == {"sampling": 1.0, "preparing and recording": 0.5}


def test_the_phases_of_a_run_add_up_to_the_whole_without_pauses(tmp_path: Path) -> None:
    record = run_of(tmp_path, cascade())
    record = replace(
        record, started_at=0, ended_at=170_000, loaded_in=4.0, paused_for=60.0, plan={}
    )
    assert run_seconds(record) == 110.0
    rows = dict(timing(record))
    assert rows["loading the model"] == "0 min 04 s"
    assert rows["step mine"] == "1 min 40 s"
    assert rows["starting, and writing the report"] == "0 min 06 s"
    assert rows["whole run"] == "1 min 50 s"
    assert rows["pauses between its sessions, not counted above"] == "1 min 00 s"
    assert "1 min 50 s <small>of the whole run</small>" in render(record)


def test_the_time_between_two_sessions_is_a_pause(tmp_path: Path) -> None:
    made = Invented(status="KILLED")
    first = invented_entries(made)
    again = [{**entry, "at": entry["at"] + 90_000} for entry in first[:2]]
    spec = write_run(tmp_path, made).spec
    fold = Fold(tmp_path, invented_identity(made, tmp_path), spec, {}, first[0]["at"])
    for entry in (*first, *again):
        fold.see(entry)
    record = fold.record()
    assert record.paused_for == (again[0]["at"] - first[-1]["at"]) / 1000
    assert record.metrics["model/load_seconds"].value == record.loading_seconds == 0.82


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({"time": {"likely": 185.0, "most": 7800.0}}, "likely 3 min 05 s, at most 2 h 10 min"),
        ({"time": {"likely": None, "most": 7800.0}}, "at most 2 h 10 min"),
        ({"seconds": [0.01, 90.0]}, "at most 90 s"),
    ],
)
def test_the_planned_time_is_likely_and_bound(
    tmp_path: Path, plan: dict[str, Any], text: str
) -> None:
    record = replace(write_run(tmp_path), plan=plan)
    assert dict(timing(record))["whole run, as planned"] == text


def test_tokens_below_one_per_cent_are_not_counted_where_all_glitch_tokens_are(
    tmp_path: Path,
) -> None:
    record = run_of(tmp_path, step("scan", "scan", verified(1), verified(2, **GLITCH)))
    assert "; 1 is below 0.01." in " ".join(headline(record).sentences)
    strict = replace(record, spec={**record.spec, "thresholds": {"probability": 0.01}})
    text = " ".join(headline(strict).sentences)
    assert "1 (100 %) is severe, with a probability below 0.001." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.2, "-20.0"), (0.2, "+20.0"), (-1e-5, "0.0"), (0.0, "0.0"), (1, "+100.0")],
)
def test_differences_have_a_sign(value: float, text: str) -> None:
    assert points(value) == text


def test_a_class_table_shows_differences_in_percentage_points(tmp_path: Path) -> None:
    cells = {"class": "x", "token": "a", "token_id": 1, "difference": -0.2, "difference_low": -0.35}
    rows = (Entry("classes", cells), Entry("classes", {**cells, "difference": 0.1}))
    (table,) = step_tables(run_of(tmp_path, step("what", "classify", *rows)))
    columns = {column.name: column for column in table.columns}
    assert columns["difference"].label == "difference (percentage points)"
    assert table.texts(columns["difference"]) == ["-20.0", "+10.0"]
    assert table.texts(columns["difference_low"]) == ["-35.0", "-35.0"]


def test_every_counter_has_a_label() -> None:
    names = {
        name
        for path in Path(glitchrun.__file__).parent.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        for name in re.findall(r'counters\["(\w+)"\] ?\+?= ', line)
        + re.findall(r'counters=\{"(\w+)"', line)
    }
    assert len(names) > 10
    assert names <= NOTES.keys()


def test_severe_tokens_are_not_counted_where_every_glitch_token_is_severe(tmp_path: Path) -> None:
    record = run_of(tmp_path, step("scan", "scan", verified(1), verified(2, **GLITCH)))
    assert "<dt>severe</dt>" in render(record)
    strict = replace(record, spec={**record.spec, "thresholds": {"probability": 0.001}})
    page = render(strict)
    assert "<dt>severe</dt>" not in page
    assert "So every glitch token is severe (below 0.001)" in page


def test_explain_lists_the_audit_behind_the_recall(tmp_path: Path) -> None:
    made = replace(cascade(), metrics={"recall_low": Metric(0.5, 3)})
    lines = list(_lines(run_of(tmp_path, made), made, "recall_low", False))
    text = "\n".join(lines)
    assert "  front       1 token in the order of the screen; 1 glitch token" in lines
    assert "  audit       2 tokens drawn at random; 1 glitch token" in lines
    assert "  left out    3 of 4 tokens by the front; the audit is their sample" in lines
    assert "  items       2 of 2" in lines
    assert "t3»" in text
    assert "t1»" not in text


def test_doctor_counts_and_offers_to_clear_only_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_checks, "cache_folder", lambda: tmp_path)
    (tmp_path / "other").write_bytes(b"x" * 147)
    (found,) = environment_checks.model_cache(tmp_path)
    assert (found.detail, found.remedy) == (f"{tmp_path}, 147 B", None)
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "weights").write_bytes(b"x" * 2000)
    (found,) = environment_checks.model_cache(tmp_path)
    assert found.remedy == "glitchrun doctor --clear-cache"


def test_answers_compared_as_text_have_no_probability(tmp_path: Path) -> None:
    wrong = Answered("3", "4", False, "float32")
    facts = [
        replace(verified(5, p=0.5, passed=False, glitch=True), probes={}, answers={"n": wrong})
    ]
    told = " ".join(headline(run_of(tmp_path, step("t", "test", *facts))).sentences)
    assert "(wrong answer)" in told
    assert "(p " not in told
