"""Delivering a record to its MLflow run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.errors import TrackingUnavailable
from glitchrun.events import Control
from glitchrun.ledger import read_run
from glitchrun.ledger.folders import study_folder
from glitchrun.ledger.record import Metric
from glitchrun.report import write_report
from glitchrun.report.study_files import write_study
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.experiment import GROUPED_TAG, VIEW_TAG, links, table_view
from glitchrun.tracking.metric_series import SERIES, points
from glitchrun.tracking.parent import deliver_study
from glitchrun.tracking.sync import sync
from tests.support.records import START, Invented, write_matrix, write_run
from tests.support.reporting import run_of, step, verified
from tests.support.stores import counts, new_root, open_root, query


def _history(root: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    points = open_root(root).client.get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_repeated_delivery_changes_nothing(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    records = [write_run(root), *write_matrix(root)]
    places, rows = [], []
    for _ in range(3):
        store = open_root(root)
        places.append([deliver(record, store) for record in records])
        rows.append(counts(root))
    assert places[0] == places[1] == places[2]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["runs"] == 5
    assert rows[0]["metrics"] > 300


def test_deliveries_of_a_growing_record_equal_one_of_the_whole(tmp_path: Path) -> None:
    grown, whole = new_root(tmp_path / "grown"), new_root(tmp_path / "whole")
    for upto in (1, 2, 3, 4, 17, 28, 33, 34, 36, 40, 44, None):
        record = write_run(grown, upto=upto)
        first = deliver(record, open_root(grown))
    second = deliver(write_run(whole), open_root(whole))
    assert first.complete
    assert second.complete
    assert counts(grown) == counts(whole)
    values = (
        "SELECT key, value, timestamp, step FROM metrics WHERE key NOT LIKE 'model/%' "
        "ORDER BY 1, 4, 3"
    )
    assert query(grown, values) == query(whole, values)
    params = "SELECT key, value FROM params ORDER BY 1"
    assert query(grown, params) == query(whole, params)
    own = "('mlflow.user', 'glitchrun.ledger')"
    tags = f"SELECT key, value FROM tags WHERE key NOT IN {own} ORDER BY 1"
    assert query(grown, tags) == query(whole, tags)
    latest = "SELECT key, value FROM latest_metrics ORDER BY 1"
    assert query(grown, latest) == query(whole, latest)


def test_interrupted_delivery_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = new_root(tmp_path / "broken"), new_root(tmp_path / "whole")
    record = write_matrix(broken)[0]
    store = open_root(broken)
    calls = ("create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated", "set_tag")
    for name in calls:

        def die(*args: Any, **kwargs: Any) -> None:
            raise OSError("power failure")

        with monkeypatch.context() as patch:
            patch.setattr(store.client, name, die)
            with pytest.raises(TrackingUnavailable, match="power failure"):
                deliver(record, store)
    assert deliver(record, store).complete
    deliver(write_matrix(whole)[0], open_root(whole))
    assert counts(broken) == counts(whole)


def test_series_over_items_ends_with_the_final_value(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    place = deliver(record, open_root(root))
    run = open_root(root).client.get_run(place.run_id)
    for name, metric in record.metrics.items():
        assert run.data.metrics[name] == pytest.approx(metric.value, rel=1e-6)
    series = _history(root, place.run_id, "mine/glitch")
    assert [step for step, _ in series] == sorted([*range(8, 201, 8), 200])
    assert series[-1][1] == record.metrics["mine/glitch"].value
    assert [value for _, value in series] == sorted(value for _, value in series)
    assert next(iter(run.data.metrics)) == "asr/confirmed"
    assert _history(root, place.run_id, "mine/glitch_rate") == [
        (0, pytest.approx(record.metrics["mine/glitch_rate"].value, rel=1e-6)),
    ]


def test_a_metric_without_a_series_stands_at_0_so_that_mlflow_draws_a_bar(tmp_path: Path) -> None:
    verdicts = replace(step("ask", "test", verified(1)), metrics={"verified": Metric(1, 1)})
    controls = step("ask", "test")
    alarm = replace(controls.batches[0].batch, facts=(Control(1, True, verified(2)),))
    beside = replace(verdicts.batches[0], batch=alarm)
    short = replace(verdicts, batches=(*verdicts.batches, beside))
    assert [(p.key, p.step) for p in points(run_of(tmp_path, short))] == [("ask/verified", 0)]
    again = replace(verdicts, batches=verdicts.batches * 2, metrics={})
    record = run_of(tmp_path / "b", again)
    assert {p.step for p in points(record)} == {1, 2}
    assert {p.key for p in points(write_run(tmp_path / "c")) if p.step} <= {
        f"{name}/{metric}" for name in ("mine", "asr") for metric in SERIES
    }


def test_estimates_of_the_plan_are_metrics(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    place = deliver(record, open_root(root))
    metrics = open_root(root).client.get_run(place.run_id).data.metrics
    memory = record.plan["memory"]
    assert metrics["model/bytes_estimate"] == memory["weight_bytes"]
    assert metrics["model/peak_bytes_estimate"] == memory["total_bytes"]


def test_latest_measurement_of_the_model_is_shown(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, upto=10)
    assert record.model is not None
    slow = replace(record, model=replace(record.model, load_seconds=30.0, peak_bytes=1))
    deliver(slow, open_root(root))
    run_id = deliver(write_run(root), open_root(root)).run_id
    metrics = open_root(root).client.get_run(run_id).data.metrics
    assert metrics["model/load_seconds"] == 0.41  # not the larger one
    assert metrics["model/peak_bytes"] > 1


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "RUNNING"])
def test_status_and_times_come_from_the_ledger(tmp_path: Path, status: str) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(status=status))
    place = deliver(record, open_root(root))
    info = open_root(root).client.get_run(place.run_id).info
    assert (info.status, info.start_time, info.end_time) == (status, START, record.ended_at)
    assert place.complete is (status != "RUNNING")


def test_resumed_run_is_running_again(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    killed = write_run(root, Invented(status="KILLED"))
    run_id = deliver(killed, open_root(root)).run_id
    again = deliver(replace(killed, status="RUNNING", ended_at=None), open_root(root))
    assert again.run_id == run_id
    assert open_root(root).client.get_run(run_id).info.status == "RUNNING"
    ended = write_run(root)
    deliver(ended, open_root(root))
    info = open_root(root).client.get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended.ended_at)


def test_params_and_tags_of_a_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    place = deliver(record, open_root(root))
    data = open_root(root).client.get_run(place.run_id).data
    assert data.params["model"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert data.params["mine.search"] == "gradient"
    assert data.params["thresholds.asr"] == "0.8"
    assert data.params["seed"] == "0"
    assert data.tags["glitchrun.seed"] == "0"
    assert data.tags["glitchrun.template"] == "chatml"
    assert data.tags["glitchrun.gates"] == "pass"
    assert data.tags["team"] == "safety"
    assert data.tags["mlflow.source.git.commit"].startswith("0123456789")
    assert data.tags["mlflow.source.name"] == "specs/smollm2-quickstart.yaml"
    assert data.tags["glitchrun.digest.model"] == record.identity.digests["model"]


def test_swept_seed_is_a_param(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(assignments={"seed": 7}, seed=7))
    place = deliver(record, open_root(root))
    assert open_root(root).client.get_run(place.run_id).data.params["seed"] == "7"


def test_names_and_values_fit_the_limits_of_mlflow(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    step = replace(
        record.steps[0],
        params={"ids": list(range(40_000)), "text": "x" * 9_000, "a": {"b(c)": 1}},
    )
    many = replace(record.steps[1], params={f"p{place}": place for place in range(300)})
    identity = replace(record.identity, tags={"../odd=(name)": "y" * 9_000}, name="\ud800 name")
    odd = replace(record, steps=(step, many), identity=identity)
    place = deliver(odd, open_root(root))
    data = open_root(root).client.get_run(place.run_id).data
    assert data.params["mine.ids"].startswith("40,000 items: 0, 1, 2,")
    assert data.params["mine.text"].endswith("(9,000 characters in all)")
    assert data.params["mine.a.b_c_"] == "1"
    assert len(data.params) == 100
    assert int(data.tags["glitchrun.params_left_out"]) > 200
    assert "(9,000 characters in all)" in next(v for k, v in data.tags.items() if "odd" in k)


def test_metric_without_a_value_is_described_but_not_logged(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(glitch_share=0.0, tokens=3))
    assert record.metrics["asr/asr_mean"].value is None
    place = deliver(record, open_root(root))
    data = open_root(root).client.get_run(place.run_id).data
    assert "asr/asr_mean" not in data.metrics
    assert r"asr/asr\_mean: no finite value" in data.tags["mlflow.note.content"]


def test_token_text_is_escaped_in_the_description(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root, Invented(glitch_share=1.0, tokens=200))
    place = deliver(record, open_root(root))
    note = open_root(root).client.get_run(place.run_id).data.tags["mlflow.note.content"]
    rows = [line for line in note.splitlines() if line.startswith("| `")]
    assert len(rows) == 10
    assert all(row.count("|") == 7 for row in rows)
    assert all(row.count("`") == 2 for row in rows)
    assert not {"\u202e", "\x00", "\ud800"} & set(note)
    assert "glitchrun apply specs/smollm2-quickstart.yaml --fresh" in note


def test_artifacts_and_table_view(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    write_report(record)
    (record.artifacts / ".half.partial").write_text("not yet")
    place = deliver(record, open_root(root))
    client = open_root(root).client
    names = {item.path for item in client.list_artifacts(place.run_id)}
    expected = {"spec.yaml", "spec.resolved.yaml", "environment.json", "report.html"}
    assert names == expected | {"tokens.jsonl", "tokens.json", "plots"}
    assert client.list_artifacts(place.run_id, "plots")
    tags = client.get_run(place.run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "tokens.json", "type": "table"}]
    location = client.get_experiment(place.experiment_id).artifact_location
    assert location == (root / "artifacts" / "smollm2-quickstart").as_uri()


def test_vocabulary_is_the_dataset_of_the_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    place = deliver(write_run(root), open_root(root))
    (given,) = open_root(root).client.get_run(place.run_id).inputs.dataset_inputs
    assert given.dataset.name == "vocabulary of SmolLM2-135M-Instruct.Q4_1.gguf"
    assert json.loads(given.dataset.profile) == {"tokens": 49_152}


def test_matrix_has_a_parent_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    records = write_matrix(root)
    places = [deliver(record, open_root(root)) for record in records]
    client = open_root(root).client
    (parent_id,) = {place.parent_id for place in places}
    assert parent_id is not None
    parent = client.get_run(parent_id)
    assert parent.info.run_name == "sweep over quantization"
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time == max(record.ended_at or 0 for record in records)
    most = max(record.metrics["asr/confirmed"].value or 0 for record in records)
    assert parent.data.metrics["highest/asr/confirmed"] == most
    note = parent.data.tags["mlflow.note.content"]
    assert [line.split(" | ")[0] for line in note.splitlines()[4:]] == [
        f"| {record.identity.name}" for record in records
    ]
    assert f"Highest asr/confirmed = {most:g}: **quantization=int4**." in note.replace("\\", "")
    summary = json.loads(
        Path(client.download_artifacts(parent_id, "sweep_summary.json", str(tmp_path))).read_text()
    )
    assert [row["params"]["model.quantization"] for row in summary["runs"]] == [
        "float32",
        "int8",
        "int4",
    ]


@pytest.mark.parametrize(
    ("others", "words"), [(0.35, "All 3 runs with a result are"), (0.2, "2 runs are")]
)
def test_a_tie_of_cells_is_called_a_tie(tmp_path: Path, others: float, words: str) -> None:
    root = new_root(tmp_path)
    first = write_matrix(root)[2]
    shared = Invented(experiment="sweep", parent="fa11000000000001", glitch_share=0.35)
    cells = [
        write_run(root, replace(shared, name=name, key=name * 16, glitch_share=share))
        for name, share in (("a", 0.35), ("b", 0.35), ("c", others))
    ]
    for record in cells:
        parent_id = deliver(record, open_root(root)).parent_id
    assert parent_id is not None
    note = open_root(root).client.get_run(parent_id).data.tags["mlflow.note.content"]
    most = f"{first.metrics['asr/confirmed'].value:g}"
    assert f"{words} tied at" in note.split("\n")[0]
    assert most in note.split("\n")[0]
    assert ("**c**" in note) is False


def test_parent_is_running_while_a_cell_is(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    first, second, _ = write_matrix(root)
    deliver(first, open_root(root))
    running = replace(second, status="RUNNING", ended_at=None)
    parent_id = deliver(running, open_root(root)).parent_id
    assert open_root(root).client.get_run(parent_id).info.status == "RUNNING"
    deliver(replace(second, status="FAILED", error="RunError: x"), open_root(root))
    assert open_root(root).client.get_run(parent_id).info.status == "FAILED"


def test_fresh_attempt_is_a_separate_run(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    first = deliver(write_run(root), open_root(root))
    second = deliver(write_run(root, Invented(attempt=2)), open_root(root))
    assert first.run_id != second.run_id
    run = open_root(root).client.get_run(second.run_id)
    assert run.info.run_name == "smollm2-quickstart (attempt 2)"


def test_deleted_experiment_is_not_written(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    place = deliver(record, open_root(root))
    open_root(root).client.delete_experiment(place.experiment_id)
    with pytest.raises(TrackingUnavailable, match="mlflow experiments restore"):
        deliver(record, open_root(root))


def test_description_written_by_a_person_stays(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    record = write_run(root)
    place = deliver(record, open_root(root))
    client = open_root(root).client
    note = "mlflow.note.content"
    assert client.get_experiment(place.experiment_id).tags[note] == record.identity.description
    changed = replace(record, identity=replace(record.identity, description="Better words."))
    deliver(changed, open_root(root))
    assert client.get_experiment(place.experiment_id).tags[note] == "Better words."
    client.set_experiment_tag(place.experiment_id, note, "Mine.")
    deliver(record, open_root(root))
    assert client.get_experiment(place.experiment_id).tags[note] == "Mine."


def test_saved_view_keeps_its_columns() -> None:
    first = table_view(["mine/glitch", "asr/confirmed"], ["seed"], START)
    assert first is not None
    assert table_view(["mine/glitch"], ["seed"], START + 1, first) is None
    second = table_view(["mine/verified"], ["model.path"], START, first)
    assert second is not None
    assert table_view(["asr/confirmed", "mine/glitch", "mine/verified"], [], START, second) is None
    assert table_view(["mine/glitch"], [], START, "not ours") is not None


def test_saved_view_draws_final_values_as_bars_and_series_as_lines() -> None:
    state = _state(table_view(["mine/glitch", "asr/confirmed", "mine/recall_low"], [], START))
    sections = {one["uuid"]: one["name"] for one in state["compareRunSections"]}
    charts = [
        (chart["type"], chart["metricKey"], sections[chart["metricSectionId"]])
        for chart in state["compareRunCharts"]
    ]
    assert sorted(charts) == [
        ("BAR", "asr/confirmed", "results"),
        ("BAR", "mine/glitch", "results"),
        ("BAR", "mine/recall_low", "results"),
        ("LINE", "asr/confirmed", "asr"),
        ("LINE", "mine/glitch", "mine"),
    ]
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == 5
    assert charts[0] == ("BAR", "asr/confirmed", "results")


def _state(tag: str | None) -> dict[str, Any]:
    import base64
    import zlib

    packed = json.loads(tag or "{}")["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))  # type: ignore[no-any-return]


def test_saved_view_begins_with_swept_params_gates_and_main_result(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    place = deliver(write_matrix(root)[0], open_root(root))
    state = _state(open_root(root).client.get_experiment(place.experiment_id).tags[VIEW_TAG])
    assert state["selectedColumns"][:4] == [
        "params.`model.quantization`",
        "tags.`glitchrun.gates`",
        "metrics.`asr/confirmed`",
        "metrics.`mine/glitch`",
    ]
    assert state["orderByKey"] == "metrics.`asr/confirmed`"


def test_a_study_with_seeds_has_a_view_grouped_by_setting(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    made = Invented(
        parent="fa11000000000001", assignments={"seed": 1, "model.quantization": "float32"}
    )
    place = deliver(write_run(root, made), open_root(root))
    state = _state(open_root(root).client.get_experiment(place.experiment_id).tags[GROUPED_TAG])
    assert state["groupBy"] == {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": "model.quantization"}],
    }
    titles = [link.title for link in links("http://x", open_root(root).uri, root)]
    assert any("means over the seeds" in title for title in titles)


def test_the_parent_has_the_report_of_the_study_once(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = open_root(root)
    cells = write_matrix(root)
    place = [deliver(cell, store) for cell in cells][-1]
    folder = study_folder(root, "fa11000000000001")
    write_study(folder, cells)
    record = read_run(cells[-1].folder)
    assert record.delivered_to["parent_id"] == place.parent_id
    deliver_study(record, folder, store)
    above = store.client.get_run(str(place.parent_id))
    assert above.data.tags["mlflow.note.content"].startswith("## quantization-sweep: study of 3")
    names = {file.path for file in store.client.list_artifacts(str(place.parent_id))}
    assert {"study.html", "study.md", "study.json"} <= names
    store.client.set_tag(str(place.parent_id), "mlflow.note.content", "mine")
    deliver_study(record, folder, store)  # nothing has changed
    assert store.client.get_run(str(place.parent_id)).data.tags["mlflow.note.content"] == "mine"
    list(sync([record], root, again=True))  # the cell's delivery replaces the description
    now = store.client.get_run(str(place.parent_id)).data.tags["mlflow.note.content"]
    assert now == above.data.tags["mlflow.note.content"]
