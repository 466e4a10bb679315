"""Plans: the keys and actions of runs, and the reasons that block a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.errors import ModelUnavailable
from glitchrun.plan import build as module
from glitchrun.plan.build import Plan, build
from glitchrun.plan.devices import DeviceMemory
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.types import Experiment
from tests.support import raw_checkpoints as raw

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: planned}
model: {path: ./model, device: cpu}
steps:
  - {id: all, strategy: scan}
"""
MATRIX = "matrix: {axes: {model.quantization: [none, int8]}}\n"


def _experiment(folder: Path, text: str = SPEC) -> Experiment:
    raw.folder(folder / "model")
    (folder / "spec.yaml").write_text(text)
    return load_experiment(folder / "spec.yaml")


def _never(key: str) -> str | None:
    return None


def _build(experiment: Experiment, existing: Callable[[str], str | None] = _never) -> Plan:
    return build(experiment, existing, fetch=False)


def _key(experiment: Experiment) -> str:
    return _build(experiment).runs[0].key


def test_a_matrix_gives_a_run_for_each_cell(tmp_path: Path) -> None:
    plan = _build(_experiment(tmp_path, SPEC + MATRIX))
    assert [run.action for run in plan.runs] == ["start", "start"]
    assert len({run.key for run in plan.runs}) == 2
    assert all(len(run.key) == 16 and int(run.key, 16) >= 0 for run in plan.runs)
    none, int8 = (run.estimate for run in plan.runs)
    assert none is not None
    assert int8 is not None
    assert int8.weight_bytes < none.weight_bytes


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (None, "start"),
        ("FINISHED", "skip"),
        ("FAILED", "resume"),
        ("KILLED", "resume"),
        ("RUNNING", "resume"),
    ],
)
def test_the_recorded_status_decides(tmp_path: Path, status: str | None, action: str) -> None:
    asked: list[str] = []

    def existing(key: str) -> str | None:
        asked.append(key)
        return status

    (run,) = _build(_experiment(tmp_path), existing).runs
    assert run.action == action
    assert asked == [run.key]


def test_the_key_follows_the_contents_of_the_model(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path)
    before = _key(experiment)
    assert _key(experiment) == before
    raw.folder(tmp_path / "model", fill=b"\1")
    assert _key(experiment) != before


def test_the_key_follows_what_changes_results_and_nothing_else(tmp_path: Path) -> None:
    before = _key(_experiment(tmp_path))
    assert _key(_experiment(tmp_path, SPEC + "x-notes: for a person\n# and a comment\n")) == before
    assert _key(_experiment(tmp_path, SPEC + "seed: 7\n")) != before


def test_the_key_follows_the_contents_of_a_file_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("[1, 2]")
    text = SPEC.replace("strategy: scan", "strategy: test, tokens: {file: ./tokens.json}")
    experiment = _experiment(tmp_path, text)
    before = _key(experiment)
    (tmp_path / "tokens.json").write_text("[1, 3]")
    assert _key(experiment) != before


def test_a_moved_project_keeps_its_keys(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path / "here")
    before = _build(experiment).runs[0]
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    after = _build(load_experiment(tmp_path / "there" / "spec.yaml")).runs[0]
    assert after.fingerprint == before.fingerprint
    assert after.key == before.key


def test_a_cell_with_the_same_results_as_an_earlier_one_is_a_separate_run(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path)
    (cell,) = experiment.cells
    twice = replace(experiment, cells=(cell, replace(cell, name="again")))
    first, second = _build(twice).runs
    assert (first.action, second.action) == ("start", "start")
    assert first.key != second.key
    assert _build(twice).runs[1].key == second.key
    assert _build(twice, lambda key: module.ANEW).runs[1].key == second.key
    former = module._key(first.key, "again")  # by earlier versions
    recorded = {former: "FINISHED"}
    assert _build(twice, recorded.get).runs[1].key == former
    assert _build(twice, {**recorded, second.key: "KILLED"}.get).runs[1].key == second.key


def _free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    memory = DeviceMemory("cpu", count, count, "test")
    monkeypatch.setattr(module, "device_memory", lambda *_: memory)


def test_a_run_that_cannot_fit_is_blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = _experiment(tmp_path)
    _free(monkeypatch, 500_000_000)
    plan = _build(experiment)
    assert [run.action for run in plan.blocked] == ["blocked"]
    assert "needs 0.9 GB on cpu, but only 0.5 GB are free" in plan.runs[0].reason
    assert not plan.pending
    assert not _build(experiment, lambda key: "FINISHED").blocked


def test_a_batch_that_does_not_fit_names_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SPEC.replace("strategy: scan", "strategy: scan, batch_size: 1000000")
    _free(monkeypatch, 2_000_000_000)
    (run,) = _build(_experiment(tmp_path, text)).runs
    assert run.action == "blocked"
    assert run.estimate is not None
    assert f"lower batch_size of step 'all' to {run.estimate.largest_batch}" in run.reason


def test_a_missing_device_blocks_a_run(tmp_path: Path) -> None:
    text = SPEC.replace("device: cpu", "device: cuda:63")
    (run,) = _build(_experiment(tmp_path, text)).runs
    assert run.action == "blocked"
    assert run.reason.startswith("there is no cuda:63 here")


def test_a_missing_model_stops_the_plan(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelUnavailable, match="no such file or folder"):
        _build(experiment)


def test_a_hub_model_not_on_this_machine_is_planned_without_its_contents(tmp_path: Path) -> None:
    text = SPEC.replace("./model", "nobody-at-all/no-such-model")
    (run,) = _build(_experiment(tmp_path, text)).runs
    assert (run.action, run.key, run.estimate) == ("start", "", None)
    assert "not on this machine yet" in run.reason


def test_the_json_form_is_plain_and_complete(tmp_path: Path) -> None:
    plan = _build(_experiment(tmp_path, SPEC + MATRIX))
    data: dict[str, Any] = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert data["experiment"] == "planned"
    first = data["runs"][0]
    assert first.keys() == {
        "at_best",
        "residency",
        "name",
        "key",
        "action",
        "reason",
        "assignments",
        "memory",
        "work",
        "steps",
        "seconds",
        "time",
        "fingerprint",
        "digests",
        "gates",
        "workers",
        "shared",
    }
    assert first["assignments"] == {"model.quantization": "none"}
    assert first["memory"]["verdict"] in ("fits", "tight")
    assert first["work"][0]["tokens"] == 10
    assert 0 < first["seconds"][0] <= first["seconds"][1] == first["time"]["most"]
    assert first["time"].keys() == {"likely", "most", "start", "steps", "basis", "source", "run"}
    assert first["time"]["steps"].keys() == {"all"}


@pytest.mark.parametrize(
    ("step", "outside"),
    [
        ("strategy: test, tokens: {ids: [9, 10, 3]}", [10]),
        ("strategy: validate, tokens: {ids: [11]}", [11]),
        ("strategy: classify, tokens: {ids: [12]}", [12]),
        ("strategy: mine, search: gradient, start: 13", [13]),
        (
            "strategy: check, glitch: [14], controls: [15, 2], labelled: {byte: [16], normal: [1]}",
            [14, 15, 16],
        ),
        ("strategy: check, controls: 20, attempts: 30", []),  # these are numbers of tokens
        (
            "strategy: genetic, base_text: x, target: 17, wanted: 18, pool: {ids: [19, 4]}",
            [17, 18, 19],
        ),
        ('strategy: predict, prompts: [{text: "a <#2", chat: "2>"}]', []),
        ('strategy: predict, prompts: [{text: "in <#123456789012345678>"}]', []),
        ("strategy: mine, search: range, ranges: [[5, 99]]", []),  # to the end, however far
    ],
)
def test_ids_outside_the_vocabulary_block_a_run(
    tmp_path: Path, step: str, outside: list[int]
) -> None:
    text = SPEC.replace("id: all, strategy: scan", step)
    (run,) = _build(_experiment(tmp_path, text)).runs
    assert run.action == ("blocked" if outside else "start")
    line = text.splitlines()[5]
    for token_id in outside:
        column = line.index(str(token_id)) + 1
        assert f"{token_id} ({tmp_path / 'spec.yaml'}:6:{column})" in run.reason
    if outside:
        assert "outside the model's vocabulary, 0 to 9: " in run.reason
        assert "set model.path to the model that they belong to" in run.reason


def test_ids_named_in_texts_are_compared_with_the_vocabulary(tmp_path: Path) -> None:
    step = 'strategy: predict, prompts: [{text: "<#20> <#1>", chat: "say <#21>"}]'
    (run,) = _build(_experiment(tmp_path, SPEC.replace("id: all, strategy: scan", step))).runs
    places = [run.reason.partition(f"{one} ({tmp_path / 'spec.yaml'}:6:")[2] for one in (20, 21)]
    assert run.action == "blocked"
    assert all(places)


def test_the_bound_on_time_holds_for_a_small_model(tmp_path: Path) -> None:
    """Overhead counts: runs of tiny models once took 1,000 times the bound."""
    (run,) = _build(_experiment(tmp_path)).runs
    assert run.time is not None
    least, most = run.time.bounds
    assert least < 0.1
    assert 10 < most < 120
    text = SPEC.replace("strategy: scan", "strategy: validate, tokens: {ids: [3]}, attempts: 1000")
    (longer,) = _build(_experiment(tmp_path, text)).runs
    assert longer.time is not None
    assert longer.time.most > 50 * most


def test_a_missing_model_is_reported_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    experiment = load_experiment(tmp_path / "spec.yaml")
    with pytest.raises(ModelUnavailable, match=r"spec\.yaml:4:15: model\.path .*no such file"):
        _build(experiment)


def test_ids_of_files_and_reference_rows_are_compared_with_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[3, 11, 12]")
    text = SPEC.replace("id: all, strategy: scan", "strategy: test, tokens: {file: ids.json}")
    (run,) = _build(_experiment(tmp_path, text)).runs
    assert run.action == "blocked"
    assert f"11 ({tmp_path / 'ids.json'}), 12 (" in run.reason
    text = SPEC.replace("steps:", "tokens: {unused: {ids: [2, 13]}}\nsteps:")
    (run,) = _build(_experiment(tmp_path, text)).runs
    assert run.action == "blocked"
    assert f"0 to 9: 13 ({tmp_path / 'spec.yaml'}:" in run.reason
