"""Finding the right MLflow run: several projects, deletions, concurrent processes."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.errors import TrackingUnavailable
from glitchrun.ledger import mark_delivered, read_run
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import mlflow_run
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.description import escaped, paragraphs, run_description
from glitchrun.tracking.params_and_tags import LEDGER, run_tags
from glitchrun.tracking.store import Store, open_store, unavailable
from glitchrun.tracking.sync import sync
from glitchrun.tracking.tracker import MlflowTracker
from tests.support.records import Invented, write_matrix, write_run
from tests.support.stores import counts, new_root, open_root, query

CELL = {"parent": "fa11000000000001", "assignments": {"seed": 1}}


def _in(store_root: Path, root: Path) -> Store:
    """The store under `store_root`, for the runs under `root`."""
    return open_store(f"sqlite:///{store_root / 'mlflow.db'}", root)


def _projects(tmp_path: Path, **fields: Any) -> Iterator[tuple[Path, RunRecord]]:
    """Two projects with a run of the same spec."""
    for name in ("one", "two"):
        root = tmp_path / name / "mlruns"
        yield root, write_run(root, Invented(tokens=16, **fields))


def test_two_projects_with_one_spec_have_two_runs_in_one_store(tmp_path: Path) -> None:
    shared = new_root(tmp_path)
    projects = list(_projects(tmp_path, **CELL))
    first = [deliver(record, _in(shared, root)) for root, record in projects]
    rows = counts(shared)
    again = [deliver(read_run(record.folder), _in(shared, root)) for root, record in projects]
    assert again == first
    assert counts(shared) == rows
    assert len({place.run_id for place in first}) == 2
    assert len({place.parent_id for place in first}) == 2
    points = query(shared, "SELECT count(*) FROM metrics GROUP BY run_uuid, key, step, timestamp")
    assert set(points) == {(1,)}
    moved = tmp_path / "moved"
    (tmp_path / "one").rename(moved)
    record = read_run(moved / projects[0][1].folder.relative_to(tmp_path / "one"))
    assert deliver(record, _in(shared, moved / "mlruns")) == first[0]


def test_run_delivered_by_an_earlier_version_belongs_to_one_project(
    tmp_path: Path,
) -> None:
    shared = new_root(tmp_path)
    (mine, record), (theirs, other) = _projects(tmp_path, **CELL)
    place = deliver(record, _in(shared, mine))
    for run_id in (place.run_id, place.parent_id):  # as earlier versions left it
        open_root(shared).client.delete_tag(run_id, LEDGER)
    mark_delivered(other.folder, {"run_id": place.run_id, "experiment_id": place.experiment_id})
    assert deliver(read_run(record.folder), _in(shared, mine)) == place
    assert deliver(read_run(other.folder), _in(shared, theirs)).run_id != place.run_id
    assert counts(shared)["runs"] == 4


def test_ledger_id_is_stable(tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    record = write_run(root)
    assert mlflow_run.ledger_id(record, root) == mlflow_run.ledger_id(record, root)
    fresh = write_run(root, Invented(attempt=2))
    assert mlflow_run.ledger_id(record, root) != mlflow_run.ledger_id(fresh, root)
    own = replace(record, identity=replace(record.identity, ledger="f" * 32))
    assert mlflow_run.ledger_id(own, root) == "f" * 32
    (root / mlflow_run.PROJECT).write_text("?")
    with pytest.raises(TrackingUnavailable, match="delete it"):
        mlflow_run.ledger_id(record, root)


def test_run_deleted_in_mlflow_is_restored_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    record = write_matrix(root, Invented(experiment="sweep", tokens=16))[0]
    place = deliver(record, open_root(root))
    client = open_root(root).client
    for run_id in (place.run_id, place.parent_id):
        client.delete_run(run_id)
    active = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"
    (synced,) = sync([read_run(record.folder)], root)
    assert synced.outcome == "deleted"
    named = CliRunner().invoke(main, ["sync", record.identity.key])
    assert named.exit_code == 0
    assert f"glitchrun sync {record.identity.key[:12]}#1 --again" in named.output
    assert query(root, active) == [(0,)]
    tracker = MlflowTracker(f"sqlite:///{root / 'mlflow.db'}", root)
    tracker.open(record)
    tracker.close(record)
    assert tracker.failure is None
    assert "deleted in MLflow" in (tracker.deleted or "")
    assert query(root, active) == [(0,)]
    (again,) = sync([read_run(record.folder)], root, again=True, restore=True)
    assert (again.outcome, again.detail) == ("delivered", place.run_id)
    assert query(root, active) == [(2,)]
    client.delete_run(place.parent_id)
    assert deliver(read_run(record.folder), open_root(root)).parent_id is None
    assert query(root, active) == [(1,)]


def _deliver_in_turn(root: Path, folder: Path, start: Any) -> None:
    store = open_root(root)
    start.wait()
    for _ in range(2):
        deliver(read_run(folder), store)


def test_four_processes_deliver_to_a_new_store_concurrently(tmp_path: Path) -> None:
    import mlflow.entities  # noqa: F401 - imported once, before the fork

    root = new_root(tmp_path)
    records = [
        write_run(root, Invented(tokens=16, key=f"{place:016x}", **CELL)) for place in range(4)
    ]
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [
        context.Process(target=_deliver_in_turn, args=(root, record.folder, start))
        for record in records
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 4
    rows = counts(root)
    assert (rows["experiments"], rows["runs"], rows["datasets"]) == (2, 5, 1)  # Default, parent


def test_find_or_create_is_repeated_after_a_conflict(tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    root.mkdir()
    store = Store(f"sqlite:///{root / 'mlflow.db'}", root, client=None)
    tries: list[int] = []

    def create() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise sqlite3.IntegrityError("UNIQUE constraint failed: experiments.name")
        return "found"

    def fail() -> None:
        tries.append(1)
        raise KeyError("ours")

    assert store.exclusively(create) == "found"
    with pytest.raises(KeyError, match="ours"):
        store.exclusively(fail)
    assert len(tries) == 4


class _Alembic(Exception):
    __module__ = "alembic.util.exc"


def _foreign() -> list[Exception]:
    import requests
    import urllib3
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    return [
        MlflowException("no"),
        OperationalError("SELECT", {}, Exception("no")),
        requests.exceptions.JSONDecodeError("no", "", 0),
        requests.ConnectionError("no"),
        urllib3.exceptions.ProtocolError("no"),
        http.client.IncompleteRead(b""),
        sqlite3.DatabaseError("no"),
        _Alembic("no"),
        PermissionError(13, "no"),
        ModuleNotFoundError("no"),
    ]


def test_every_mlflow_error_has_a_remedy() -> None:
    for error in _foreign():
        with (
            pytest.raises(TrackingUnavailable, match="MLFLOW_TRACKING_URI") as caught,
            unavailable("http://me:hunter2@host"),
        ):
            raise error
        assert "hunter2" not in str(caught.value)


def test_own_defects_are_not_reported_as_mlflow_errors() -> None:
    space: dict[str, Any] = {"__name__": "mlflow.store"}
    exec("def fail():\n    return {}['runs']", space)
    with pytest.raises(TrackingUnavailable, match="KeyError: 'runs'"), unavailable("sqlite:///x"):
        space["fail"]()
    own: dict[str, Any] = {"__name__": "glitchrun.tracking.metric_series"}
    exec("def fail():\n    return {}['runs']", own)
    with pytest.raises(KeyError), unavailable("sqlite:///x"):
        own["fail"]()
    with pytest.raises(KeyError), unavailable("sqlite:///x"):
        json.loads("{}")["runs"]


def test_description_is_escaped() -> None:
    text = "<img src=x onerror=alert(1)> [a](javascript:b) http://evil.example www.evil.example"
    shown = escaped(f"{text} me@evil.example <b> &lt; `c` | # ![x](y) \u202e\x1b")
    for active in ("<", ">", "://", "www.", "me@", "](", " `c`", "&lt", "\u202e", "\x1b"):
        assert active not in shown
    assert "&#60;img" in shown
    assert (
        paragraphs("# one\n\n- two <b>\n1. three")
        == "\\# one\n\n\\- two &#60;b&#62;\n\n1&#46; three"
    )
    assert paragraphs("") == ""


def test_command_stays_inside_its_fence(tmp_path: Path) -> None:
    record = write_run(tmp_path / "mlruns")
    override = "(--set metadata.description=x\n````\n<b>\u202e)"
    text = run_description(replace(record, origins={"metadata.description": override}))
    assert "\n`````\nglitchrun apply" in text
    assert text.count("\n`````\n") == 2
    assert "\u202e" not in text


def test_reserved_tags_of_earlier_specs_are_left_out(tmp_path: Path) -> None:
    record = write_run(tmp_path / "mlruns")
    forged = {"glitchrun.ledger": "x", "mlflow.parentRunId": "x", "./mlflow.user": "x", "team": "y"}
    found = run_tags(replace(record, identity=replace(record.identity, tags=forged)))
    assert "x" not in found.values()
    assert found["team"] == "y"
    assert asdict(record.identity)["ledger"] == ""
