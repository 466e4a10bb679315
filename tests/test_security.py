"""Hostile specs and checkpoints. docs/security.md names the test of every threat."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun import terminal
from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.cli import main
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.ledger import Journal
from glitchrun.model.tokenizer_loading import _multiplies, load_tokenizer
from glitchrun.prompts.tokenizer import encode
from glitchrun.report.run_details import apply_command
from glitchrun.runner.artifacts import write_inputs
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.tracking.address import shown
from tests.support.records import Invented, invented_identity

_ROOT = Path(__file__).parents[1]
SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: n}
model: {path: {env: HF_TOKEN}}
steps: [{id: t, strategy: test, tokens: {ids: [1]}}]
"""


def test_every_threat_has_a_test_that_exists() -> None:
    page = (_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    threats = page.partition("## Threats")[2].partition("## Packages")[0]
    rows = [line for line in threats.splitlines() if line.startswith("|")][2:]
    code = "".join(
        path.read_text(encoding="utf-8") for path in (_ROOT / "tests").rglob("test_*.py")
    )
    defined = set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE))
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= defined, row


@pytest.mark.parametrize("text", ["API_KEY=hunter22\n", "api_key: hunter22\napi_key: 1\n", "\tx"])
def test_nothing_of_a_file_that_is_no_fragment_is_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "private").write_text(text)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC + "extends: [private]\n")
    for form in ("text", "json", "github", "sarif"):
        done = CliRunner().invoke(main, ["validate", str(spec), "--format", form])
        assert done.exit_code == 3
        assert "is not a Fragment" in done.output
        assert "hunter22" not in done.output
        assert "api_key" not in done.output.lower()


def test_secret_from_the_environment_is_in_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_secrets", set())
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    for words in (["plan"], ["plan", "-o", "json"], ["apply", "-o", "json"], ["chat"]):
        done = CliRunner(env={"HF_TOKEN": "hf_hunter22"}).invoke(main, [*words, "spec.yaml"])
        assert done.exit_code == 4, words
        assert "hf_hunter22" not in done.output
        assert "'<redacted>': no such file or folder" in done.stderr


@pytest.mark.parametrize("where", ["file", "default", "set", "whole"])
def test_credentials_in_a_spec_are_in_no_record(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_secrets", set())
    monkeypatch.setenv("HF_TOKEN", str(tmp_path))
    uri = "https://me:hunter22@host:5000/mlflow?token=other"
    written = {"file": f"'{uri}'", "default": f"{{env: NO_SUCH, default: '{uri}'}}"}.get(where, "")
    given = {"set": f"tracking.uri={uri}", "whole": f"tracking={{uri: '{uri}'}}"}.get(where)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC + f"tracking: {{uri: {written}}}\n")
    loaded = load_experiment(spec, [given] if given else [])
    (cell,) = loaded.cells
    assert cell.spec.tracking.uri == uri  # only a run knows it
    folder = tmp_path / "mlruns" / "runs" / "n" / "k" / "attempt-1"
    origins = {path: str(origin) for path, origin in cell.spec.origins.items()}
    identity = replace(invented_identity(Invented(), tmp_path), tracking_uri=shown(uri))
    with Journal.create(folder, identity, cell.spec.document, origins) as journal:
        write_inputs(journal.record, loaded)
        command = apply_command(journal.record)
    texts = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert len(texts) == 5
    for text in (command, terminal.concealed(f"cannot open {uri}, {uri[8:]}"), *texts.values()):
        assert "hunter22" not in text
        assert "other" not in text
    assert terminal.REDACTED in texts[folder / "artifacts" / "spec.resolved.yaml"]


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--set", "system=\udcff"], "GR206"), (["--set", "seed=2"], "GR108")],
)
def test_bytes_that_are_no_text_are_refused(words: list[str], code: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    done = CliRunner(env={"HF_TOKEN": "caf\udce9"}).invoke(main, ["plan", str(spec), *words])
    assert done.exit_code == 3
    assert code in done.stderr
    assert "not UTF-8" in done.stderr


def _read(folder: Path) -> None:
    read_header(resolve(str(folder)))
    load_tokenizer(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_special_files_in_a_checkpoint_are_not_waited_for(
    make: object, llama_folder: Path, tmp_path: Path
) -> None:
    assert callable(make)
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        folder = Path(shutil.copytree(llama_folder, tmp_path / name))
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(PreflightError, match=re.escape(str(folder))):
            _read(folder)


def test_code_of_a_tokenizer_is_not_run(llama_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelUnavailable, match=r"set model\.trust_remote_code: true if you trust"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


_AGAIN = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
_BETWEEN = {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b"}


@pytest.mark.parametrize(
    ("part", "step", "letter"),
    [
        ("normalizer", _AGAIN, "R"),
        ("decoder", _AGAIN, "\\u0052"),
        ("normalizer", _BETWEEN, "R"),
        ("normalizer", {"type": "ByteLevel"}, "R"),
    ],
)
def test_tokenizer_that_multiplies_texts_is_refused(
    part: str, step: dict[str, object], letter: str, llama_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    data = json.loads((folder / "tokenizer.json").read_text())
    data[part] = {"type": "Sequence", f"{part}s": [step] * 9}
    text = json.dumps(data).replace('"Replace"', f'"{letter}eplace"')
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=f"{part} can make a text more than 100 times"):
        load_tokenizer(folder)


def test_tokenizer_that_writes_ligatures_as_letters_is_not_refused() -> None:
    """Each of them becomes two or three letters, which no other step replaces."""
    letters = {"\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "œ": "oe",
               "æ": "ae", "ß": "ss", "…": "..."}  # fmt: skip
    steps = [
        {"type": "Replace", "pattern": {"String": one}, "content": two}
        for one, two in letters.items()
    ]
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    part = {"normalizers": [*steps, *[spaces] * 9, {"prepend": "▁"}, marks]}
    assert not _multiplies(part)


def test_pattern_of_a_tokenizer_that_never_ends_is_refused(
    llama_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    data = json.loads((folder / "tokenizer.json").read_text())
    split = {"Regex": r"(([a-zA-Z ]+)+)+\1$"}
    data["pre_tokenizer"] = {
        "type": "Split", "pattern": split, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelUnavailable, match=r"restore tokenizer\.json"):
        encode(load_tokenizer(folder), "a" * 60 + "!")
