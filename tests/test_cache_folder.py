"""The folder of converted models: its location, sharing and removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.checkpoint import cache_folder as module
from glitchrun.checkpoint.cache_folder import cache_folder, remove_conversions, size_of
from glitchrun.cli.doctor import command as doctor
from glitchrun.errors import PreflightError
from glitchrun.model import gguf_conversion, load
from glitchrun.model.gguf_conversion import converted, tokenizer_note
from glitchrun.spec.types import ModelSpec
from tests.support.tiny_gguf import tiny_gguf


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GLITCHRUN_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/glitchrun"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/glitchrun"),
        ({"GLITCHRUN_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/glitchrun"),
    ],
)
def test_the_cache_folder_follows_the_environment(environ: dict[str, str], expected: str) -> None:
    assert cache_folder(environ) == Path(expected)


def test_a_missing_home_is_reported_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module.Path, "home", nobody)
    with pytest.raises(PreflightError, match="set GLITCHRUN_CACHE"):
        cache_folder({})
    monkeypatch.undo()
    with pytest.raises(PreflightError, match="GLITCHRUN_CACHE=~nobody9/x: no such user"):
        cache_folder({"GLITCHRUN_CACHE": "~nobody9/x"})


def test_two_projects_share_a_conversion_without_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "cache"
    monkeypatch.setenv("GLITCHRUN_CACHE", str(home))
    gguf = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    made = []
    for name in ("one", "two"):
        project = tmp_path / name
        project.mkdir()
        monkeypatch.chdir(project)
        (project / "tiny.gguf").write_bytes(gguf)
        model = load(ModelSpec(str(project / "tiny.gguf"), device="cpu"))
        assert model.tokenizer_note == "gpt-2 (named by the file)"
        assert [path.name for path in project.iterdir()] == ["tiny.gguf"]
        (weights,) = (home / "gguf").glob("*/model.safetensors")
        made.append(weights.stat().st_mtime_ns)
    assert made[0] == made[1]


def test_a_new_converter_version_converts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tiny_gguf(tmp_path / "tiny.gguf")
    first = converted(gguf, tmp_path)
    monkeypatch.setattr(gguf_conversion, "CONVERTER", gguf_conversion.CONVERTER + 1)
    assert converted(gguf, tmp_path) != first
    assert tokenizer_note(first) == "gpt-2 (named by the file)"
    assert tokenizer_note(tmp_path) == ""


def test_doctor_shows_the_cache_and_clears_it_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLITCHRUN_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("not glitchrun's", encoding="utf-8")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.safetensors").write_bytes(bytes(3_000_000))
    found = json.loads(CliRunner().invoke(doctor, ["-o", "json"]).stdout)["findings"]
    (seen,) = [one for one in found if one["check"] == "model cache"]
    assert f"{tmp_path}, 3 MB" in seen["detail"]
    assert seen["remedy"] == "glitchrun doctor --clear-cache"
    kept = CliRunner().invoke(doctor, ["--clear-cache"], input="n\n")
    assert kept.exit_code != 0
    assert size_of(tmp_path / "gguf") == 3_000_000
    gone = CliRunner().invoke(doctor, ["--clear-cache", "--yes"])
    assert gone.exit_code == 0
    assert "removed 3 MB" in gone.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]
    again = CliRunner().invoke(doctor, ["--clear-cache", "--yes"])
    assert (again.exit_code, "contains no converted models" in again.output) == (0, True)


def test_a_linked_cache_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "gguf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PreflightError, match="a link"):
        remove_conversions(tmp_path)
    assert (tmp_path / "elsewhere" / "model.safetensors").exists()
