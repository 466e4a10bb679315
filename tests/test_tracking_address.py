"""The store of a run, and its URI without credentials."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.errors import TrackingUnavailable
from glitchrun.tracking.address import (
    delivery_uri,
    shown,
    sqlite_path,
    tracking_uri,
    without_secrets,
)
from glitchrun.tracking.experiment import Link, experiment_link

ENV = {"MLFLOW_TRACKING_URI": "http://from-environment:5000"}


def test_spec_has_priority_over_environment_and_default(tmp_path: Path) -> None:
    assert tracking_uri("http://from-spec", tmp_path, ENV) == "http://from-spec"
    assert tracking_uri(None, tmp_path, ENV) == "http://from-environment:5000"
    assert tracking_uri(None, tmp_path, {}) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(None, tmp_path, {"MLFLOW_TRACKING_URI": ""}).startswith("sqlite:")


def test_relative_database_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///a/b.db", tmp_path, {}) == f"sqlite:///{tmp_path}/a/b.db"
    assert tracking_uri("sqlite:////a/b.db", tmp_path, {}) == "sqlite:////a/b.db"


@pytest.mark.parametrize("name", ["plain", "with space", "a#b", "50%", "ü"])
def test_default_store_in_a_root_of_any_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    assert sqlite_path(tracking_uri(None, root, {})) == root / "mlflow.db"


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "/abs/mlruns", "file:///abs", "file:x"])
def test_folder_is_refused_with_a_remedy(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingUnavailable, match="migrate-filestore"):
        tracking_uri(uri, tmp_path, {})


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:x"])
def test_database_without_a_file_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingUnavailable, match="names no file"):
        tracking_uri(uri, tmp_path, {})


@pytest.mark.parametrize(("name", "named"), [("what?", r"'\?'"), ("a%20b", "'%20'")])
def test_path_decoded_by_sqlalchemy_is_refused(tmp_path: Path, name: str, named: str) -> None:
    with pytest.raises(TrackingUnavailable, match=f"{named} in the path"):
        tracking_uri(None, tmp_path / name, {})


def test_databricks_and_databases_are_accepted(tmp_path: Path) -> None:
    for uri in ("databricks", "databricks://profile", "postgresql://host/db", "http://h:1/x"):
        assert tracking_uri(uri, tmp_path, {}) == uri


def test_credentials_are_never_shown() -> None:
    uri = "postgresql://me:hunter2@host:5432/runs?password=other"
    assert shown(uri) == "postgresql://***@host:5432/runs?***"
    assert shown("http://host:5000/x") == "http://host:5000/x"
    text = without_secrets(f"cannot open {uri} as me:hunter2 (hunter2, password=other)", uri)
    assert "hunter2" not in text
    assert "other" not in text


def test_default_store_is_found_after_a_move(tmp_path: Path) -> None:
    here = tmp_path / "mlruns"
    here.mkdir()
    gone = "sqlite:////somewhere/else/mlruns/mlflow.db"
    assert delivery_uri(gone, here, {}) == gone
    (here / "mlflow.db").touch()
    assert delivery_uri(gone, here, {}) == f"sqlite:///{here}/mlflow.db"


def test_credentials_for_a_later_delivery_come_from_the_environment(tmp_path: Path) -> None:
    whole = "https://me:secret@host/mlflow"
    assert delivery_uri(whole, tmp_path, {}) == whole
    recorded = shown(whole)
    assert delivery_uri(recorded, tmp_path, {"MLFLOW_TRACKING_URI": whole}) == whole
    for environ in ({}, {"MLFLOW_TRACKING_URI": "https://me:secret@other/mlflow"}):
        with pytest.raises(TrackingUnavailable, match="credentials are not kept"):
            delivery_uri(recorded, tmp_path, environ)


def test_links_to_a_server_contain_no_password(
    in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@host:5000/mlflow/?token=secret")
    monkeypatch.setattr("glitchrun.tracking.store.ensure_store", lambda *_: None)
    monkeypatch.setattr(
        "glitchrun.tracking.experiment.links",
        lambda base, *_: [Link("table of runs", experiment_link(base, "1"))],
    )
    said = CliRunner().invoke(main, ["ui", "--no-open"]).output
    assert "https://host:5000/mlflow/#/experiments/1" in said
    assert "hunter2" not in said
    assert "secret" not in said
