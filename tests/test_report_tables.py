"""Tables that steps record, on the page, in files and in the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Entry
from glitchrun.events_json import batch_from_json, batch_to_json
from glitchrun.ledger.record import Metric, RunRecord
from glitchrun.report import headline, html, step_tables, totals
from glitchrun.report.html import render
from glitchrun.report.machine_readable import run_json
from glitchrun.report.markdown import markdown
from glitchrun.report.step_tables import StepColumn, write_tables
from glitchrun.report.summary import summary_lines
from glitchrun.report.token_files import write_tokens
from glitchrun.tracking.params_and_tags import run_tags
from tests.support.reporting import run_of, step, verified

DECLARED = {
    "ask": {
        "x-tables": {
            "answers": {
                "title": "What came <next>",
                "description": "A row a prompt.",
                "columns": {
                    "prompt": {"description": "Its text."},
                    "token": {"description": "The most likely.", "kind": "token"},
                    "p": {"description": "Its probability.", "kind": "share"},
                    "held": {"description": "Memory.", "kind": "bytes"},
                    "logprob": {"description": "Its logarithm.", "unit": "nats"},
                    "outcome": {"description": "Whether it is right.", "kind": "outcome"},
                    "empty": {"description": "Nothing."},
                },
            }
        },
        "x-metrics": {"rank": {"description": "", "unit": "of the vocabulary"}},
        "x-headline": {
            "metric": "rank",
            "unit": "mean rank",
            "sentence": "The mean rank was {rank}.",
            "when": {"rank": "It is not 0.", "cut": "It was cut."},
            "cards": ["rank"],
        },
    }
}
HOSTILE = "<script>owned()</script> |`*\u202e\x07 "


def answer(prompt: str, outcome: str, **cells: Any) -> Entry:
    row = {"prompt": prompt, "token": " f\n", "p": 0.25, "held": 1_500_000, "logprob": -1.386294361}
    return Entry("answers", {**row, "outcome": outcome, "empty": None, **cells})


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    for module in (headline, html, step_tables, totals):
        monkeypatch.setattr(module, "fragments", lambda: DECLARED)
    asked = step(
        "ask", "ask", answer("The quick ", "pass"), answer(HOSTILE, "fail", p=float("nan"))
    )
    return run_of(tmp_path, replace(asked, metrics={"rank": Metric(2.5, 2)}))


def test_a_batch_of_entries_survives_serialization() -> None:
    batch = Batch((answer("x", "pass", ids=[1, [2]]), verified(3)), 2, 2)
    assert batch_from_json(json.loads(json.dumps(batch_to_json(batch)))) == batch
    assert [len(batch.entries), len(batch.token_facts)] == [1, 1]


def test_the_mlflow_table_has_every_row(record: RunRecord, tmp_path: Path) -> None:
    (path,) = write_tables(record, tmp_path)
    assert path == tmp_path / "tables" / "ask.answers.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["columns"] == list(DECLARED["ask"]["x-tables"]["answers"]["columns"])
    first, second = table["data"]
    assert first == ["The quick␣", "␣f␊", 0.25, 1_500_000, -1.386294, "pass", None]
    assert second[2] is None  # JSON has no NaN
    assert "\u202e" not in path.read_text(encoding="utf-8")


def test_a_tag_names_the_tables_in_mlflow(record: RunRecord) -> None:
    write_tokens(record, record.artifacts)
    write_tables(record, record.artifacts)
    listed = json.loads(run_tags(record)["mlflow.loggedArtifacts"])
    assert [one["path"] for one in listed] == ["tokens.json", "tables/ask.answers.json"]


def test_a_run_without_verdicts_has_its_declared_metric_as_headline(record: RunRecord) -> None:
    top = headline.headline(record)
    assert (top.number, top.unit) == (2.5, "mean rank")
    assert top.sentences == ("The mean rank was 2.50. It is not 0.",)
    assert not totals.is_about_tokens(record)
    lines = "\n".join(summary_lines(record))
    assert "2.50 mean rank" in lines
    assert "/tables/STEP.TABLE.json\n           ask.answers 2 rows" in lines
    assert "tokens.jsonl" not in lines


def test_verdicts_take_precedence_over_declared_metrics(record: RunRecord) -> None:
    both = replace(record, steps=(step("scan", "scan", verified(1)), *record.steps))
    top = headline.headline(both)
    assert (top.number, top.unit) == (0, "glitch tokens")
    assert top.sentences[-1] == "ask: The mean rank was 2.50. It is not 0."


def test_an_unfinished_run_has_no_number(record: RunRecord) -> None:
    (asked,) = record.steps
    top = headline.headline(replace(record, status="KILLED", steps=(replace(asked, metrics={}),)))
    assert (top.number, top.unit) == (None, "no result")


def test_the_page_shows_tables_and_nothing_about_tokens(record: RunRecord) -> None:
    page = render(record)
    assert "What came &lt;next&gt;" in page
    assert '<td class="token">␣f⟨LF⟩</td>' in page
    assert '<td class="number">25 %</td>' in page
    assert '<td class="number">1.5 MB</td>' in page
    assert "logprob (nats)" in page
    assert '<span class="badge fail">fail</span>' in page
    assert "<script>owned" not in page
    assert "⟨U+202E⟩⟨BEL⟩␣" in page
    assert ">empty<" not in page  # a column in which nothing stands
    assert "Verdicts by category" not in page
    assert 'id="token-data"' not in page


def test_a_long_table_counts_its_omitted_rows(record: RunRecord) -> None:
    rows = [answer(f"row {place}", "pass") for place in range(html.SHOWN + 7)]
    page = render(replace(record, steps=(step("ask", "ask", *rows),)))
    assert "7 more rows are in <code>tables/ask.answers.json</code>" in page
    assert f">row {html.SHOWN}<" not in page


def test_json_and_markdown_have_the_tables(record: RunRecord) -> None:
    (table,) = json.loads(json.dumps(run_json(record), allow_nan=False))["tables"]
    assert (table["step"], table["name"], table["path"]) == (
        "ask",
        "answers",
        "tables/ask.answers.json",
    )
    assert table["rows"][0]["token"] == " f\n"
    assert [row["p"] for row in table["rows"]] == [0.25, None]
    text = markdown(record)
    assert "| prompt | token | p | held | logprob (nats) | outcome |" in text
    assert "| The quick␣ | `␣f⟨LF⟩` | 25 % | 1.5 MB | -1.386 | pass |" in text
    assert r"\<script\>" in text


def test_an_undeclared_table_is_shown(tmp_path: Path) -> None:
    record = run_of(tmp_path, step("old", "gone", Entry("odd", {"what": "x", "n": 3})))
    (table,) = step_tables.step_tables(record)
    assert [column.label for column in table.columns] == ["what", "n"]
    assert "odd" in render(record)


def test_small_probabilities_and_high_fitness_are_distinguishable(tmp_path: Path) -> None:
    best = [
        Entry("best", {"fitness": 1 - p / 0.8, "target_p": p, "how": "single"})
        for p in (6.9149e-6, 6.9252e-6)
    ]
    goals = {"target_id": 7, "target_p": 5.1e-5, "wanted_id": None}
    ranks = {"token": "x", "token_id": 7, "rank_before": 1, "rank_after": 9}
    moved = Entry("distribution", {"p_before": 0.8, "p_after": 6.9149e-6} | ranks)
    likely = Entry("top", {"case": "x", "token": "y", "p": 4.2e-5, "expected": None})
    known = {"case": "x", "prompt": "x", "format": "raw", "expected": "z", "rank": 900}
    small = {"output_p": 0.8, "p": 3.1e-7, "sequence_p": 2e-12}
    asked = Entry("predictions", known | small)
    record = run_of(
        tmp_path,
        step("evolve", "genetic", Entry("baseline", goals), *best, moved),
        step("ask", "predict", asked, likely),
    )
    text, page = markdown(record), render(record)
    for shown in (
        ("0.99999136", "6.91e-06"),
        ("0.99999134", "6.93e-06"),
        ("80 %", "6.91e-06"),
        ("3.10e-07", "2.00e-12"),
        ("4.20e-05",),
        ("5.10e-05",),
    ):
        assert " | ".join(shown) in text
        assert all(f'<td class="number">{cell}</td>' in page for cell in shown)
    assert "< 0.01 %" not in text
    assert "&lt; 0.01 %" not in page


def test_numbers_of_a_column_share_their_unit_and_decimals(tmp_path: Path) -> None:
    cells = [
        {"case": "a", "p": 7.3e-4, "rank": 16438, "rate": 0.5, "n": 1.25, "same": None},
        {"case": "b", "p": 4.64e-6, "rank": 2, "rate": 0.125, "n": 12.5, "same": 3},
        {"case": "c", "p": 0.5, "rank": 10, "rate": 1.0, "n": None, "same": 3},
    ]
    (table,) = step_tables.step_tables(
        run_of(tmp_path, step("x", "gone", *(Entry("t", one) for one in cells)))
    )
    kinds = {"p": "probability", "rank": "id", "rate": "share"}
    columns = {name: StepColumn(name, kind=kinds.get(name, "")) for name in cells[0]}
    texts = {name: table.texts(column) for name, column in columns.items()}
    assert texts == {
        "case": ["a", "b", "c"],
        "p": ["0.000730", "4.64e-06", "0.500"],
        "rank": ["16438", "2", "10"],
        "rate": ["50.0 %", "12.5 %", "100.0 %"],
        "n": ["1.25", "12.50", "–"],
        "same": ["–", "3", "3"],
    }
    assert [column.name for column in table.constant] == ["same"]


def test_a_column_of_empty_texts_is_left_out(record: RunRecord) -> None:
    rows = [answer(f"row {place}", "pass") for place in range(3)]
    rows = [replace(row, cells={**row.cells, "note": ""}) for row in rows]
    (table, *_) = step_tables.step_tables(replace(record, steps=(step("ask", "ask", *rows),)))
    assert "note" in [column.name for column in table.columns]
    assert "note" not in [column.name for column in (*table.filled, *table.constant)]
