"""The key of a run, changed model files, and which attempt counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glitchrun.cli.diff import command as diff
from glitchrun.errors import ExitCode, ModelUnavailable, RunError
from glitchrun.ledger import Journal, find_runs
from glitchrun.ledger.record import RunRecord
from glitchrun.plan.build import Plan, PlannedRun, build
from glitchrun.runner.apply import Applied, apply
from glitchrun.runner.options import Options
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.strategies import listed
from tests.support import quiet, tiny_models
from tests.support.oracle import FOLDER as ORACLE
from tests.support.quiet import Quiet

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: NAME}
model: {path: ./model, device: cpu}
seed: SEED
steps:
  - {id: some, strategy: test, tokens: {ids: [300, 310]}, controls: 1}  # so the seed counts
"""
MATRIX = "matrix: {axes: {model.quantization: [none, bfloat16]}}\n"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet.without_store_and_report(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "mlruns"


@pytest.fixture
def project(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(llama_folder, tmp_path / "model")
    return tmp_path


def write(project: Path, name: str, seed: int, more: str = "") -> Path:
    path = project / "spec.yaml"
    path.write_text(SPEC.replace("NAME", name).replace("SEED", str(seed)) + more)
    return path


def planned(spec: Path, *sets: str) -> PlannedRun:
    resolver = Resolver()
    plan = build(load_experiment(spec, sets), lambda key: None, fetch=False, resolve=resolver)
    return plan.runs[0]


def applied(
    spec: Path,
    root: Path,
    *,
    fresh: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    heard: Callable[[str], None] = lambda line: None,
) -> Applied:
    return apply(load_experiment(spec), root, Options(fresh=fresh), Quiet(heard), confirm)


def statuses(root: Path, name: str) -> list[tuple[int, str]]:
    runs = [run for run in find_runs(root) if run.identity.experiment == name]
    return [(run.identity.attempt, run.status) for run in runs]


def change_weights(model: Path, seed: int = 9) -> None:
    """Replaces the weight files by new ones, as a training run does."""
    for file in model.glob("*.safetensors"):
        file.unlink()
    tiny_models.tiny_llama(model, seed=seed)


# The key


def test_template_detected_by_the_model_name_is_in_the_key(tmp_path: Path) -> None:
    for name in ("nowllm-0829", "other", "third"):
        shutil.copytree(ORACLE, tmp_path / name)
    spec = write(tmp_path, "named", 0)
    auto, other, third = (
        planned(spec, f"model.path={tmp_path / name}").key
        for name in ("nowllm-0829", "other", "third")
    )
    assert auto != other == third
    explicit = {
        planned(spec, f"model.path={tmp_path / name}", "template=mistral").key
        for name in ("nowllm-0829", "other")
    }
    assert len(explicit) == 1
    digests = planned(spec, f"model.path={tmp_path / 'nowllm-0829'}").digests
    assert "resolved" in digests


def test_prefix_other_than_bos_is_in_the_key(project: Path) -> None:
    spec = write(project, "prefix", 0)
    assert "resolved" not in planned(spec).digests
    path = project / "model" / "tokenizer.json"
    data = json.loads(path.read_text())
    ids = {"<s>": 0, "</s>": 1}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for name, number in ids.items()
        },
    }
    path.write_text(json.dumps(data))
    assert "resolved" in planned(spec).digests


@pytest.mark.parametrize("step", ["strategy: profile", "strategy: check, checks: [loading]"])
def test_device_of_a_measurement_is_in_the_key(project: Path, step: str) -> None:
    spec = project / "spec.yaml"
    text = SPEC.replace("NAME", "where").replace("SEED", "0")
    some = "id: some, strategy: test, tokens: {ids: [300, 310]}, controls: 1"
    spec.write_text(text.replace(some, step))
    keys = {
        planned(spec, *sets).key
        for sets in ((), ("model.max_memory={cpu: 1GiB}",), ("model.max_memory={cpu: 2GiB}",))
    }
    assert len(keys) == 3
    assert planned(spec, "model.device=auto").digests.get("resolved") is None
    spec.write_text(text)
    assert planned(spec).key == planned(spec, "model.max_memory={cpu: 1GiB}").key


# Changed files


def test_weights_replaced_after_the_plan_are_refused(project: Path, root: Path) -> None:
    spec = write(project, "replaced", 11)
    done = applied(spec, root, confirm=lambda plan: change_weights(project / "model"))
    assert done.exit_code == ExitCode.PREFLIGHT
    assert "have changed since the run was planned" in done.failures[0]
    assert statuses(root, "replaced") == []


def test_weights_replaced_during_a_matrix_stop_its_next_cell(project: Path, root: Path) -> None:
    spec = write(project, "matrix", 12, MATRIX)
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        if line.startswith("template:") and len([x for x in lines if "template:" in x]) == 1:
            change_weights(project / "model")

    done = applied(spec, root, heard=heard)
    assert done.exit_code == ExitCode.PREFLIGHT
    assert [outcome.record.status for outcome in done.outcomes] == ["FINISHED"]
    assert statuses(root, "matrix") == [(1, "FINISHED")]


def test_cell_with_a_loaded_model_has_no_loading_time(project: Path, root: Path) -> None:
    spec = write(project, "charged", 23, "matrix: {axes: {seed: [24, 25]}}\n")
    first, second = (outcome.record for outcome in applied(spec, root).outcomes)
    assert first.loading_seconds > 0
    assert first.metrics["model/load_seconds"].value == first.loading_seconds
    assert second.loading_seconds == second.metrics["model/load_seconds"].value == 0
    for record in (first, second):
        batches = [timed.batch for timed in record.steps[0].batches]
        assert record.steps[0].seconds >= sum(batch.seconds for batch in batches) - 0.01


def test_weights_overwritten_in_place_end_the_run(project: Path, root: Path) -> None:
    spec = write(project, "over", 13)
    weights = project / "model" / "model.safetensors"

    def heard(line: str) -> None:
        if line.startswith("template:"):
            content = weights.read_bytes()
            with weights.open("r+b") as file:
                file.seek(len(content) - 4)
                file.write(b"\1\2\3\4")

    done = applied(spec, root, heard=heard)
    assert done.exit_code == ExitCode.PREFLIGHT
    assert "was written to while a run was using it" in done.failures[0]
    assert statuses(root, "over") == [(1, "FAILED")]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("generation_config.json", '{"eos_token_id": 1}', '{"eos_token_id": [1, 7]}'),
        ("chat_template.jinja", "{{ messages[0].content }}", "{{ messages[0].content }}."),
        ("additional_chat_templates/rag.jinja", "a", "b"),
    ],
)
def test_stopped_run_is_not_resumed_with_other_files(
    project: Path, name: str, before: str, after: str
) -> None:
    file = project / "model" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(before)
    spec = write(project, "stopped", 14)
    key = planned(spec).key
    assert planned(spec).key == key
    file.write_text(after)
    assert planned(spec).key != key


def test_token_file_changed_before_it_is_read_is_refused(project: Path, root: Path) -> None:
    spec = write(project, "tokens", 15)
    spec.write_text(spec.read_text().replace("{ids: [300, 310]}", "{file: ./ids.json}"))
    ids = project / "ids.json"
    ids.write_text("[300]")

    def heard(line: str) -> None:
        if line.startswith("template:"):
            ids.write_text("[310]")

    done = applied(spec, root, heard=heard)
    assert done.exit_code == ExitCode.PREFLIGHT
    assert f"{ids} has changed since the run was planned" in done.failures[0]
    ids.write_text("[300]")
    assert applied(spec, root).outcomes[0].record.status == "FINISHED"


# Which attempt counts


def ran(done: Applied) -> RunRecord:
    (outcome,) = done.outcomes
    return outcome.record


def test_renamed_spec_finds_its_run(project: Path, root: Path) -> None:
    first = ran(applied(write(project, "former", 16), root))
    lines: list[str] = []
    again = ran(applied(write(project, "latter", 16), root, heard=lines.append))
    assert again.folder == first.folder
    assert "latter: nothing to do, it is finished as former" in lines
    assert statuses(root, "latter") == []


def test_renamed_spec_resumes_its_run(
    project: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(project, "begun", 17)
    failed(spec, root, monkeypatch)
    record = ran(applied(write(project, "ended", 17), root))
    assert (record.identity.experiment, record.identity.attempt) == ("begun", 1)
    assert statuses(root, "ended") == []


def failed(spec: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *, fresh: bool = False) -> None:
    def fail(*_: Any) -> Any:
        raise RunError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(listed, "in_order", fail)
        assert applied(spec, root, fresh=fresh).exit_code == ExitCode.ERROR


def test_failed_fresh_attempt_does_not_hide_the_finished_one(
    project: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(project, "hidden", 18)
    finished = ran(applied(spec, root))
    failed(spec, root, monkeypatch, fresh=True)
    assert statuses(root, "hidden") == [(1, "FINISHED"), (2, "FAILED")]
    assert ran(applied(spec, root)).folder == finished.folder


def test_stopped_fresh_attempt_is_resumed(
    project: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(project, "gone-on", 19)
    ran(applied(spec, root))
    failed(spec, root, monkeypatch, fresh=True)
    second = find_runs(root)[-1]
    assert second.identity.attempt == 2
    with Journal(second.folder) as journal:
        journal.append("ended", status="KILLED", error="stopped by the user")
    assert ran(applied(spec, root)).identity.attempt == 2
    assert statuses(root, "gone-on") == [(1, "FINISHED"), (2, "FINISHED")]


def test_diff_uses_the_finished_run_with_the_same_key(
    project: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(project, "differs", 20)
    first = ran(applied(spec, root))
    ran(applied(write(project, "differs", 21), root))  # the newest of the name
    spec = write(project, "differs", 20)
    monkeypatch.chdir(root.parent)
    result = CliRunner().invoke(diff, [str(spec)])
    assert result.output == f"differs: same as {first.identity.key}#1\n"
    (weights,) = (project / "model").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    retrained = CliRunner().invoke(diff, [str(spec), first.identity.key])
    assert "  results (changes results: apply starts a new run)\n    contents" in retrained.output
    old = first.identity.digests["model"]
    assert f'contents of the model: "{old}" → "' in retrained.output
    shutil.rmtree(project / "model")
    without = CliRunner().invoke(diff, [str(spec)])
    assert "seed: 21 → 20" in without.output


def test_missing_model_is_not_reported_as_changed(project: Path) -> None:
    spec = write(project, "missing", 22)
    shutil.rmtree(project / "model")
    with pytest.raises(ModelUnavailable, match="no such file or folder"):
        planned(spec)
