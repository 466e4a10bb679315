"""Delivery to a real MLflow server with authentication, which fails and works again.

`make remote` goes further: whole commands, servers that are killed, PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glitchrun.errors import TrackingUnavailable
from glitchrun.tracking import store as store_module
from glitchrun.tracking.mlflow_run import ledger_id
from glitchrun.tracking.store import ensure_store
from glitchrun.tracking.sync import sync
from glitchrun.tracking.tracker import MlflowTracker
from tests.support.records import write_run
from tests.support.stores import new_root
from tools.remote.project import contents
from tools.remote.servers import PASSWORD, USER, Proxy, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_missing_credentials_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable, match="set MLFLOW_TRACKING_USERNAME and"):
        ensure_store(server.uri, tmp_path)


@pytest.mark.usefixtures("credentials")
def test_server_that_fails_in_the_middle_gets_all_of_the_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, root = Proxy(server), tmp_path / "remote"
    tracker = MlflowTracker(proxy.uri, root, interval=60)
    tracker.open(write_run(root, upto=9))
    assert tracker.failure is None
    proxy.break_off("drip")
    monkeypatch.setattr(store_module, "PATIENCE", 0.3)
    record = write_run(root)
    tracker.close(record)
    assert tracker.failure is not None
    monkeypatch.setattr(store_module, "PATIENCE", 60)
    assert [one.outcome for one in sync([record], root, to=server.uri)] == ["delivered"]
    local = new_root(tmp_path / "local")
    uri, experiment = f"sqlite:///{local}/mlflow.db", record.identity.experiment
    list(sync([record], root, to=uri))
    ledger = ledger_id(record, root)
    ours, theirs = (
        contents(uri, experiment)[ledger],
        contents(server.uri, experiment, server.store)[ledger],
    )
    assert ours["points"]
    assert ours == theirs
