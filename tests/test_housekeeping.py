"""`tag`, `rm`, `gc`, and what `status` shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glitchrun.api import load_run
from glitchrun.cli import main
from glitchrun.ledger import hold, read_run
from glitchrun.ledger.files import LEDGER, TAGS
from glitchrun.ledger.folders import study_folder
from glitchrun.ledger.journal import StepJournal
from glitchrun.ledger.record import RunRecord
from glitchrun.ledger.step_store import attempt_folder, step_folder
from glitchrun.report.formatting import age
from glitchrun.report.run_details import provenance
from glitchrun.tracking.sync import sync
from tests.support.records import Invented, invented_identity, write_matrix, write_run
from tests.support.stores import new_root, nobody_listening, open_root, query


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracking root with an empty store, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_root(tmp_path)


def invoke(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, words, input=answer)


def write_step(root: Path, key: str, attempt: int = 1) -> Path:
    """A step without facts, measured for an invented run."""
    document = {"key": key, "strategy": "mine", "version": 1, "made_of": {}}
    folder = attempt_folder(root, key, attempt)
    with StepJournal.create(folder, document) as store:
        store.begin(invented_identity(Invented(), root), 1)
        store.finish(None, 2)
    return folder


def refer(run: RunRecord, key: str, attempt: int = 1) -> RunRecord:
    """The run, which now uses a step in the store."""
    fields = {"step": "mine", "key": key, "attempt": attempt, "extent": None, "reused": True}
    entry = json.dumps({"kind": "uses", "at": run.started_at, **fields})
    ledger = run.folder / LEDGER
    ledger.write_text(f"{ledger.read_text()}{entry}\n")
    return read_run(run.folder)


def test_tags_change_neither_the_ledger_nor_the_ending(root: Path) -> None:
    record = write_run(root)
    list(sync([record], root))
    before = (record.folder / LEDGER).read_bytes()
    done = invoke("tag", "5f0c", "reviewed=yes", "note=a=b", "team=")
    assert (done.exit_code, done.stderr) == (0, "")
    after = read_run(record.folder)
    assert after.tags == load_run("5f0c").tags == {"reviewed": "yes", "note": "a=b"}
    assert (after.identity, after.ending) == (record.identity, record.ending)
    assert after.delivered
    assert (record.folder / LEDGER).read_bytes() == before
    assert ("Tag reviewed", "yes") in provenance(after)
    sql = "SELECT key, value FROM tags WHERE key IN ('reviewed', 'note', 'team')"
    assert sorted(query(root, sql)) == [("note", "a=b"), ("reviewed", "yes")]
    assert invoke("tag", "5f0c", "note=").exit_code == 0
    assert query(root, sql) == [("reviewed", "yes")]


def test_sync_delivers_tags_that_mlflow_lacks(root: Path) -> None:
    record = write_run(root)
    list(sync([record], root))
    (root / "mlflow.db").rename(root / "away.db")
    done = invoke("tag", "5f0c", "reviewed=yes", "team=")
    assert done.exit_code == 0
    assert "not yet in MLflow" in done.stderr
    (root / "away.db").rename(root / "mlflow.db")
    outcomes = [one.outcome for _ in range(2) for one in sync([read_run(record.folder)], root)]
    assert outcomes == ["delivered", "there already"]
    sql = "SELECT key FROM tags WHERE key IN ('reviewed', 'team')"
    assert query(root, sql) == [("reviewed",)]


@pytest.mark.parametrize("tag", ["plain", "glitchrun.key=1", "MLflow.x=1", "=1", f"a={'x' * 9000}"])
def test_tags_that_mlflow_would_not_take_are_refused(root: Path, tag: str) -> None:
    record = write_run(root)
    assert invoke("tag", "5f0c", tag).exit_code == 2
    assert not (record.folder / TAGS).exists()


def test_rm_removes_the_folder_and_the_run_in_mlflow(root: Path) -> None:
    kept, gone = write_run(root), write_run(root, Invented(key="aa", attempt=2))
    write_step(root, "c" * 16)
    write_step(root, "d" * 16)
    kept, gone = refer(kept, "c" * 16), refer(refer(gone, "c" * 16), "d" * 16)
    list(sync([gone], root))
    refused = invoke("rm", "aa#2", answer="n\n")
    assert refused.exit_code == 2
    assert gone.folder.exists()
    assert "d" * 12 in refused.stdout
    assert "c" * 12 not in refused.stdout
    assert read_run(gone.folder).delivered_to["run_id"] in refused.stdout
    assert invoke("rm", "aa#2", "--yes").exit_code == 0
    assert not gone.folder.exists()
    assert kept.folder.exists()
    assert step_folder(root, "d" * 16).exists()
    assert query(root, "SELECT lifecycle_stage FROM runs") == [("deleted",)]


def test_rm_of_the_last_cell_deletes_the_parent_and_a_later_cell_gets_a_new_one(root: Path) -> None:
    records = write_matrix(root)
    list(sync(records, root))
    page = study_folder(root, "fa11000000000001")
    page.mkdir(parents=True)
    cells = [{"key": record.identity.key} for record in records]
    (page / "study.json").write_text(json.dumps({"cells": cells}))
    for record in records[:2]:
        said = invoke("rm", str(record.folder), "--yes").stdout
        assert "parent" not in said
        assert "`glitchrun report fa11000000000001` writes it without the run" in said
    assert str(page) in invoke("rm", str(records[2].folder), answer="n\n").stdout
    assert page.exists()
    assert "parent" in invoke("rm", str(records[2].folder), "--yes").stdout
    assert not page.exists()
    active = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"
    assert query(root, active) == [(0,)]
    again = write_matrix(root, Invented(experiment="quantization-sweep", started_at=9**13))[0]
    list(sync([again], root))
    (cell, above) = open_root(root).client.search_runs(["1"])
    assert {run.info.run_id for run in (cell, above)} >= {
        run.data.tags.get("mlflow.parentRunId", run.info.run_id) for run in (cell, above)
    }
    assert query(root, active) == [(2,)]


def test_rm_without_the_store_needs_local(root: Path) -> None:
    with nobody_listening() as uri:
        shown = uri.replace("me:hunter2@", "")
        record = write_run(root, Invented(tracking_uri=shown))
        failed = invoke("rm", "5f0c", "--yes")
        assert failed.exit_code == 4
        assert "--local" in failed.stderr
        assert record.folder.exists()
        assert invoke("rm", "5f0c", "--yes", "--local").exit_code == 0
    assert not record.folder.exists()


def test_rm_refuses_a_run_in_progress(root: Path) -> None:
    record = write_run(root, Invented(status="RUNNING"))
    with hold(record.folder.parent):
        assert invoke("rm", "5f0c", "--yes").exit_code == 4
    assert record.folder.exists()


def test_gc_removes_what_no_run_refers_to(root: Path) -> None:
    run = write_run(root)
    old, held, orphan = (write_step(root, letter * 16) for letter in "acd")
    used = write_step(root, "a" * 16, 2)
    run = refer(run, "a" * 16, 2)
    for name, key in (("b" * 16, run.identity.key), ("c" * 16, "gone"), ("mine", "gone")):
        study_folder(root, name).mkdir(parents=True)
        (study_folder(root, name) / "study.json").write_text(json.dumps({"cells": [{"key": key}]}))
    with hold(held.parent):
        refused = invoke("gc", answer="n\n")
        assert refused.exit_code == 2
        assert all(path.exists() for path in (used, old, held, orphan))
        done = invoke("gc", "--yes")
    assert done.exit_code == 0, done.output
    assert f"{'d' * 12}#1  mine of smollm2-quickstart" in done.stdout
    assert "it stays" in done.stdout
    assert f"{study_folder(root, 'c' * 16)}  a study without runs" in done.stdout
    assert [path.exists() for path in (used, old, held, orphan)] == [True, False, True, False]
    assert invoke("gc", "--yes").exit_code == 0
    assert not held.exists()
    assert "nothing to remove" in invoke("gc").stdout
    assert {path.name for path in study_folder(root, "").iterdir()} == {"b" * 16, "mine"}
    assert not read_run(run.folder).damage


def test_gc_removes_nothing_if_a_run_cannot_be_read(root: Path) -> None:
    run, orphan = write_run(root), write_step(root, "d" * 16)
    ledger = run.folder / LEDGER
    ledger.write_text("{}}\n" + ledger.read_text())
    done = invoke("gc", "--yes")
    assert done.exit_code == 1
    assert f"{LEDGER}:1" in done.stderr
    assert orphan.exists()


def test_status_shows_tags_age_and_sizes(root: Path) -> None:
    write_step(root, "a" * 16)
    run = refer(write_run(root), "a" * 16)
    (row,) = json.loads(invoke("status", "-o", "json").stdout)["runs"]
    assert row["tags"] == {"team": "safety"}
    assert row["bytes"] == sum(path.stat().st_size for path in run.folder.rglob("*.*"))
    assert row["step_bytes"] == (attempt_folder(root, "a" * 16, 1) / LEDGER).stat().st_size
    assert " d ago  " in (text := invoke("status").stdout)
    assert "team=safety" in text
    seconds = (-5, 59.9, 60, 3 * 3600 + 5, 47 * 3600, 48 * 3600)
    assert [age(value) for value in seconds] == ["0 s", "59 s", "1 min", "3 h", "47 h", "2 d"]
