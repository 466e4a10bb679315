"""tokens.jsonl and tokens.json."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from glitchrun.events import Batch, ProbeResult, Sampled, Token, Verified
from glitchrun.ledger.record import RunRecord, StepRecord, TimedBatch
from glitchrun.report.token_files import write_tokens
from tests.support.invented_facts import WEIRD
from tests.support.records import Invented, write_run
from tests.support.reporting import rows

FIELDS = [
    "step",
    "token_id",
    "token",
    "piece",
    "category",
    "norm",
    "presented_intact",
    "probes",
    "glitch",
    "emitted",
    "attempts",
    "failures",
    "asr",
    "asr_low",
    "asr_high",
    "confirmed",
    "emitted_text",
    "control_of",
    "control_alike",
    "control_elsewhere",
    "false_alarm",
    "indicators",
]
TOKEN = Token(7, " the", "Ġthe", "normal", 1 / 3)
RESULT = ProbeResult(0.123456789, 3, 2.0, 11, 1.5, False, "float32", True)


def record_of(tmp_path: Path, *facts: Verified | Sampled, strategy: str = "scan") -> RunRecord:
    """A run with one step, which recorded each of `facts` in a batch of its own."""
    batches = tuple(
        TimedBatch(place, Batch((fact,), place, None)) for place, fact in enumerate(facts, start=1)
    )
    step = StepRecord("only", strategy, {}, 0, 1, batches)
    return replace(write_run(tmp_path), steps=(step,))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return write_run(tmp_path_factory.mktemp("runs"))


def test_every_line_has_every_field_in_the_contracts_order(record: RunRecord) -> None:
    assert all(list(row) == FIELDS for row in rows(record))


def test_one_line_for_each_step_and_token_in_order_of_appearance(record: RunRecord) -> None:
    facts = [
        (step.id, fact.token.id)
        for step in record.steps
        for timed in step.batches
        for fact in timed.batch.facts
    ]
    assert [(row["step"], row["token_id"]) for row in rows(record)] == facts
    assert len({step for step, _ in facts}) == 2


def test_fields_that_a_step_does_not_measure_are_null(record: RunRecord) -> None:
    for row in rows(record):
        unmeasured = FIELDS[10:] if row["step"] == "mine" else ["probes", "glitch", "emitted"]
        assert [row[name] for name in unmeasured] == [None] * len(unmeasured)


def test_a_verdict_is_written_with_its_probes(tmp_path: Path) -> None:
    fact = Verified(TOKEN, {"repeat": RESULT}, True, "prefix")
    (row,) = rows(record_of(tmp_path, fact))
    assert row["norm"] == 0.3333333
    assert row["glitch"] is True
    assert row["emitted"] == "prefix"
    assert row["presented_intact"] is True
    assert row["probes"] == {
        "repeat": {
            "p": 0.1234568,
            "rank": 3,
            "entropy": 2.0,
            "argmax": 11,
            "gap": 1.5,
            "pass": False,
            "decided_in": "float32",
        }
    }


def test_samples_are_written_with_their_interval(tmp_path: Path) -> None:
    fact = Sampled(TOKEN, (True, True, False), 2 / 3, 0.2, 0.9, False, intact=False)
    (row,) = rows(record_of(tmp_path, fact, strategy="validate"))
    assert {name: row[name] for name in FIELDS[10:16]} == {
        "attempts": 3,
        "failures": 2,
        "asr": 0.6666667,
        "asr_low": 0.2,
        "asr_high": 0.9,
        "confirmed": False,
    }
    assert row["presented_intact"] is False


def test_a_token_examined_twice_has_one_line_with_the_later_facts(tmp_path: Path) -> None:
    first = Verified(TOKEN, {"repeat": RESULT}, True, "prefix")
    again = replace(first, glitch=False, emitted=None)
    sampled = Sampled(TOKEN, (True,), 1.0, 0.2, 1.0, True)
    (row,) = rows(record_of(tmp_path, first, sampled, again))
    assert (row["glitch"], row["emitted"], row["confirmed"]) == (False, None, True)


def test_nan_and_infinities_become_null(tmp_path: Path) -> None:
    odd = replace(RESULT, p=math.nan, entropy=math.inf)
    record = record_of(tmp_path, Verified(TOKEN, {"repeat": odd}, False, "other"))
    lines, _ = write_tokens(record, tmp_path)
    probe = json.loads(lines.read_text(encoding="utf-8"))["probes"]["repeat"]
    assert (probe["p"], probe["entropy"], probe["rank"]) == (None, None, 3)


def test_lines_survive_every_way_of_splitting_lines(record: RunRecord, tmp_path: Path) -> None:
    separators = "\u2028\u2029\x85\x1c\ud800\u202e"
    hostile = [replace(TOKEN, id=place, text=c) for place, c in enumerate(separators)]
    facts = [Verified(token, {"repeat": RESULT}, True, "other") for token in hostile]
    lines, _ = write_tokens(record_of(tmp_path, *facts), tmp_path)
    read = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["token"] for row in read] == list(separators)


def test_the_file_contains_the_lines(record: RunRecord, tmp_path: Path) -> None:
    lines, _ = write_tokens(record, tmp_path)
    text = lines.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == rows(record)
    assert set(WEIRD) <= {json.loads(line)["token"] for line in text.splitlines()}
    assert "한국어" in text  # readable text stays readable


def test_bytes_do_not_depend_on_batches_or_times(tmp_path: Path) -> None:
    written = []
    for place, made in enumerate((Invented(batch=8), Invented(batch=40, started_at=5))):
        folder = tmp_path / str(place)
        folder.mkdir()
        paths = write_tokens(write_run(folder / "root", made), folder)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


def test_the_mlflow_table_has_a_row_for_each_token(record: RunRecord, tmp_path: Path) -> None:
    _, path = write_tokens(record, tmp_path)
    table = json.loads(path.read_text(encoding="utf-8"))
    columns = table["columns"]
    assert columns[0] == "token_repr"
    assert {"step", "token_id", "category", "glitch", "p", "rank", "entropy", "asr"} <= {*columns}
    found = [dict(zip(columns, cells, strict=True)) for cells in table["data"]]
    mined = {row["token_id"]: row for row in rows(record) if row["step"] == "mine"}
    sampled = {row["token_id"]: row for row in rows(record) if row["step"] == "asr"}
    assert sorted(row["token_id"] for row in found) == sorted(mined)
    for row in found:
        line = mined[row["token_id"]]
        assert (row["glitch"], row["p"]) == (line["glitch"], line["probes"]["repeat"]["p"])
        assert row["asr"] == (sampled[row["token_id"]]["asr"] if line["glitch"] else None)
    order = [row["verdict"] for row in found]
    names = ["confirmed", "unconfirmed", "passed"]
    assert order == sorted(order, key=names.index)
    assert set(order) == set(names)


def test_the_mlflow_table_shows_invisible_characters(record: RunRecord, tmp_path: Path) -> None:
    _, path = write_tokens(record, tmp_path)
    shown = [cells[0] for cells in json.loads(path.read_text(encoding="utf-8"))["data"]]
    assert "␣petertodd" in shown
    assert not any(c in text for text in shown for c in " \n\t\x00\u200b\u202e\ud800")


def test_a_run_without_facts_leaves_empty_tables(tmp_path: Path) -> None:
    lines, table = write_tokens(record_of(tmp_path), tmp_path)
    assert lines.read_bytes() == b""
    assert json.loads(table.read_text())["data"] == []
