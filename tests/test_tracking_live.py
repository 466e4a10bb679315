"""The tracker of a run that is going on, and what is delivered afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.errors import PreflightError
from glitchrun.ledger import hold, read_run
from glitchrun.ledger.files import LEDGER
from glitchrun.tracking import live
from glitchrun.tracking.links import compare_link, experiment_link, links
from glitchrun.tracking.live import MlflowTracker, reap
from glitchrun.tracking.server import serving
from glitchrun.tracking.sync import sync
from glitchrun.tracking.system import Sampler, gpu_values
from tests.support.records import Invented, write_matrix, write_run
from tests.support.stores import counts, new_root, query


def _until(happened: Any) -> None:
    """Waits for something that another thread or process does."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextmanager
def _nobody_listening() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://me:hunter2@127.0.0.1:{taken.getsockname()[1]}"


def _tracker(root: Path) -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{root}/mlflow.db", root, interval=0.05)


def test_a_run_is_followed_while_it_goes_on(tmp_path: Path) -> None:
    root, whole = new_root(tmp_path / "live"), new_root(tmp_path / "whole")
    tracker = _tracker(root)
    tracker.open(write_run(root, upto=2))
    tracker.update(write_run(root, upto=13))
    shown = "SELECT max(value) FROM metrics WHERE key = 'mine/verified'"
    _until(lambda: query(root, shown) == [(80.0,)])
    assert query(root, "SELECT status FROM runs") == [("RUNNING",)]
    record = write_run(root)
    tracker.close(record)
    assert tracker.failure is None
    assert query(root, "SELECT status FROM runs") == [("FINISHED",)]
    run_ids = query(root, "SELECT run_uuid FROM runs")
    assert read_run(record.folder).delivered_to["run_id"] == run_ids[0][0]
    list(sync([write_run(whole)], whole))
    ours = "SELECT key, value, step FROM metrics WHERE key LIKE '%/%' "
    ours += "AND key NOT LIKE 'system/%' AND key NOT LIKE 'model/%' ORDER BY 1, 3, 2"
    assert query(root, ours) == query(whole, ours)


def test_the_machine_is_watched_even_in_a_short_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    tracker = _tracker(root)
    tracker.open(write_run(root, upto=2))
    tracker.close(write_run(root))
    (megabytes,) = query(
        root, "SELECT value FROM latest_metrics WHERE key = 'system/process_memory_megabytes'"
    )
    assert megabytes[0] > 10  # type: ignore[operator]


def test_a_store_that_is_down_is_remembered_and_nothing_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root = tmp_path / "mlruns"
    with _nobody_listening() as uri:
        tracker = MlflowTracker(uri, root, interval=0.05)
        tracker.open(write_run(root, upto=2))
        assert tracker.failure is not None
        tracker.update(write_run(root, upto=9))
        tracker.close(write_run(root))
    assert tracker.failure is not None
    assert "nothing listens there" in tracker.failure
    assert "hunter2" not in tracker.failure


def test_a_store_that_comes_back_has_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, whole = new_root(tmp_path / "live"), new_root(tmp_path / "whole")
    tracker = _tracker(root)

    def down(*args: Any) -> None:
        raise live.TrackingUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(live, "advance", down)
        tracker.open(write_run(root, upto=2))
        assert tracker.failure == "down"
    tracker.close(write_run(root))
    assert tracker.failure is None
    list(sync([write_run(whole)], whole))
    assert counts(root)["params"] == counts(whole)["params"]
    ours = "SELECT count(*) FROM metrics WHERE key NOT LIKE 'system/%' AND key NOT LIKE 'model/%'"
    assert query(root, ours) == query(whole, ours)


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    tracker = _tracker(root)
    tracker.open(write_run(root, upto=2))
    assert "mlflow" in {thread.name for thread in threading.enumerate()}
    tracker.close(write_run(root))
    assert "mlflow" not in {thread.name for thread in threading.enumerate()}


def test_runs_of_dead_processes_are_set_right(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(status="RUNNING"))
    list(sync([record], root))
    assert query(root, "SELECT status FROM runs") == [("RUNNING",)]
    killed = write_run(root, Invented(status="KILLED"))
    assert reap([killed], root) == []
    assert query(root, "SELECT status, end_time FROM runs") == [("KILLED", killed.ended_at)]


def test_a_dead_run_that_cannot_be_delivered_does_not_stop_the_next(tmp_path: Path) -> None:
    record = write_run(tmp_path, Invented(tracking_uri="https://***@gone/mlflow"))
    (message,) = reap([record], tmp_path)
    assert "credentials are not kept" in message


def test_sync_delivers_what_is_missing_and_says_what_is_there(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    records = [write_run(root), *write_matrix(root)]
    first = [synced.outcome for synced in sync(records[:2], root)]
    second = [synced.outcome for synced in sync(records, root)]
    third = [synced.outcome for synced in sync(records[:1], root, again=True)]
    assert first == ["delivered"] * 2
    assert second == ["there already"] * 2 + ["delivered"] * 2
    assert third == ["delivered"]


def test_sync_leaves_a_run_to_the_process_that_executes_it(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(status="RUNNING"))
    with hold(record.folder.parent):
        assert [synced.outcome for synced in sync([record], root)] == ["running"]
    assert counts(root)["runs"] == 0


def test_sync_fills_another_store_from_the_ledger_alone(tmp_path: Path) -> None:
    root = new_root(tmp_path / "one")
    other = new_root(tmp_path / "two")
    records = write_matrix(root)
    list(sync(records, root, to=f"sqlite:///{other}/mlflow.db"))
    assert counts(root)["runs"] == 0
    assert counts(other)["runs"] == 4


def test_the_command_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with _nobody_listening() as uri:
        failed = CliRunner().invoke(main, ["sync", "--to", uri])
    assert failed.exit_code == 4
    assert "does not answer" in failed.output
    assert "hunter2" not in failed.output


def test_sync_of_a_ledger_that_was_damaged_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    names = {link.what for link in found}
    assert "quantization-sweep: table of runs" in names
    assert "smollm2-quickstart: its run" in names
    compared = next(link.address for link in found if "compared" in link.what)
    assert compared.count("%22%2C%22") == 2  # three runs: the parent has nothing to compare
    only = links("http://h", f"sqlite:///{root}/mlflow.db", root, "smollm2-quickstart")
    assert {link.what.partition(":")[0] for link in only} == {"smollm2-quickstart"}


def test_links_hold_no_credentials() -> None:
    link = experiment_link("https://me:hunter2@host/mlflow/", "3", "CHART")
    assert link == (
        "https://host/mlflow/#/experiments/3/runs?workflowType=machine_learning"
        "&viewStateShareKey=glitchrun&compareRunsMode=CHART"
    )
    assert "runs=%5B%22a%22%2C%22b%22%5D" in compare_link("http://h", "1", ["a", "b"])


def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(PreflightError, match=rf"port {port} .* --port"),
            serving("sqlite:///x", tmp_path, port),
        ):
            pass


def test_the_ui_serves_prints_its_links_and_stops_whole(tmp_path: Path) -> None:
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


def test_samples_are_kept_until_they_are_delivered() -> None:
    sampler = Sampler(time.time_ns() // 1_000_000 - 5_000)
    sampler.sample()
    first = sampler.pending()
    assert {point.key for point in first} >= {
        "system/process_memory_megabytes",
        "system/system_memory_usage_percentage",
    }
    assert all(point.step >= 5 for point in first)
    sampler.sample()
    rest = sampler.pending()[len(first) :]
    assert len(rest) >= len(first)
    sampler.delivered(len(first))
    assert sampler.pending() == rest


def test_what_nvidia_smi_lists_becomes_metrics() -> None:
    found = dict(gpu_values("0, 37, 1024, 81559, 115.37\n1, [N/A], 0, 81559, [N/A]\n"))
    assert found["gpu_0_utilization_percentage"] == 37
    assert found["gpu_0_memory_usage_megabytes"] == pytest.approx(1073.741824)
    assert found["gpu_0_power_usage_watts"] == 115.37
    assert "gpu_1_utilization_percentage" not in found
    assert found["gpu_1_memory_usage_percentage"] == 0


def test_describing_a_run_needs_no_mlflow() -> None:
    code = (
        "import sys; import glitchrun.tracking.live, glitchrun.tracking.store; "
        "print([name for name in ('mlflow', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_record_that_is_delivered_says_where(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    (synced,) = sync([record], root)
    noted = json.loads((record.folder / "delivered.json").read_text())
    assert noted == {"run_id": synced.detail, "experiment_id": "1"}
