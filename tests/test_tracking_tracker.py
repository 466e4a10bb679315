"""Delivering a run while it is executed, and system metrics."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glitchrun.errors import TrackingUnavailable
from glitchrun.ledger import read_run
from glitchrun.tracking import tracker as tracker_module
from glitchrun.tracking.sync import close_dead_runs, sync
from glitchrun.tracking.tracker import MlflowTracker, SystemSampler, gpu_values
from tests.support.records import Invented, write_run
from tests.support.stores import counts, new_root, nobody_listening, query


def _until(happened: Any) -> None:
    """Waits until another thread or process has done something."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _tracker(root: Path) -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{root}/mlflow.db", root, interval=0.05)


def test_run_is_delivered_while_it_is_executed(tmp_path: Path) -> None:
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


def test_short_run_has_system_metrics(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    tracker = _tracker(root)
    tracker.open(write_run(root, upto=2))
    tracker.close(write_run(root))
    (megabytes,) = query(
        root, "SELECT value FROM latest_metrics WHERE key = 'system/process_memory_megabytes'"
    )
    assert megabytes[0] > 10  # type: ignore[operator]


def test_dead_store_is_reported_and_does_not_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root = tmp_path / "mlruns"
    with nobody_listening() as uri:
        tracker = MlflowTracker(uri, root, interval=0.05)
        tracker.open(write_run(root, upto=2))
        assert tracker.failure is not None
        tracker.update(write_run(root, upto=9))
        tracker.close(write_run(root))
    assert tracker.failure is not None
    assert "nothing listens there" in tracker.failure
    assert "hunter2" not in tracker.failure


def test_store_that_recovers_receives_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, whole = new_root(tmp_path / "live"), new_root(tmp_path / "whole")
    tracker = _tracker(root)

    def down(*args: Any) -> None:
        raise TrackingUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(tracker_module, "advance", down)
        tracker.open(write_run(root, upto=2))
        assert tracker.failure == "down"
    tracker.close(write_run(root))
    assert tracker.failure is None
    list(sync([write_run(whole)], whole))
    assert counts(root)["params"] == counts(whole)["params"]
    ours = "SELECT count(*) FROM metrics WHERE key NOT LIKE 'system/%' AND key NOT LIKE 'model/%'"
    assert query(root, ours) == query(whole, ours)


def test_close_ends_the_thread(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    tracker = _tracker(root)
    tracker.open(write_run(root, upto=2))
    assert "mlflow" in {thread.name for thread in threading.enumerate()}
    tracker.close(write_run(root))
    assert "mlflow" not in {thread.name for thread in threading.enumerate()}


def test_runs_of_dead_processes_are_closed(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(status="RUNNING"))
    list(sync([record], root))
    assert query(root, "SELECT status FROM runs") == [("RUNNING",)]
    killed = write_run(root, Invented(status="KILLED"))
    assert close_dead_runs([killed], root) == []
    assert query(root, "SELECT status, end_time FROM runs") == [("KILLED", killed.ended_at)]


def test_dead_run_that_cannot_be_delivered_is_reported(tmp_path: Path) -> None:
    record = write_run(tmp_path, Invented(tracking_uri="https://***@gone/mlflow"))
    (message,) = close_dead_runs([record], tmp_path)
    assert "credentials are not kept" in message


def test_samples_are_kept_until_delivered() -> None:
    sampler = SystemSampler(time.time_ns() // 1_000_000 - 5_000)
    sampler.sample()
    first = sampler.pending()
    assert {point.key for point in first} >= {
        "system/process_memory_megabytes",
        "system/system_memory_usage_percentage",
    }
    assert all(point.step >= 5 for point in first)
    sampler.sample()
    rest = sampler.pending()[len(first) :]
    assert rest  # without CPU use if both samples fell into one tick of the clock
    sampler.delivered(len(first))
    assert sampler.pending() == rest


def test_metrics_from_nvidia_smi() -> None:
    found = dict(gpu_values("0, 37, 1024, 81559, 115.37\n1, [N/A], 0, 81559, [N/A]\n"))
    assert found["gpu_0_utilization_percentage"] == 37
    assert found["gpu_0_memory_usage_megabytes"] == pytest.approx(1073.741824)
    assert found["gpu_0_power_usage_watts"] == 115.37
    assert "gpu_1_utilization_percentage" not in found
    assert found["gpu_1_memory_usage_percentage"] == 0


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = (
        "import sys; import glitchrun.tracking.tracker, glitchrun.tracking.store; "
        "print([name for name in ('mlflow', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
