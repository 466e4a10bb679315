"""The action for model repositories: its files, and its script with a stand-in for glitchrun.

`docs/ci.md` says how to run the script on a real model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "study"
STAND_IN = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open("calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "apply":
    print(os.environ["APPLIED"])
    sys.exit(int(os.environ.get("APPLY_CODE", "0")))
if words[0] == "report" and "md" in words:
    print("| cell | glitch |")
if words[0] == "compare":
    print("### Regression")
    sys.exit(int(os.environ.get("COMPARE_CODE", "0")))
"""
STUDY = {"runs": [{"artifacts_dir": "r/e/c0ffee/attempt-1/artifacts"}]}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-actions", ACTION / "action.yml"),
        ("vendor.github-workflows", ROOT / "deploy" / "ci" / "model-repository.yml"),
    ],
)
def test_the_files_have_the_form_that_github_asks_for(schema: str, path: Path) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run([checker, "--builtin-schema", schema, path], capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "mlruns").mkdir()
    for name, text in (
        ("glitchrun", STAND_IN.format(python=sys.executable)),
        ("python", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def step(folder: Path, found: object, **environment: str) -> tuple[int, list[list[str]], str]:
    """The script's exit code, the commands that it ran, and the report."""
    (folder / "calls").unlink(missing_ok=True)
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SPEC": "s.yaml",
        "APPLIED": json.dumps(found), "GITHUB_OUTPUT": str(folder / "output"), **environment,
    }  # fmt: skip
    script = ["bash", str(ACTION / "study.sh")]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return done.returncode, calls, (folder / "glitchrun-study" / "report.md").read_text()


def test_the_default_branch_makes_the_baseline_and_a_pull_request_is_compared(folder: Path) -> None:
    code, calls, report = step(folder, STUDY, KEEP_AS_BASELINE="true", ARGUMENTS="--limit 9")
    assert (code, [call[0] for call in calls]) == (0, ["validate", "apply", "report", "report"])
    assert calls[1] == ["apply", "s.yaml", "--yes", "--keep-going", "-o", "json", "--limit", "9"]
    assert "no baseline yet" in report
    matrix = {**STUDY, "matrix": {"study": "/x/studies/beef"}}
    code, calls, report = step(folder, matrix, COMPARE_CODE="5", TOLERANCE="0.05")
    assert code == 5
    assert calls[-1][:5] == ["compare", "c0ffee", "beef", "--fail-on", "regression"]
    assert "| cell | glitch |" in report
    assert "### Regression" in report
    assert "report=glitchrun-study/report.md" in (folder / "output").read_text()
    assert (folder / "mlruns" / "baseline.txt").read_text() == "c0ffee\n"


def test_a_failed_apply_fails_the_step_and_makes_no_baseline(folder: Path) -> None:
    code, calls, _ = step(folder, STUDY, APPLY_CODE="7", KEEP_AS_BASELINE="true")
    assert (code, calls[-1][0]) == (7, "report")
    assert not (folder / "mlruns" / "baseline.txt").exists()
    code, calls, report = step(folder, {"error": "x"}, APPLY_CODE="4")
    assert (code, calls[-1][0]) == (4, "apply")
    assert "executed nothing" in report
