"""A package outside the tree adds a strategy, a search, a probe and a template by entry points."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import commands

OUTSIDE = Path(__file__).parent / "data" / "outside"
SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: outside}
model: {path: model, device: cpu}
template: forum
steps:
  - {id: found, strategy: mine, search: longest, iterations: 2, batch_size: 4, min_length: 2,
     probes: [echo]}
"""
LETTERS = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: letters}
model: {path: model, device: cpu}
steps:
  - {id: count, strategy: letters, tokens: {ids: [40, 41, 300]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A spec that uses the package, and a model."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "model").symlink_to(llama_folder)
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "letters.yaml").write_text(LETTERS)
    return folder


def glitchrun(
    folder: Path, *words: str, package: Path | None = OUTSIDE, figures: bool = False
) -> str:
    """What a command prints; with the package on the path, where there is one."""
    path = {"PYTHONPATH": str(package)} if package else {}
    done = commands.run(folder, *words, figures=figures, **path)
    assert done.returncode in (0, 10), done.stderr
    return done.stdout


def key(folder: Path, package: Path) -> str:
    planned = json.loads(glitchrun(folder, "plan", "-o", "json", "spec.yaml", package=package))
    found: str = planned["runs"][0]["key"]
    return found


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("strategies", "letters"),
        ("searches", "longest"),
        ("probes", "echo"),
        ("templates", "forum"),
    ],
)
def test_list_shows_what_a_package_adds(folder: Path, kind: str, name: str) -> None:
    rows = {row["name"]: row for row in json.loads(glitchrun(folder, "list", kind, "-o", "json"))}
    assert rows[name]["package"] == "glitchrun-outside 1.0"
    assert sum("package" in row for row in rows.values()) == 1
    assert "(from glitchrun-outside 1.0)" in glitchrun(folder, "list", kind)


def test_the_schema_knows_what_a_package_adds(folder: Path) -> None:
    schema = json.loads(glitchrun(folder, "schema"))
    (mine,) = (
        branch["then"]["properties"]
        for branch in schema["$defs"]["step"]["allOf"]
        if branch["if"]["properties"]["strategy"]["const"] == "mine"
    )
    assert "longest" in json.dumps(mine["search"])
    assert "echo" in json.dumps(mine["probes"])
    assert "min_length" in mine


def test_the_published_schema_is_that_of_the_built_in_ones() -> None:
    done = commands.run(commands.ROOT, "schema", "--check", PYTHONPATH=str(OUTSIDE))
    assert done.returncode == 0, done.stderr


def test_a_spec_that_uses_a_package_is_valid_only_with_it(folder: Path) -> None:
    assert "no problems" in glitchrun(folder, "validate", "spec.yaml")
    done = commands.run(folder, "validate", "spec.yaml")
    assert done.returncode == 3
    for name in ("longest", "echo", "forum"):
        assert repr(name) in done.stdout + done.stderr


def test_a_parameter_of_a_search_is_refused_beside_another(folder: Path) -> None:
    (folder / "other.yaml").write_text(SPEC.replace("search: longest", "search: random"))
    done = commands.run(folder, "validate", "other.yaml", PYTHONPATH=str(OUTSIDE))
    assert done.returncode == 3
    assert "min_length" in done.stdout + done.stderr


def test_a_run_applies_and_reports_what_a_package_adds(folder: Path) -> None:
    applied = json.loads(glitchrun(folder, "apply", "-o", "json", "spec.yaml"))
    (run,) = applied["runs"]
    assert run["status"] == "FINISHED"
    lines = (Path(run["artifacts_dir"]) / "tokens.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 8
    lengths = [len(row["token"]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 2
    assert all(list(row["probes"]) == ["echo"] for row in rows)
    for package in (OUTSIDE, None):  # the record is read without the package, too
        page = glitchrun(folder, "report", "--format", "md", "outside", package=package)
        assert "template forum" in page


def test_the_version_of_a_package_is_part_of_the_key(folder: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(OUTSIDE, newer, ignore=shutil.ignore_patterns("__pycache__"))
    described = newer / "glitchrun_outside-1.0.dist-info" / "METADATA"
    described.write_text(described.read_text().replace("Version: 1.0", "Version: 1.1"))
    assert key(folder, OUTSIDE) == key(folder, OUTSIDE) != key(folder, newer)


def test_code_that_cannot_be_imported_is_named_with_its_package(
    folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(OUTSIDE, broken)
    (broken / "glitchrun_outside" / "longest.py").write_text("import nonexistent_module\n")
    assert "no problems" in glitchrun(folder, "validate", "spec.yaml", package=broken)
    sets = ("--set", "seed=5")
    done = commands.run(folder, "apply", "spec.yaml", *sets, PYTHONPATH=str(broken))
    assert done.returncode == 4, done.stderr
    assert "the search 'longest' of the package glitchrun-outside 1.0 cannot be imported" in (
        done.stderr
    )


def test_every_command_knows_the_strategy_of_a_package(folder: Path) -> None:
    assert "no problems" in glitchrun(folder, "validate", "letters.yaml")
    assert commands.run(folder, "validate", "letters.yaml").returncode == 3
    glitchrun(folder, "init", "--strategy", "letters", "started")
    assert "upper: true" in (folder / "started.yaml").read_text()
    (planned,) = json.loads(glitchrun(folder, "plan", "-o", "json", "letters.yaml"))["runs"]
    assert planned["work"][0]["tokens"] == 3
    said = glitchrun(folder, "apply", "-o", "json", "letters.yaml", figures=True)
    (run,) = json.loads(said)["runs"]
    assert run["status"] == "FINISHED"
    letters = run["metrics"]["count/letters"]
    page = glitchrun(folder, "report", "--format", "md", "letters")
    assert f"The tokens have {letters:g} letters." in page
    assert (Path(run["artifacts_dir"]) / "plots" / "letters.png").is_file()
    # The record is read without the package, too.
    assert "count" in glitchrun(folder, "report", "--format", "md", "letters", package=None)
