"""`glitchrun plan` and `glitchrun doctor` as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glitchrun.cli import environment_checks
from glitchrun.cli.doctor import command as doctor
from glitchrun.cli.plan import command as plan
from glitchrun.cli.plan import rough_duration
from glitchrun.errors import DoesNotFit, UsageError
from glitchrun.report.formatting import size
from tests.support import raw_checkpoints as raw

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: planned}
model: {path: ./model, device: cpu}
steps:
  - {id: mine, strategy: mine, iterations: 2, batch_size: 3}
  - {id: asr, strategy: validate, tokens: {from: mine}}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    raw.folder(tmp_path / "model")
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


def _plan(*arguments: str) -> Result:
    return CliRunner().invoke(plan, arguments)


def test_text_names_runs_sizes_and_work(spec: Path) -> None:
    result = _plan(str(spec))
    assert result.exit_code == 0
    assert "experiment planned" in result.output
    assert "232 parameters" in result.output
    assert "memory  fits" in result.output
    assert "mine (mine), start: at most 6 tokens, 6 prompts, 2 gradients" in result.output
    assert "asr (validate), start: likely 2 tokens, 30 continuations," in result.output
    assert "The bound assumes that all 6 tokens of mine are glitch tokens." in result.output
    assert result.output.endswith("1 run: 1 to start\n")
    assert max(map(len, result.output.splitlines())) <= 80


def test_redo_of_an_unknown_step_is_refused(spec: Path) -> None:
    result = _plan(str(spec), "--redo", "min")
    assert isinstance(result.exception, UsageError)
    assert "it has: asr, mine" in str(result.exception)


def test_json_is_one_document(spec: Path) -> None:
    result = _plan(str(spec), "-o", "json")
    assert json.loads(result.stdout)["runs"][0]["action"] == "start"


def test_pending_changes_set_the_exit_code_only_on_request(spec: Path) -> None:
    assert _plan(str(spec)).exit_code == 0
    assert _plan(str(spec), "--exit-code").exit_code == 10


def test_a_run_that_does_not_fit_is_shown_and_rejected(spec: Path) -> None:
    result = _plan(str(spec), "--set", "model.device=cuda:63", "-o", "json")
    assert isinstance(result.exception, DoesNotFit)
    assert "there is no cuda:63 here" in str(result.exception)
    assert json.loads(result.stdout)["runs"][0]["action"] == "blocked"


def test_ids_outside_the_vocabulary_are_shown_and_rejected(spec: Path) -> None:
    spec.write_text(SPEC.replace("{from: mine}", "{ids: [3, 99]}"))
    result = _plan(str(spec))
    assert isinstance(result.exception, DoesNotFit)
    assert result.exception.exit_code == 4
    assert "spec.yaml:7:53)" in str(result.exception)


def test_nothing_is_written(spec: Path) -> None:
    before = sorted(spec.parent.rglob("*"))
    assert _plan(str(spec)).exit_code == 0
    assert sorted(spec.parent.rglob("*")) == before


def test_plan_imports_no_heavy_packages(spec: Path) -> None:
    code = (
        "import sys; from glitchrun.cli.plan import command\n"
        f"try: command([{str(spec)!r}])\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'matplotlib', 'scipy', 'gguf'}\n"
        "print('heavy', sorted(heavy & sys.modules.keys()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-2:] == ["exit 0", "heavy []"]


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1500, "1.5 kB"), (538_060_032, "538 MB"), (9e12, "9 TB")]
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.01, "1 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2 h")]
)
def test_rough_durations_are_readable(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text


@pytest.fixture
def without_torch_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the check that starts a process and imports torch, which takes seconds."""
    kept = tuple(
        check for check in environment_checks.CHECKS if check is not environment_checks.torch_works
    )
    monkeypatch.setattr(environment_checks, "CHECKS", kept)


@pytest.mark.usefixtures("without_torch_process")
def test_doctor_finds_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(doctor, ["-o", "json"])
    data = json.loads(result.stdout)
    assert result.exit_code == data["exit_code"] == 0
    names = {finding["check"] for finding in data["findings"]}
    assert {"python", "torch", "mlflow", "cpu", "tracking root", "store"} <= names
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_torch_process")
def test_doctor_names_the_command_that_installs_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = ["no-such-package>=2", "click>=9999", "click>=8,<9999"]
    monkeypatch.setattr(environment_checks, "_requirements", lambda: wanted)
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 4
    assert "MISSING no-such-package  not installed" in result.output
    assert "pip install 'glitchrun[run]'" in result.output
    assert "pip install 'click>=9999'" in result.output
    assert "click>=8" not in result.output


@pytest.mark.usefixtures("without_torch_process")
def test_doctor_shows_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9/mlflow")
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 4
    assert "http://127.0.0.1:9 does not answer" in result.output
    assert "hunter2" not in result.output


def test_damaged_store_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to look like one" * 9)
    (finding,) = environment_checks.store(tmp_path)
    assert finding.status == "missing"
    assert "is no MLflow store" in finding.detail


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (finding,) = environment_checks.disk(Path("/proc/mlruns"))
    assert finding.status == "missing"
    assert "/proc cannot be written" in finding.detail


def test_torch_is_checked_in_a_separate_process() -> None:
    (finding,) = environment_checks.torch_works(Path())
    assert finding.status == "ok"
    assert "threads" in finding.detail
