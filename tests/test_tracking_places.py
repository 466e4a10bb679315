"""Files that glitchrun may write: new ones, its own, and those named on the command line."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.errors import TrackingUnavailable
from glitchrun.report.writing import replacing
from glitchrun.spec.mlflow_rules import lock_path, tag_objection
from glitchrun.tracking import sqlite_file
from glitchrun.tracking.address import check_store, tracking_uri
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.store import ensure_store, open_store
from tests.support.permissions import unprivileged
from tests.support.records import Invented, write_run
from tests.support.stores import new_root

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: n}}
model: {{path: some/model}}
steps: [{{id: t, strategy: test, tokens: {{ids: [1]}}}}]
tracking:
  uri: {uri}
"""


def _text(path: Path) -> None:
    path.write_text("important\n")


def _other_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (x)")
        database.execute("CREATE TABLE customers (x)")
    database.close()


def _link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


def _link_to_text(path: Path) -> None:
    _text(path.with_name("target"))
    path.symlink_to("target")


def _beside(ending: str, text: str) -> Callable[[Path], None]:
    return lambda path: path.with_name(ending.format(path.name)).write_text(text) and None


def _checkpoint(path: Path) -> None:
    path.with_name("config.json").write_text("{}")
    path.with_name("model.safetensors").write_text("weights")


STRANGE: dict[str, Callable[[Path], None]] = {
    "text": _text,
    "empty": Path.touch,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": _link("/dev/null"),
    "dangling": _link("nowhere"),
    "circle": _link("package"),
    "linked": _link_to_text,
    "database": _other_database,
    "journal": _beside("{}-journal", "not SQLite's"),
    "lock": _beside(".{}.lock", "somebody else's"),
    "note": _beside("{}.glitchrun.json", '{"name": "package"}'),
}


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Names, kinds and contents of everything in a folder."""
    return {
        path.name: (
            path.lstat().st_mode,
            os.readlink(path).encode()  # noqa: PTH115
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else b"",
        )
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("kind", STRANGE)
def test_file_of_another_program_is_refused_and_unchanged(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    path = place / "package"
    STRANGE[kind](path)
    before = _state(place)
    uri = f"sqlite:///{path}"
    for attempt in (ensure_store, open_store):
        with pytest.raises(TrackingUnavailable, match="the tracking store names"):
            attempt(uri, tmp_path / "mlruns")
    _refused(tmp_path, uri, "7:8: error[GR321]")
    assert _state(place) == before


def test_device_is_refused(tmp_path: Path) -> None:
    for uri in ("sqlite:////dev/null", "sqlite+pysqlite:////dev/null"):
        _refused(tmp_path, uri, "a device, not a database")
        with pytest.raises(TrackingUnavailable, match="a device"):
            ensure_store("sqlite:////dev/null", tmp_path)
    assert Path("/dev/null").is_char_device()


def test_store_in_a_model_folder_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    _checkpoint(model / "x")
    _refused(tmp_path, f"sqlite:///{model}/deeper/mlflow.db", "a folder that contains a model")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///somewhere", "is a folder"),
        ("./mlruns", "is a folder"),
        ("http://[", "an invalid address"),
        ("http://me:hunter2/x@host", "an invalid address"),
        ("'sqlite:///:memory:'", "names no file"),
        ("sqlite:///a?mode=x", "'?' in the path"),
        ("' sqlite:///a'", "white space"),
        ('"sqlite:///a\\u202E"', "control characters"),
        ("sqlite:///" + "a" * 300, "File name too long"),
    ],
)
def test_invalid_address_is_reported(tmp_path: Path, uri: str, said: str) -> None:
    _refused(tmp_path, uri, said)


def test_invalid_address_is_not_shown(tmp_path: Path) -> None:
    for uri in ("http://me:hunter2/x@host", "http://me:hunter2@[host"):
        with pytest.raises(TrackingUnavailable, match="an invalid address") as caught:
            tracking_uri(uri, tmp_path, {})
        assert "hunter2" not in str(caught.value)


def _refused(folder: Path, uri: str, said: str) -> str:
    """The output of `validate` for a spec with this store, which it refuses."""
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(uri=uri))
    done = CliRunner().invoke(main, ["validate", str(spec)])
    assert done.exit_code == 3
    assert said in done.stdout
    assert "GR321" in done.stdout
    return done.stdout


def test_store_from_the_environment_is_refused_without_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hunter2").write_text("important")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/hunter2")
    said = _refused(tmp_path, "{env: MLFLOW_TRACKING_URI}", "it cannot be used")
    assert "hunter2" not in said
    (tmp_path / "spec.yaml").write_text(SPEC.format(uri="null"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["plan", "spec.yaml"])
    assert done.exit_code == 4


def test_own_files_are_recognised(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    path = root / "mlflow.db"
    (root / "mlflow.db.json").write_text('{"name": "a package"}')
    sqlite_file.prepare(path, print)
    assert (root / "mlflow.db.json").read_text() == '{"name": "a package"}'
    noted = json.loads((root / "mlflow.db.glitchrun.json").read_text())
    assert noted["folder"] == str(root)
    empty = tmp_path / "empty.db"
    empty.touch()
    lock_path(empty).touch()  # left by a killed creation
    sqlite_file.check(empty)


@pytest.mark.usefixtures("created_stores")
def test_creation_leaves_files_of_other_databases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / f"{sqlite_file._PARTIAL}other.db-x"
    others.mkdir()
    monkeypatch.setattr(sqlite_file, "_CREATE", "raise SystemExit('no')")
    with pytest.raises(TrackingUnavailable, match="could not create"):
        sqlite_file.prepare(tmp_path / "mine.db", print)
    assert others.is_dir()


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "path"
    made.write_text("new")
    path.write_text("theirs")
    with pytest.raises(TrackingUnavailable):
        sqlite_file._put(made, path)
    assert path.read_text() == "theirs"


def test_output_is_written_through_pipes_and_links(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with replacing(pipe) as file:
        file.write("through")
    reader.join()
    assert read == ["through"]
    assert pipe.is_fifo()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    with replacing(Path("/dev/null")) as file:
        file.write("lost")
    assert Path("/dev/null").is_char_device()


def test_failed_output_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / ("長" * 80)  # 240 bytes: no longer name fits beside it
    path.write_text("old")
    with suppress(KeyError), replacing(path) as file:
        file.write("half")
        raise KeyError
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


def test_report_can_be_written_to_a_device(tmp_path: Path) -> None:
    record = write_run(tmp_path / "mlruns")
    words = ["report", str(record.folder), "--format", "md", "-o", "/dev/null"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("glitchrun.key", "is reserved"),
        ("mlflow.parentRunId", "is reserved"),
        ("MLflow.user", "is reserved"),
        ("ｇlitchrun.key", "is reserved"),
        (" mlflow.user", "is reserved"),
        ("a" * 251, "251 characters"),
        ("a,b", "','"),
        ("a\u202eb", "'\\u202e'"),
        ("", "empty"),
        ("../mlflow.user", "a path"),
        ("/a", "a path"),
        ("a//b", "a path"),
    ],
)
def test_ambiguous_tags_are_refused(name: str, said: str) -> None:
    assert said in (tag_objection(name) or "")


@pytest.mark.parametrize("name", ["team", "glitchrun", "mlflow", "a.b/c-d_e: f", "équipe", "env"])
def test_other_tags_are_accepted(name: str) -> None:
    assert tag_objection(name) is None


@pytest.mark.parametrize("how", ["file", "fragment", "matrix", "set", "long"])
def test_reserved_tag_is_located_for_every_source(tmp_path: Path, how: str) -> None:
    tags = {"file": "{mlflow.user: me}", "long": f"{{team: {'x' * 8001}}}"}.get(how, "{team: red}")
    spec = SPEC.format(uri="null").replace("{name: n}", f"{{name: n, tags: {tags}}}")
    words = ["plan", str(tmp_path / "spec.yaml")]
    if how == "fragment":
        fragment = "apiVersion: glitchrun/v1\nkind: Fragment\nmetadata: {tags: {mlflow.user: me}}\n"
        (tmp_path / "part.yaml").write_text(fragment)
        spec += "extends: [part.yaml]\n"
        alone = CliRunner().invoke(main, ["validate", str(tmp_path / "part.yaml")])
        assert "part.yaml:3:19: error[GR320]" in alone.stdout
    if how == "matrix":
        spec += "matrix: {axes: {metadata.tags: [{team: a}, {mlflow.user: me}]}}\n"
    if how == "set":
        words += ["--set", "metadata.tags={glitchrun.key: x}"]
    (tmp_path / "spec.yaml").write_text(spec)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 3, done.output
    assert "error[GR320]" in done.stderr


def test_pipe_with_the_name_of_a_note_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ours.db.json")  # the first name of the note: another program may have it
    check_store(f"sqlite:///{tmp_path / 'ours.db'}")
    os.mkfifo(tmp_path / "theirs.db.glitchrun.json")
    with pytest.raises(TrackingUnavailable, match="for a note, but that file is not glitchrun's"):
        check_store(f"sqlite:///{tmp_path / 'theirs.db'}")


def test_new_store_names_the_runs_that_an_earlier_one_had(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    record = write_run(root, Invented(tracking_uri=uri))
    said: list[str] = []
    deliver(record, open_store(uri, root))
    ensure_store(uri, root, said.append)
    said.clear()
    (root / "mlflow.db").unlink()
    ensure_store(uri, root, said.append)
    (line,) = said
    assert line.startswith(f"{root / 'mlflow.db'} is new, so 1 run that an earlier one had is not")
    assert line.endswith("glitchrun sync")
    ensure_store(f"sqlite:///{root / 'other.db'}", root, said.append)
    assert len(said) == 1


def test_read_only_store_is_refused_before_the_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    (root / "mlflow.db").chmod(0o444)
    with unprivileged(), pytest.raises(TrackingUnavailable, match="Permission denied"):
        ensure_store(f"sqlite:///{root / 'mlflow.db'}", root)
