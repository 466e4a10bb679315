"""mlflow.db: created atomically, backed up, moved; and stores that do not answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from glitchrun.errors import TrackingUnavailable
from glitchrun.tracking import address, sqlite_file
from glitchrun.tracking.address import tracking_uri
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.store import ensure_store, open_store
from tests.support.records import write_run
from tests.support.stores import new_root, open_root, query

PREPARE = (
    "import sys; from pathlib import Path; from glitchrun.tracking.sqlite_file import prepare; "
    "prepare(Path(sys.argv[1]), print)"
)


def _preparing(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _is_whole(path: Path) -> bool:
    from mlflow import MlflowClient

    uri = f"sqlite:///{path}"
    return len(MlflowClient(uri, registry_uri=uri).search_experiments()) == 1


def test_four_processes_create_one_store(tmp_path: Path) -> None:
    path = tmp_path / "mlruns" / "mlflow.db"
    processes = [_preparing(path) for _ in range(4)]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert _is_whole(path)
    assert not list(path.parent.glob(".creating-*"))


@pytest.mark.usefixtures("created_stores")
def test_creation_succeeds_after_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    process = _preparing(path)
    time.sleep(2.5)  # the result must not depend on the moment of the kill
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if not path.exists():
        path.touch()  # a program that only connects leaves an empty file
    sqlite_file.prepare(path, print)
    assert _is_whole(path)


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    sqlite3.connect(path).execute("CREATE TABLE mine (x)").connection.close()
    with pytest.raises(TrackingUnavailable, match="not a whole MLflow store"):
        sqlite_file.prepare(path, print)
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(TrackingUnavailable, match="cannot be used"):
        sqlite_file.prepare(path, print)


def test_incomplete_store_of_mlflow_is_recognised(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    with sqlite3.connect(root / "mlflow.db") as database:
        database.execute("CREATE TABLE _alembic_tmp_tags (x)")
    with pytest.raises(TrackingUnavailable, match="interrupted"):
        ensure_store(tracking_uri(None, root, {}), root)


def test_unwritable_folder_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingUnavailable, match="cannot be written"):
        ensure_store(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path)


def test_store_is_copied_once_before_another_mlflow_opens_it(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    note = root / "mlflow.db.json"
    note.write_text(json.dumps({"mlflow": "3.1.0", "folder": str(root)}))
    said: list[str] = []
    for _ in range(2):
        sqlite_file.prepare(root / "mlflow.db", said.append)
    copies = list(root.glob("mlflow.db.before-*"))
    assert len(copies) == 1
    assert len(said) == 1
    assert "3.1.0" in said[0]
    assert copies[0].name in said[0]
    assert _is_whole(copies[0])
    assert json.loads(note.read_text())["mlflow"] != "3.1.0"


def test_artifacts_are_found_after_a_move(tmp_path: Path) -> None:
    before = tmp_path / "before #1"
    root = new_root(before)
    sqlite_file.prepare(root / "mlflow.db", print)
    run_id = deliver(write_run(root), open_root(root)).run_id
    after = tmp_path / "after" / "mlruns"
    after.parent.mkdir()
    shutil.move(root, after)
    said: list[str] = []
    ensure_store(tracking_uri(None, after, {}), after, said.append)
    assert "moved from" in said[0]
    names = {item.path for item in open_root(after).client.list_artifacts(run_id)}
    assert {"spec.yaml", "environment.json"} <= names
    assert not query(after, "SELECT * FROM runs WHERE artifact_uri LIKE '%before%'")
    ensure_store(tracking_uri(None, after, {}), after, said.append)
    assert len(said) == 1


def test_addresses_of_other_folders_stay(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    sqlite_file.prepare(root / "mlflow.db", print)
    other = f"{root.as_uri()}-of-others/artifacts"
    with sqlite3.connect(root / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ?", (other,))
    moved = tmp_path / "moved"
    root.rename(moved)
    sqlite_file.prepare(moved / "mlflow.db", print)
    assert query(moved, "SELECT artifact_location FROM experiments") == [(other,)]


def test_refused_connection_is_reported_without_retries(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        uri = f"http://me:hunter2@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TrackingUnavailable, match="does not answer") as caught:
            ensure_store(uri, tmp_path)
    assert "hunter2" not in str(caught.value)


def test_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "RESPONSE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingUnavailable, match=r"timed out|no answer within"):
            ensure_store(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)


def test_server_that_sends_a_byte_at_a_time_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "RESPONSE_SECONDS", 0.5)
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            for byte in b"HTTP/1.1 200 OK" + b"x" * 100_000:
                if over.wait(0.1):
                    return
                connection.send(bytes([byte]))

    with socket.socket() as listening, ThreadPoolExecutor(1) as server:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server.submit(drip, listening)
        try:
            with pytest.raises(TrackingUnavailable, match=r"no answer within 0\.5 s"):
                ensure_store(f"http://127.0.0.1:{listening.getsockname()[1]}", tmp_path)
        finally:
            over.set()


def test_missing_database_server_is_reported_without_retries(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"postgresql://me:hunter2@127.0.0.1:{taken.getsockname()[1]}/runs"
        with pytest.raises(TrackingUnavailable, match="does not answer"):
            ensure_store(uri, tmp_path)


def test_error_of_opening_a_store_has_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable) as caught:
        open_store("mssql+nosuchdriver://me:hunter2@127.0.0.1/runs", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_settings_of_the_user_have_priority() -> None:
    code = (
        "import os; from glitchrun.tracking.store import configure_mlflow; configure_mlflow(); "
        "print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'], os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    given = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}
    given.pop("MLFLOW_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)
    assert done.stdout.split() == ["77", "true"]
