"""The command that repeats a run, with its environment variables and without secrets."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from glitchrun.ledger.identity import add_to_study, with_study
from glitchrun.ledger.record import RunRecord
from glitchrun.report.html import render
from glitchrun.report.markdown import markdown
from glitchrun.report.run_details import apply_command
from glitchrun.spec.experiment_loading import load_experiment
from tests.support.records import write_run

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: example, description: {env: ABOUT}, tags: {version: {env: VERSION}}}
model: {path: {env: MODEL}, revision: {env: HF_TOKEN}, device: {env: DEVICE, default: cpu}}
seed: {env: SEED}
thresholds: {asr: {env: RATE}}
tracking: {uri: {env: STORE}}
steps: [{id: test, strategy: test, tokens: {texts: [a, {env: WORD}]}}]
"""
ENVIRON = {
    "ABOUT": "it's $HOME",
    "VERSION": "1.10",
    "MODEL": "org/model",
    "HF_TOKEN": "hush-hush",
    "SEED": "0x10",
    "RATE": "0.25",
    "STORE": "https://me:word@example.org",
    "WORD": " odd",
    "UNUSED": "x",
}
PLAIN = {"ABOUT", "VERSION", "MODEL", "SEED", "RATE", "WORD"}


def record_of(folder: Path, environ: dict[str, str], text: str = SPEC, *sets: str) -> RunRecord:
    """A run's record with the spec and origins that loading `text` gives."""
    path = folder / "spec.yaml"
    path.write_text(text)
    spec = load_experiment(path, sets, environ, require_env=True).cells[0].spec
    origins = {place: str(origin) for place, origin in spec.origins.items()}
    made = write_run(folder)
    identity = replace(made.identity, spec_path=str(path))
    return replace(made, identity=identity, spec=spec.document, origins=origins)


def assigned(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return dict(word.split("=", 1) for word in words[: words.index("glitchrun")])  # type: ignore[misc]


def test_command_assigns_the_variables_that_give_the_same_spec(
    tmp_path: Path,
) -> None:
    record = record_of(tmp_path, ENVIRON)
    given = assigned(apply_command(record))
    assert set(given) == PLAIN | {"HF_TOKEN", "STORE"}  # DEVICE had its default
    secrets = {name: ENVIRON[name] for name in ("HF_TOKEN", "STORE")}
    (cell,) = load_experiment(tmp_path / "spec.yaml", (), given | secrets, require_env=True).cells
    assert cell.spec.document == record.spec


def test_secret_variable_is_named_without_its_value(tmp_path: Path) -> None:
    command = apply_command(record_of(tmp_path, ENVIRON))
    assert "HF_TOKEN=... " in command
    assert "STORE=... " in command
    assert "hush" not in command
    assert "word@" not in command


def test_variable_with_one_secret_use_is_secret_everywhere(tmp_path: Path) -> None:
    text = SPEC.replace("{env: ABOUT}", "{env: STORE}").replace("uri: {env", "experiment: {env")
    command = apply_command(record_of(tmp_path, ENVIRON | {"STORE": "hidden"}, text))
    assert assigned(command)["STORE"] == "..."
    assert "hidden" not in command


def test_variable_replaced_by_an_override_is_left_out(tmp_path: Path) -> None:
    command = apply_command(record_of(tmp_path, ENVIRON, SPEC, "seed=7"))
    assert "SEED" not in assigned(command)
    assert command.endswith("--set seed=7")


def test_a_run_that_became_a_cell_is_repeated_by_the_spec_of_its_study(tmp_path: Path) -> None:
    record = record_of(tmp_path, ENVIRON, SPEC, "seed=7", "thresholds.asr=0.5")
    cell = ("fa11000000000001", "seed=7", {"seed": 7}, "study.yaml")
    add_to_study(record.folder, record.identity, *cell)
    command = apply_command(replace(record, identity=with_study(record.identity, record.folder)))
    assert command.endswith("glitchrun apply study.yaml --set thresholds.asr=0.5 --only seed=7")


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = apply_command(record_of(tmp_path, ENVIRON | {"MODEL": "./model"}))
    assert assigned(command)["MODEL"] == str(tmp_path / "model")


def test_command_without_variables(tmp_path: Path) -> None:
    record = write_run(tmp_path)
    assert apply_command(record) == "glitchrun apply specs/smollm2-quickstart.yaml"


def test_report_shows_the_command(tmp_path: Path) -> None:
    record = record_of(tmp_path, ENVIRON)
    line = f"{apply_command(record)} --fresh"
    assert line in markdown(record)
    page = render(record)
    assert "MODEL=org/model" in page
    assert "HF_TOKEN=... " in page
    assert "hush" not in page
