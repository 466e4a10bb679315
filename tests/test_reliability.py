"""The short form of `make torture` and `make fuzz`, and the pages that describe them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from glitchrun.events import Verified
from glitchrun.ledger import find_runs
from glitchrun.report import lacks_report
from glitchrun.runner.apply import apply
from glitchrun.runner.options import Options
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.strategies.judging import Judge
from tests.support import quiet
from tests.support.commands import ROOT
from tests.support.oracle import FOLDER
from tests.support.quiet import Quiet
from tests.support.records import write_run
from tools import pages
from tools.endurance import Sample, slope, warmed
from tools.fuzz import __main__ as fuzz
from tools.fuzz.targets import TARGETS
from tools.torture import __main__ as torture
from tools.torture import kills
from tools.torture.bench import FAULTS, Bench, Outcome

SPEC = f"""\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: memory}}
model: {{path: {FOLDER}, device: cpu}}
steps: [{{id: t, strategy: test, tokens: {{ids: [300, 310]}}, batch_size: 1}}]
"""


def test_run_killed_several_times_finds_the_same(tmp_path: Path) -> None:
    outcome = Outcome()
    kills.kill_some(Bench(tmp_path, seed=2), outcome, "test", 2)
    assert outcome.objections == []
    assert -9 in outcome.codes


def test_table_keeps_the_rows_of_other_faults(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- torture: begin -->\n<!-- torture: end -->\nafter\n")
    for name, codes in (("pipe", [0]), ("kill-scan", [-9, -9, 0]), ("pipe", [0, 1])):
        torture._write(page, name, torture._row(name, [Outcome(codes)], 3))
    text = page.read_text()
    assert f"2 of {len(FAULTS)} faults injected, 2 commands ended by `kill -9`" in text
    rows = _cells(page)
    assert list(rows) == list(FAULTS)
    assert [name for name, cells in rows.items() if cells[-1] != "not run"] == ["kill-scan", "pipe"]
    assert rows["kill-scan"][-2:] == ["SIGKILL × 2, 0 × 1", "1 of 1"]
    assert rows["pipe"][-2:] == ["0 × 1, 1 × 1", "1 of 1"]
    assert (text[:7], text[-6:]) == ("before\n", "after\n")


def _cells(page: Path) -> dict[str, list[str]]:
    """The cells of every row of the table of faults, without the name."""
    found = pages.rows(page, "torture").items()
    return {name: [cell.strip() for cell in row.split("|")[2:-1]] for name, row in found}


def test_report_that_a_power_cut_lost_is_noticed(tmp_path: Path) -> None:
    record = write_run(tmp_path / "mlruns")
    page, tokens = record.artifacts / "report.html", record.artifacts / "tokens.jsonl"
    assert lacks_report(record)
    page.write_text("<!doctype html>")
    assert lacks_report(record)
    tokens.write_text("{}\n")
    assert not lacks_report(record)
    for path in (page, tokens):
        whole = path.read_bytes()
        for lost in (b"", bytes(len(whole))):
            path.write_bytes(lost)
            assert lacks_report(record)
        path.write_bytes(whole)
    page.unlink()
    page.mkdir()  # not ours to replace
    assert not lacks_report(record)


def test_page_has_a_row_for_every_fault() -> None:
    rows = _cells(ROOT / "docs/reliability.md")
    assert list(rows) == list(FAULTS)
    for name, (what, *_, state) in rows.items():
        assert what == f"{FAULTS[name].group} {FAULTS[name].what}"
        held = re.fullmatch(r"(\d+) of (\d+)", state)
        assert held is None or held[1] == held[2], f"{name} does not hold: {state}"
        assert held or state == "not run" or state.startswith("not injected: ")


def test_growth_is_that_after_the_model_is_loaded_and_warm() -> None:
    loading = [Sample(at, 1000 * at, 5, 1, 0) for at in range(10)]
    measuring = [Sample(at, 10_000 + 2 * at, 5, 1, 1) for at in range(10, 19)]
    steady = warmed([*loading, *measuring], 1)
    assert [one.at for one in steady] == list(range(13, 19))
    assert slope([(one.at, one.memory) for one in steady]) == pytest.approx(2)


def test_step_without_memory_fails_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet.without_store_and_report(monkeypatch)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    judge, root = Judge.judge, tmp_path / "mlruns"

    def fail(self: Judge, ids: list[int]) -> list[Verified]:
        if 310 in ids:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return judge(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "judge", fail)
        done = apply(load_experiment(spec), root, Options(), Quiet())
    assert done.exit_code == 1
    assert "memory ran out; close other programs" in done.failures[0]
    (failed,) = find_runs(root)
    assert failed.status == "FAILED"
    again = apply(load_experiment(spec), root, Options(), Quiet())
    assert again.exit_code == 0
    assert [len(step.batches) for step in find_runs(root)[0].steps] == [2]


def test_end_of_a_step_that_is_there_twice_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet.without_store_and_report(monkeypatch)
    spec, root = tmp_path / "spec.yaml", tmp_path / "mlruns"
    spec.write_text(SPEC)
    apply(load_experiment(spec), root, Options(), Quiet())
    (ledger,) = root.glob("steps/*/*/ledger.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([*lines, lines[-1]]))
    assert find_runs(root)[0].status == "DAMAGED"
    assert apply(load_experiment(spec), root, Options(), Quiet()).exit_code == 0
    assert find_runs(root)[0].status == "FINISHED"
    assert ledger.with_name("ledger.damaged-1.jsonl").exists()


def test_counts_of_fuzzing_come_from_the_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- fuzz: begin -->\n<!-- fuzz: end -->\nafter\n")
    words = ["--only", "gguf", "--examples", "3", "--first", "7", "--write", str(page)]
    assert fuzz.main(words) == 0
    found = pages.rows(page, "fuzz")
    assert list(found) == list(TARGETS)
    cells = [cell.strip() for cell in found["gguf"].split("|")[2:-1]]
    assert cells[:2] == ["3,000", "3"]
    assert int(cells[2]) + int(cells[3]) == 3
    assert (cells[4], cells[6]) == ("0", "1, 7 to 9")
    heads = page.read_text().splitlines()
    assert {line.count("|") for line in heads if line.startswith("|")} == {11}


@pytest.mark.parametrize(
    ("name", "examples"),
    [("validate", 80), ("import", 60), ("gguf", 60), ("safetensors", 8), ("config", 6),
     ("tokenizer", 6), ("apply", 2)],
)  # fmt: skip
def test_changed_input_is_accepted_or_refused(
    name: str, examples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--only", name, "--examples", str(examples), "--seed", "3", "--keep", str(tmp_path)]
    assert fuzz.main(words) == 0, capsys.readouterr().out
    assert f"{name}: {TARGETS[name].what}:" in capsys.readouterr().out
