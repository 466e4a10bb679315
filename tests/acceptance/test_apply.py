"""`glitchrun apply`: finished, repeated, killed, interrupted, refused."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.commands import Command, applied, invoked, run, start

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: tiny}
model: {path: ./model, device: cpu}
template: chatml
seed: 3
steps:
  - {id: mine, strategy: mine, search: gradient, iterations: 30, batch_size: 4, k: 16}
  - {id: asr, strategy: validate, tokens: {from: mine}, attempts: 3, max_new_tokens: 5}
gates:
  - {metric: mine/verified, op: "==", value: 120}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def project(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Any]:
    """The run that all others are held against."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "model").symlink_to(model)
    (folder / "spec.yaml").write_text(SPEC)
    return applied(folder, "spec.yaml", figures=True)


def only_run(result: dict[str, Any]) -> dict[str, Any]:
    (found,) = result["runs"]
    assert isinstance(found, dict)
    return found


def tokens(result: dict[str, Any]) -> bytes:
    return (Path(only_run(result)["artifacts_dir"]) / "tokens.jsonl").read_bytes()


def ledger(project: Path) -> Path | None:
    return next(project.glob("mlruns/runs/*/*/attempt-1/ledger.jsonl"), None)


def wait_for(condition: Callable[[], bool], process: Command[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step_ledgers(project: Path) -> list[Path]:
    """The ledgers of steps, the one that was written last at the end."""
    found = project.glob("mlruns/steps/*/attempt-1/ledger.jsonl")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def batches(project: Path) -> int:
    return sum(path.read_bytes().count(b'"kind":"batch"') for path in step_ledgers(project))


def facts(project: Path) -> int:
    """How many facts the ledgers of steps have."""
    lines = [line for path in step_ledgers(project) for line in path.read_text().splitlines()]
    entries = [json.loads(line) for line in lines]
    return sum(len(entry["facts"]) for entry in entries if entry["kind"] == "batch")


def test_run_writes_the_files_of_the_contract(uninterrupted: dict[str, Any]) -> None:
    found = only_run(uninterrupted)
    folder = Path(found["artifacts_dir"])
    for name in (
        "spec.yaml",
        "spec.resolved.yaml",
        "environment.json",
        "tokens.jsonl",
        "tokens.json",
        "report.html",
    ):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "plots").glob("*.png"))
    assert found["status"] == "FINISHED"
    assert uninterrupted["exit_code"] == 0
    assert [gate["outcome"] for gate in found["gates"]] == ["pass"]
    for metric in ("mine/glitch", "asr/confirmed", "model/bytes", "model/peak_bytes"):
        assert found["metrics"][metric] is not None


def test_tokens_jsonl_adds_up_to_the_metrics(uninterrupted: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in tokens(uninterrupted).splitlines()]
    metrics = only_run(uninterrupted)["metrics"]
    mined = [row for row in rows if row["step"] == "mine"]
    sampled = [row for row in rows if row["step"] == "asr"]
    assert len(mined) == metrics["mine/verified"] == 120
    assert sum(row["glitch"] for row in mined) == metrics["mine/glitch"]
    assert sum(row["confirmed"] for row in sampled) == metrics["asr/confirmed"]
    assert {row["token_id"] for row in sampled} == {r["token_id"] for r in mined if r["glitch"]}
    for row in sampled:
        assert row["asr"] == pytest.approx(row["failures"] / row["attempts"], abs=1e-6)


def test_mlflow_holds_the_run(uninterrupted: dict[str, Any]) -> None:
    found = only_run(uninterrupted)
    root = Path(found["artifacts_dir"])
    while root.name != "mlruns":
        root = root.parent
    with sqlite3.connect(root / "mlflow.db") as store:
        (status,) = store.execute(
            "select status from runs where run_uuid = ?", (found["run_id"],)
        ).fetchone()
        logged = dict(
            store.execute(
                "select key, value from latest_metrics where run_uuid = ?", (found["run_id"],)
            ).fetchall()
        )
    assert status == "FINISHED"
    for name, value in found["metrics"].items():
        if value is not None:
            assert logged[name] == pytest.approx(value), name


def test_second_apply_does_nothing(project: Path) -> None:
    first = applied(project, "spec.yaml")
    path = ledger(project)
    assert path
    before = path.read_bytes()
    again = invoked(project, "apply", "spec.yaml")
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr
    assert path.read_bytes() == before
    fresh = applied(project, "spec.yaml", "--fresh")
    assert tokens(fresh) == tokens(first)
    assert only_run(fresh)["artifacts_dir"] != only_run(first)["artifacts_dir"]


def test_killed_run_is_resumed_to_the_same_result(
    project: Path, uninterrupted: dict[str, Any]
) -> None:
    process = start(project, "apply", "spec.yaml")
    wait_for(lambda: ledger(project) is not None and batches(project) >= 30, process)
    process.kill()
    process.communicate()
    status = invoked(project, "status")
    assert "STALE" in status.stdout, status.stdout
    result = applied(project, "spec.yaml")
    assert result["exit_code"] == 0
    assert tokens(result) == tokens(uninterrupted)
    whole = Path(only_run(uninterrupted)["artifacts_dir"]).parents[5]
    assert facts(project) == facts(whole) > 0  # nothing was measured twice


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_stopped_run_is_reported_and_resumed(
    project: Path, uninterrupted: dict[str, Any], number: signal.Signals, code: int
) -> None:
    process = start(project, "apply", "-o", "json", "spec.yaml")
    wait_for(lambda: batches(project) >= 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    stopped = json.loads(out)
    assert only_run(stopped)["status"] == "KILLED"
    assert (Path(only_run(stopped)["artifacts_dir"]) / "report.html").exists()
    result = applied(project, "spec.yaml")
    assert tokens(result) == tokens(uninterrupted)
    assert only_run(result)["run_id"] == only_run(stopped)["run_id"]


def test_ctrl_c_before_the_run_begins_ends_with_130(project: Path) -> None:
    process = Command(str, project, ("apply", "spec.yaml"), creates=True)
    wait_for(lambda: bool(list(project.glob("mlruns/.creating-*"))), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped" in err
    assert "Traceback" not in err


def test_second_ctrl_c_stops_immediately_and_loses_nothing(
    project: Path, uninterrupted: dict[str, Any]
) -> None:
    process = start(project, "apply", "spec.yaml")
    wait_for(lambda: batches(project) >= 3, process)
    assert process.stderr
    process.send_signal(signal.SIGINT)
    while "a second signal" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "STALE" in invoked(project, "status").stdout
    assert tokens(applied(project, "spec.yaml")) == tokens(uninterrupted)


def test_full_disk_is_reported_and_loses_nothing(
    project: Path, uninterrupted: dict[str, Any]
) -> None:
    process = start(project, "apply", "spec.yaml")
    wait_for(lambda: batches(project) >= 3, process)
    path = step_ledgers(project)[-1]
    limit = path.stat().st_size + 2000
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "apply again" in err
    assert "Traceback" not in err
    assert tokens(applied(project, "spec.yaml")) == tokens(uninterrupted)


def test_damaged_ledger_is_reported_and_repaired(project: Path) -> None:
    short = SPEC.replace("iterations: 30", "iterations: 2").replace("120", "8")
    (project / "spec.yaml").write_text(short)
    first = applied(project, "spec.yaml")
    path = step_ledgers(project)[0]
    run_ledger = ledger(project)
    assert run_ledger
    right = tokens(first)
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(place for place, line in enumerate(lines) if b'"kind":"batch"' in line)
    path.write_bytes(
        b"".join([*lines[:last], lines[last].replace(b"0.", b"1.", 1), *lines[last + 1 :]])
    )
    (run_ledger.parent / "run.json").unlink()
    assert f"ledger.jsonl:{last + 1}: it was altered" in invoked(project, "status").stderr
    repaired = invoked(project, "apply", "spec.yaml")
    assert repaired.exit_code == 0, repaired.stderr
    assert f"ledger.jsonl:{last + 1}: it was altered" in repaired.stderr
    assert "kept in ledger.damaged-1.jsonl" in repaired.stderr
    assert tokens(first) == right
    assert "ledger was damaged" in (run_ledger.parent / "artifacts" / "report.html").read_text()
    assert "nothing to do" in invoked(project, "apply", "spec.yaml").stderr


def test_second_process_is_refused(project: Path) -> None:
    process = start(project, "apply", "spec.yaml")
    wait_for(lambda: batches(project) >= 3, process)
    process.send_signal(signal.SIGSTOP)  # it holds its lock for as long as this test needs
    second = run(project, "apply", "spec.yaml")
    process.kill()
    process.communicate()
    assert second.returncode == 4
    assert f"pid {process.pid}" in second.stderr
    assert "Traceback" not in second.stderr


def test_matrix_runs_in_sequence_and_only_selects_a_cell(project: Path) -> None:
    matrix = SPEC.replace("iterations: 30", "iterations: 3").replace("120", "12")
    (project / "spec.yaml").write_text(matrix + "matrix: {axes: {seed: [1, 2]}}\n")
    one = applied(project, "spec.yaml", "--only", "seed=2")
    assert [found["name"] for found in one["runs"]] == ["seed=2"]
    both = applied(project, "spec.yaml")
    assert [found["name"] for found in both["runs"]] == ["seed=1", "seed=2"]
    wrong = invoked(project, "apply", "spec.yaml", "--only", "seed=9")
    assert wrong.exit_code == 2
    assert "seed=1" in wrong.stderr


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ('{metric: mine/verified, op: ">", value: 1000}', 5),
        ('{metric: asr/asr_mean, op: ">=", value: 0, min_n: 5000}', 6),
    ],
)
def test_gates_decide_the_exit_code(project: Path, gate: str, code: int) -> None:
    short = SPEC.replace("iterations: 30", "iterations: 2").split("gates:")[0]
    (project / "spec.yaml").write_text(f"{short}gates:\n  - {gate}\n")
    assert applied(project, "spec.yaml")["exit_code"] == code
    assert applied(project, "spec.yaml")["exit_code"] == code  # also when there is nothing to do


def test_failed_cell_decides_the_exit_code_and_finished_cells_are_reported(project: Path) -> None:
    bad = SPEC.replace("iterations: 30", "iterations: 2").split("gates:")[0]
    bad = bad.replace("tokens: {from: mine}", "tokens: {ids: [5]}")
    values = "[{ids: [5]}, {texts: [not one]}, {ids: [6]}]"
    (project / "spec.yaml").write_text(f"{bad}matrix: {{axes: {{steps.asr.tokens: {values}}}}}\n")
    first, last = ('tokens={"ids": [5]}', 'tokens={"ids": [6]}')
    for words, code, finished in (([], 1, [first]), (["--keep-going"], 7, [first, last])):
        stopped = run(project, "apply", "-o", "json", "spec.yaml", *words)
        found = json.loads(stopped.stdout)
        assert stopped.returncode == found["exit_code"] == code
        assert [one["name"] for one in found["runs"]] == finished
        assert {one["status"] for one in found["runs"]} == {"FINISHED"}
        for text in (found["error"], stopped.stderr):
            assert "spec.yaml:10:57" in text
            assert "'not one' is not one token" in text
        assert "Traceback" not in stopped.stderr


def test_missing_model_is_a_preflight_error(project: Path) -> None:
    (project / "spec.yaml").write_text(SPEC.replace("./model", "./nowhere"))
    failed = run(project, "apply", "spec.yaml")
    assert failed.returncode == 4
    assert "spec.yaml:4:15: model.path" in failed.stderr
    assert "nowhere" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("output", ["text", "json"])
def test_undelivered_run_is_reported_with_a_remedy(project: Path, output: str) -> None:
    (project / "spec.yaml").write_text(SPEC.replace("iterations: 30", "iterations: 2"))
    process = start(project, "apply", "spec.yaml", "-o", output)
    wait_for(lambda: batches(project) > 0, process)
    store = project / "mlruns" / "mlflow.db"
    store.unlink()
    store.mkdir()
    _, err = process.communicate(timeout=120)
    assert process.returncode in (4, 5)  # the gate, on fewer tokens than it asks for, fails
    assert "glitchrun sync" in err
    assert "Traceback" not in err


def test_an_unreachable_server_is_a_preflight_error(project: Path) -> None:
    failed = run(project, "apply", "spec.yaml", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert failed.returncode == 4
    assert "127.0.0.1:9" in failed.stderr
    assert "Traceback" not in failed.stderr
