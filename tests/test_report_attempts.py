"""What was said in the attempts: attempts.jsonl, the report, `explain` and Python."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.api import Run
from glitchrun.cli import explain, main
from glitchrun.events import Attempt, Control, Sampled
from glitchrun.ledger.record import Metric, RunRecord
from glitchrun.report.html import render
from glitchrun.report.markdown import markdown
from glitchrun.report.severity_tables import symptom_rows
from glitchrun.report.token_files import FIELDS, attempts_by_token, write_attempts
from tests.support.reporting import run_of, sampled, step

SAID = {
    7: [("repeat", 0, " U\u202e8»", False), ("repeat", 1, " t7", True), ("explain", 0, "", False)],
    8: [("repeat", 0, "sorry, no", False), ("repeat", 1, "<b>no</b>", False)],
    9: [("repeat", 0, " T9", False)],
}


def fact(token_id: int, failures: int, attempts: int) -> Sampled:
    said = tuple(
        Attempt(probe, number, matched, text, (number, token_id))
        for probe, number, text, matched in SAID[token_id]
    )
    return replace(sampled(token_id, failures, attempts), continuations=said)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    control = Control(7, True, fact(9, 1, 1))
    older = sampled(10, 5)
    return run_of(tmp_path, step("asr", "validate", fact(7, 1, 2), fact(8, 2, 2), older, control))


def test_attempts_jsonl_has_a_line_for_each_continuation(record: RunRecord, tmp_path: Path) -> None:
    (path,) = write_attempts(record, tmp_path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [tuple(line) for line in lines] == [FIELDS] * 6
    rows = [(line["token_id"], line["probe"], line["attempt"], line["text"]) for line in lines]
    assert rows == [(i, probe, n, text) for i in SAID for probe, n, text, _ in SAID[i]]
    assert [line["said"] for line in lines] == [False, True, False, False, False, False]
    assert [line["symptom"] for line in lines] == [
        *("other_word", None, "silence", "refusal", "other_word", "case_space")
    ]
    assert [line["control"] for line in lines] == [False] * 5 + [True]
    assert lines[0]["ids"] == [0, 7]
    assert lines[0]["step"] == "asr"
    assert "\\u202e" in path.read_text(encoding="utf-8")


def test_runs_that_kept_nothing_write_no_attempts(tmp_path: Path) -> None:
    older = run_of(tmp_path, step("asr", "validate", sampled(10, 5)))
    assert write_attempts(older, tmp_path) == []
    assert attempts_by_token(older.steps[0]) == {}
    assert list(Run(older).attempts.columns) == list(FIELDS)


def test_the_report_counts_symptoms_without_those_of_controls(record: RunRecord) -> None:
    rows = [(row["symptom"], row["continuations"], row["tokens"]) for row in symptom_rows(record)]
    assert rows == [
        ("other_word", "2", "2"),
        ("refusal", "1", "1"),
        ("silence", "1", "1"),
        ("said", "1", "1"),
    ]
    assert "| `asr` | `other_word` |" in markdown(record)
    assert 'id="symptoms"' in render(record)


def test_python_gives_the_fields_of_attempts_jsonl(record: RunRecord) -> None:
    attempts = Run(record).attempts
    assert list(attempts.columns) == list(FIELDS)
    assert attempts["said"].tolist() == [False, True, False, False, False, False]
    assert attempts["symptom"].isna().tolist() == [False, True, False, False, False, False]


def test_explain_quotes_attempts_of_each_token(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = replace(record.steps[0], metrics={"asr_mean": Metric(0.75, 2)})
    monkeypatch.setattr(explain, "find_run", lambda *_: replace(record, steps=(measured,)))
    lines = CliRunner().invoke(main, ["explain", "latest", "asr/asr_mean"]).output.splitlines()
    assert any("x failed" in line and ". said it" in line for line in lines)
    place = next(at for at, line in enumerate(lines) if "«␣t7»" in line)
    assert lines[place].endswith("  x.")
    assert [line.strip() for line in lines[place + 1 : place + 4]] == [
        "repeat 0  other_word: U⟨U+202E⟩8»",
        "repeat 1  said: t7",
        "explain 0  silence:",
    ]
