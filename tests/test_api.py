"""The Python interface: its page runs as written, its tables equal the artifacts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import glitchrun
from glitchrun import InvalidSpec, PreflightError, RunError, UsageError

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: my-model}}
model: {{path: {model}, device: cpu}}
template: chatml
seed: 3
steps:
  - {{id: mine, strategy: mine, search: gradient, iterations: 5, batch_size: 4, k: 16}}
  - {{id: asr, strategy: validate, tokens: {{from: mine}}, attempts: 2, max_new_tokens: 3}}
  - {{id: next, strategy: predict, prompts: [{{text: hello, expected: " you"}}]}}
gates:
  - {{metric: mine/verified, op: "==", value: 7}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    found = tmp_path_factory.mktemp("api")
    (found / "my-model.yaml").write_text(SPEC.format(model=llama_folder))
    return found


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the page's example leaves behind, run as written."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 7
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for block in blocks:
            exec(block, found)
    return found


def test_the_page_runs_as_written(names: dict[str, Any]) -> None:
    run = names["run"]
    assert (run.status, run.name, run.experiment, run.attempt) == (
        "FINISHED",
        "my-model",
        "my-model",
        1,
    )
    assert run.metrics["mine/verified"] == 40  # ten iterations of four tokens, not the spec's five
    assert set(names["glitch"]["glitch"]) == {True}
    assert set(names["confirmed"]["confirmed"]) == {True}
    assert len(names["confirmed"]) == run.metrics["asr/confirmed"] > 0
    exported = json.loads((names["run"].folder.parents[4] / "suppress.json").read_text())
    assert exported["suppress_tokens"] == sorted(names["confirmed"]["token_id"])


def test_tokens_are_the_lines_of_the_artifact(names: dict[str, Any]) -> None:
    run = names["run"]
    text = (run.artifacts / "tokens.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    frame = run.tokens
    assert list(frame["token_id"]) == [line["token_id"] for line in lines]
    verified = frame[frame["step"] == "mine"]
    expected = [line["probes"]["repeat"]["p"] for line in lines if line["step"] == "mine"]
    assert list(verified["probes.repeat.p"]) == expected
    assert verified["asr"].isna().all()
    assert frame[frame["step"] == "asr"]["glitch"].isna().all()


def test_attempts_are_the_lines_of_the_artifact(names: dict[str, Any]) -> None:
    text = (names["run"].artifacts / "attempts.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    attempts = names["attempts"]
    assert [list(ids) for ids in attempts["ids"]] == [line["ids"] for line in lines]
    for name in ("step", "token_id", "probe", "attempt", "text", "said", "control"):
        assert list(attempts[name]) == [line[name] for line in lines]
    assert list(attempts["symptom"].fillna("")) == [line["symptom"] or "" for line in lines]
    assert not names["failed"].empty


def test_a_table_has_its_columns_and_a_missing_one_lists_the_others(names: dict[str, Any]) -> None:
    run = names["run"]
    answers = run.table("next", "predictions")
    assert list(answers["prompt"]) == ["hello"] * len(answers)
    assert "rank" in answers
    with pytest.raises(UsageError, match=r"no table next\.nothing; it has: .*next\.predictions"):
        run.table("next", "nothing")


def test_a_failed_gate_is_a_row_and_no_error(names: dict[str, Any]) -> None:
    (gate,) = names["run"].gates.to_dict("records")
    assert (gate["metric"], gate["observed"], gate["outcome"]) == ("mine/verified", 40, "fail")


def test_runs_are_found_and_loaded(names: dict[str, Any], folder: Path) -> None:
    root = folder / "mlruns"
    (found,) = glitchrun.find_runs("my-model", status="FINISHED", root=root)
    assert found.key == names["run"].key
    assert glitchrun.load_run(found.key[:12], root).folder == found.folder
    assert glitchrun.load_run(found.folder).spec == found.spec
    assert glitchrun.find_runs("another", root=root) == []
    with pytest.raises(UsageError, match="no run is called 'another'"):
        glitchrun.load_run("another", root)


def test_errors_are_those_of_the_commands(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec):
        glitchrun.apply(folder / "my-model.yaml", {"seed": "none"})
    with pytest.raises(PreflightError, match="nowhere"):
        glitchrun.apply(folder / "my-model.yaml", {"model.path": tmp_path / "nowhere"})
    with pytest.raises(UsageError, match="--only"):
        glitchrun.apply(folder / "my-model.yaml", only="another", root=tmp_path)
    with pytest.raises(UsageError, match="set: seed has a value of type set"):
        glitchrun.apply(folder / "my-model.yaml", {"seed": {1, 2}})
    with pytest.raises(InvalidSpec, match="-7"):  # a number of numpy is a number
        glitchrun.apply(folder / "my-model.yaml", {"seed": np.int64(-7)})


def test_a_failure_is_raised(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr("glitchrun.runner.apply.execute", fail)
    with pytest.raises(RunError, match="my-model: the disk is full"):
        glitchrun.apply(folder / "my-model.yaml", root=tmp_path)


def test_importing_it_is_light() -> None:
    code = (
        "import sys, glitchrun, glitchrun.api\n"
        "print([n for n in ('torch', 'transformers', 'mlflow', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        glitchrun.nothing  # noqa: B018


def test_an_empty_table_keeps_its_columns() -> None:
    from glitchrun.api import _frame

    assert list(_frame([], ["a", "b"]).columns) == ["a", "b"]
    assert isinstance(_frame([]), pd.DataFrame)
