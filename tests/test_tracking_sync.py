"""Delivering runs afterwards, links, and the server of the UI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.errors import PreflightError
from glitchrun.ledger import hold, read_run
from glitchrun.ledger.files import LEDGER
from glitchrun.tracking.experiment import compare_link, experiment_link, links
from glitchrun.tracking.server import serving
from glitchrun.tracking.sync import sync
from tests.support.records import Invented, write_matrix, write_run
from tests.support.stores import counts, new_root, nobody_listening, query


def test_sync_delivers_missing_runs_only(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    records = [write_run(root), *write_matrix(root)]
    first = [synced.outcome for synced in sync(records[:2], root)]
    second = [synced.outcome for synced in sync(records, root)]
    third = [synced.outcome for synced in sync(records[:1], root, again=True)]
    assert first == ["delivered"] * 2
    assert second == ["there already"] * 2 + ["delivered"] * 2
    assert third == ["delivered"]


def test_sync_skips_a_running_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(status="RUNNING"))
    with hold(record.folder.parent):
        assert [synced.outcome for synced in sync([record], root)] == ["running"]
    assert counts(root)["runs"] == 0


def test_sync_fills_another_store(tmp_path: Path) -> None:
    root = new_root(tmp_path / "one")
    other = new_root(tmp_path / "two")
    records = write_matrix(root)
    list(sync(records, root, to=f"sqlite:///{other}/mlflow.db"))
    assert counts(root)["runs"] == 0
    assert counts(other)["runs"] == 4


def test_sync_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = new_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "no runs" in CliRunner().invoke(main, ["sync"]).output
    write_run(root)
    write_run(root, Invented(status="RUNNING", key="dead"))
    done = CliRunner().invoke(main, ["sync"])
    assert done.exit_code == 0, done.output
    assert "2 delivered" in done.output
    assert {status for (status,) in query(root, "SELECT status FROM runs")} == {
        "FINISHED",
        "KILLED",  # its process is dead
    }
    assert "2 there already" in CliRunner().invoke(main, ["sync"]).output
    assert "1 delivered" in CliRunner().invoke(main, ["sync", "5f0c"]).output
    with nobody_listening() as uri:
        failed = CliRunner().invoke(main, ["sync", "--to", uri])
    assert failed.exit_code == 4
    assert "does not answer" in failed.output
    assert "hunter2" not in failed.output


def test_sync_names_the_damaged_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = new_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    ledger = write_run(root).folder / LEDGER
    ledger.write_text("{}}\n" + ledger.read_text())
    done = CliRunner().invoke(main, ["sync"])
    assert done.exit_code == 1
    assert f"{LEDGER}:1" in done.output


def test_links_open_on_the_saved_view(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    records = [write_run(root), *write_matrix(root)]
    list(sync(records, root))
    found = links("http://127.0.0.1:5000", f"sqlite:///{root}/mlflow.db", root)
    names = {link.title for link in found}
    assert "quantization-sweep: table of runs" in names
    assert "smollm2-quickstart: its run" in names
    compared = next(link.address for link in found if "compared" in link.title)
    assert compared.count("%22%2C%22") == 2  # three runs: the parent has nothing to compare
    only = links("http://h", f"sqlite:///{root}/mlflow.db", root, "smollm2-quickstart")
    assert {link.title.partition(":")[0] for link in only} == {"smollm2-quickstart"}


def test_links_contain_no_credentials() -> None:
    link = experiment_link("https://me:hunter2@host/mlflow/", "3", "CHART")
    assert link == (
        "https://host/mlflow/#/experiments/3/runs?workflowType=machine_learning"
        "&viewStateShareKey=glitchrun&compareRunsMode=CHART"
    )
    assert "runs=%5B%22a%22%2C%22b%22%5D" in compare_link("http://h", "1", ["a", "b"])


def test_port_in_use_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(PreflightError, match=rf"port {port} .* --port"),
            serving("sqlite:///x", tmp_path, port),
        ):
            pass


def test_ui_serves_prints_links_and_stops(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    list(sync([write_run(root)], root))
    code = "from glitchrun.cli import main; main(prog_name='glitchrun')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ui", "--port", "0", "--no-open"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(5)]
    assert "smollm2-quickstart: table of runs" in said[0]
    address = said[1].strip().partition("/#")[0]
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rpartition(":")[2])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    with socket.socket() as probe:  # nobody is left listening
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_delivered_run_records_its_ids(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    (synced,) = sync([record], root)
    noted = json.loads((record.folder / "delivered.json").read_text())
    ids = {"run_id": synced.detail, "experiment_id": "1"}
    assert noted == {**ids, "ending": record.ending}
    assert read_run(record.folder).delivered
    assert not record.delivered
