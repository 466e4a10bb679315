"""Which study a run belongs to, on disk and in MLflow, after its matrix has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from glitchrun.cli import main, report
from glitchrun.ledger import RunRecord, find_runs
from glitchrun.ledger.files import CELL
from glitchrun.ledger.folders import note_study, study_folder
from glitchrun.ledger.garbage import empty_studies
from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.report import study_files
from glitchrun.runner import study
from glitchrun.runner.engine import Session
from glitchrun.runner.lookup import find_cells, find_study
from glitchrun.tracking.store import Store
from glitchrun.tracking.sync import deliver_tags, sync
from tests.support.records import Invented, write_run
from tests.support.stores import new_root, open_root

FIRST = "fa11000000000001"
SPEC = SimpleNamespace(path=Path("sweep.yaml"))


def key(seed: int) -> str:
    return f"{seed + 1:016x}"


def cell(root: Path, seed: int, parent: str | None = FIRST) -> RunRecord:
    values = {"seed": seed} if parent else {}
    name = f"seed={seed}" if parent else "sweep"
    return write_run(
        root,
        Invented("sweep", name, key(seed), 1, parent, values, tokens=8, seed=seed,
                 started_at=1_750_000_000_000 + seed),
    )  # fmt: skip


def planned(cells: Mapping[int, Mapping[str, Any]], experiment: str = "sweep") -> Plan:
    """The plan of a matrix with these values by seed."""
    runs = [
        SimpleNamespace(
            key=key(seed),
            cell=SimpleNamespace(
                name=", ".join(f"{axis}={value}" for axis, value in values.items()),
                assignments=values,
                spec=SimpleNamespace(experiment=experiment),
            ),
        )
        for seed, values in cells.items()
    ]
    return Plan(experiment, cast("tuple[PlannedRun, ...]", tuple(runs)))


def seeds(*numbers: int) -> Plan:
    return planned({seed: {"seed": seed} for seed in numbers})


def gather(plan: Plan, root: Path, said: list[str] | None = None) -> str | None:
    parent = study.key_of(plan, root)
    say = (said if said is not None else []).append
    display = SimpleNamespace(say=say)
    session = SimpleNamespace(parent=parent, root=root, display=display, experiment=SPEC)
    study.gather(plan.runs, cast("Session", session))
    return parent


def children(store: Store) -> dict[str, list[str]]:
    """The names of the active runs below each active parent, by the parent's name and key."""
    runs = store.client.search_runs([store.client.get_experiment_by_name("sweep").experiment_id])
    tags = {run.info.run_id: run.data.tags for run in runs}
    found = {
        run.info.run_id: (f"{run.info.run_name} {run.data.tags['glitchrun.key'][:4]}", [])
        for run in runs
        if run.data.tags["glitchrun.kind"] == "matrix"
    }
    for run in runs:
        above = tags[run.info.run_id].get("mlflow.parentRunId")
        if above is not None:
            found[above][1].append(run.info.run_name)
    return {name: sorted(names) for name, names in found.values()}


def names_of(runs: Sequence[RunRecord]) -> dict[str, str]:
    return {run.identity.key: run.identity.name for run in runs}


def test_an_extended_or_shortened_matrix_is_the_same_study(tmp_path: Path) -> None:
    for seed in range(3):
        cell(tmp_path, seed)
    assert study.key_of(seeds(0, 1, 2, 3, 4), tmp_path) == FIRST
    assert study.key_of(seeds(0, 1), tmp_path) == FIRST
    assert study.key_of(seeds(0), tmp_path) is None
    others = {study.key_of(plan, tmp_path) for plan in (seeds(5, 6), seeds(2, 3), seeds(3, 2))}
    assert len(others) == 2  # the order of the cells does not count
    assert FIRST not in others
    renamed = planned({seed: {"seed": seed} for seed in range(3)}, "renamed")
    assert study.key_of(renamed, tmp_path) != FIRST


def test_a_new_axis_and_a_single_run_give_cells_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow nests, names and sorts them as if the matrix had been applied at once."""
    root = new_root(tmp_path)
    list(sync([cell(root, 0), cell(root, 1), cell(root, 2, None)], root))
    assert children(open_root(root)) == {"sweep over seed fa11": ["seed=0", "seed=1"]}
    values = {seed: {"seed": seed, "template": "raw"} for seed in range(4)}
    said: list[str] = []
    assert gather(planned(values), root, said) == FIRST
    assert said == ["3 earlier runs became part of this study"]
    found = find_runs(root)
    assert [run.identity.assignments for run in found] == [values[seed] for seed in range(3)]
    assert all(run.identity.parent == FIRST and run.delivered for run in found)
    names = [f"seed={seed}, template=raw" for seed in range(3)]
    assert children(open_root(root)) == {"sweep over seed × template fa11": names}
    said.clear()
    gather(planned(values), root, said)  # again: nothing to do
    assert said == []
    assert {one.outcome for one in sync(found, root)} == {"there already"}
    copied = new_root(tmp_path / "elsewhere")
    list(sync(found, root, to=f"sqlite:///{copied / 'mlflow.db'}"))
    assert children(open_root(copied)) == children(open_root(root))
    more = {seed: {**one, "system": "x"} for seed, one in values.items()}  # one axis more
    with monkeypatch.context() as away:  # the store cannot be reached
        away.setattr(study, "sync", lambda records, root: ())
        gather(planned(more), root)
    assert not any(run.delivered for run in find_runs(root))
    list(sync(find_runs(root), root))
    names = [f"{name}, system=x" for name in names]
    assert children(open_root(root)) == {"sweep over seed × template × system fa11": names}
    assert all(run.delivered for run in find_runs(root))


def test_cells_move_to_the_newest_study_and_an_empty_parent_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_root(tmp_path)
    list(sync([cell(root, seed) for seed in range(3)], root))
    store = open_root(root)
    (old,) = store.client.search_runs(["1"], "tags.`glitchrun.kind` = 'matrix'")
    with monkeypatch.context() as away:  # the store cannot be reached
        away.setattr(study, "sync", lambda records, root: ())
        newest = gather(seeds(1, 2, 3), root)
    assert newest not in (None, FIRST)
    assert children(store) == {"sweep over seed fa11": ["seed=0", "seed=1", "seed=2"]}
    moved = [run for run in find_runs(root) if not run.delivered]
    deliver_tags(moved[0], root)  # which does not move the run
    assert names_of(moved) == {key(1): "seed=1", key(2): "seed=2"}
    assert [one.outcome for one in sync(find_runs(root), root)].count("delivered") == 2
    name = f"sweep over seed {str(newest)[:4]}"
    assert children(store) == {"sweep over seed fa11": ["seed=0"], name: ["seed=1", "seed=2"]}
    text = store.client.get_run(old.info.run_id).data.tags["mlflow.note.content"]
    (above,) = store.client.search_runs(["1"], f"tags.`glitchrun.key` = '{newest}'")
    assert text.startswith(f"Some of its cells are now part of the study `{above.info.run_id}`.")
    assert gather(seeds(0, 1, 2, 3), root) == newest  # the larger of both studies goes on
    assert children(store) == {name: ["seed=0", "seed=1", "seed=2"]}
    assert store.client.get_run(old.info.run_id).info.lifecycle_stage == "deleted"
    assert all(run.delivered for run in find_runs(root))


def test_a_name_stands_for_the_newest_study_and_the_cells_of_its_last_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = [cell(tmp_path, seed) for seed in range(3)], "fa11000000000002"

    def found(text: str) -> list[str]:
        return [run.identity.name for run in find_cells(text, tmp_path)]

    assert found("sweep") == found(FIRST) == ["seed=0", "seed=1", "seed=2"]
    folder = study_folder(tmp_path, FIRST)
    note_study(folder, [key(seed) for seed in (1, 2, 3)])  # seed=0 is gone, seed=3 is to come
    assert found("sweep") == found(FIRST) == ["seed=1", "seed=2"]
    cell(tmp_path, 3)
    assert found("sweep over seed") == ["seed=1", "seed=2", "seed=3"]
    cell(tmp_path, 7, later)
    assert (found("sweep"), len(found(FIRST))) == (["seed=7"], 3)
    assert empty_studies(tmp_path, find_runs(tmp_path)) == []
    assert empty_studies(tmp_path, first[:1]) == []  # the parent of a run, if not among its cells
    assert empty_studies(tmp_path, [cell(tmp_path, 7, later)]) == [folder]
    assert capsys.readouterr().err == ""
    note_study(folder, [key(1)])  # a study of one cell is reported as its run
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    done = CliRunner().invoke(main, ["report", FIRST, "--format", "json"])
    assert json.loads(done.stdout)["name"] == "seed=1"


def test_the_page_of_a_study_stays_its_own_when_cells_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        cell(tmp_path, seed)
    note_study(study_folder(tmp_path, FIRST), [key(seed) for seed in range(3)])
    other = str(gather(seeds(0, 3), tmp_path))
    assert find_study(other[:5], tmp_path)[0] == other
    monkeypatch.setattr(report, "ROOT", tmp_path)
    written: list[Path] = []
    monkeypatch.setattr(study_files, "write_study", lambda folder, records: written.append(folder))
    assert CliRunner().invoke(main, ["report", FIRST]).exit_code == 0
    assert written == [study_folder(tmp_path, FIRST)]


def test_the_page_of_finished_cells_is_written_again_if_it_is_lost_or_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []

    def write(folder: Path, records: Sequence[RunRecord]) -> None:
        written.append([record.identity.name for record in records])
        folder.mkdir(parents=True, exist_ok=True)
        cells = [{"key": one.identity.key, "name": one.identity.name} for one in records]
        for name in study_files.FILES:
            (folder / name).write_text(json.dumps({"cells": cells}))

    monkeypatch.setattr(study_files, "write_study", write)
    monkeypatch.setattr(study, "open_store", lambda uri, root: None)
    monkeypatch.setattr(study, "deliver_study", lambda record, folder, store: None)
    session = SimpleNamespace(parent=FIRST, root=tmp_path, tracking_uri="", display=None)
    for seed in (0, 1):
        cell(tmp_path, seed)
    plan = seeds(0, 1)
    for run in plan.runs:
        cast("Any", run).action = "skip"
    for lost in (None, "study.html", None):
        folder = study.write(plan, cast("Session", session))
        assert folder == study_folder(tmp_path, FIRST)
        if lost:
            (folder / lost).unlink()
    assert len(written) == 2
    gather(planned({seed: {"seed": seed, "system": "x"} for seed in (0, 1)}), tmp_path)
    study.write(plan, cast("Session", session))
    assert written[2:] == [["seed=0, system=x", "seed=1, system=x"]]


def test_a_study_that_cannot_be_written_fails_no_run(tmp_path: Path) -> None:
    cell(tmp_path, 0)
    (tmp_path / "studies").write_text("a file, not a folder")
    said: list[str] = []
    display = SimpleNamespace(say=said.append)
    parent = "fa11000000000002"
    session = SimpleNamespace(parent=parent, root=tmp_path, display=display, experiment=SPEC)
    study.begin(seeds(0, 1), seeds(0, 1).runs, cast("Session", session))
    assert "the cells of the study were not noted" in said[0]
    assert said[1] == "1 earlier run became part of this study"


def test_an_invalid_cell_file_counts_as_missing(tmp_path: Path) -> None:
    record = cell(tmp_path, 0)
    for text in ("", "[]", '{"parent": 1, "name": "x", "assignments": {}}'):
        (record.folder / CELL).write_text(text)
        (found,) = find_runs(tmp_path)
        assert found.identity == record.identity
