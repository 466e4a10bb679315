"""`glitchrun report`, and how it finds the run that RUN names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from glitchrun.cli import main
from glitchrun.errors import UsageError
from glitchrun.runner.lookup import find_run
from tests.support.records import START, Invented, write_matrix, write_run

OLD = Invented(experiment="old", name="first", key="aaaa000000000000", tokens=24)
NEW = Invented(
    experiment="new", name="second", key="aaab000000000000", tokens=24, started_at=START + 9_000_000
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracking root with two runs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "mlruns", OLD)
    write_run(tmp_path / "mlruns", NEW)
    return tmp_path / "mlruns"


@pytest.fixture
def report(root: Path) -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(main, ["report", *words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("latest", "second"),
        ("aaaa", "first"),
        ("aaab000000000000", "second"),
        ("first", "first"),
        ("new", "second"),
    ],
)
def test_a_run_is_found_by_key_name_or_latest(text: str, name: str, root: Path) -> None:
    assert find_run(text, root).identity.name == name


def test_a_run_is_found_by_its_mlflow_id(root: Path) -> None:
    folder = find_run("first", root).folder
    (folder / "delivered.json").write_text(json.dumps({"run_id": "f" * 32}))
    assert find_run("f" * 32, root).identity.name == "first"


def test_a_run_is_found_by_its_folders(root: Path) -> None:
    for folder in ("runs/old/aaaa000000000000", "runs/old/aaaa000000000000/attempt-1"):
        assert find_run(str(root / folder), root).identity.name == "first"


def test_the_newest_attempt_is_the_default(root: Path) -> None:
    write_run(root, Invented(name="first", key=OLD.key, experiment="old", attempt=2, tokens=24))
    assert find_run("aaaa", root).identity.attempt == 2
    assert find_run("aaaa#1", root).identity.attempt == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("aaa", "more than one run"), ("nothing", "no run is called"), ("", "no run is called")],
)
def test_no_match_and_ambiguous_matches_list_the_runs(text: str, message: str, root: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        find_run(text, root)
    assert "aaaa00000000#1" in str(caught.value)
    assert "new · second" in str(caught.value)


def test_cells_of_a_matrix_are_found_by_name(tmp_path: Path) -> None:
    write_matrix(tmp_path)
    assert find_run("quantization=int8", tmp_path).identity.name == "quantization=int8"
    with pytest.raises(UsageError, match="more than one run"):
        find_run("quantization-sweep", tmp_path)


def _again(place: int) -> Invented:
    """A later run of the experiment `old` with another spec."""
    return Invented(
        experiment="old",
        name="first",
        key=f"bbb{place}000000000000",
        tokens=24,
        started_at=START + 60_000 * place,
    )


def test_the_newest_finished_run_of_a_name_is_taken_and_reported(
    root: Path, report: Callable[..., Result]
) -> None:
    write_run(root, _again(1))
    write_run(root, _again(2), upto=2)  # newer, but cut off
    for name in ("old", "first"):
        result = report(name, "--format", "json")
        assert json.loads(result.stdout)["key"] == "bbb1000000000000"
        assert "using the newest finished run, bbb100000000#1  FINISHED" in result.stderr
        assert "`glitchrun status` lists 2 others" in result.stderr
    assert report("aaaa", "--format", "json").stderr == ""


def test_the_newest_unfinished_run_of_a_name_is_taken(tmp_path: Path) -> None:
    write_run(tmp_path, _again(1), upto=2)
    write_run(tmp_path, _again(2), upto=2)
    assert find_run("old", tmp_path).identity.key == "bbb2000000000000"


def test_without_any_run_the_message_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="glitchrun apply"):
        find_run("latest", tmp_path)


def test_json_output_is_a_single_document(report: Callable[..., Result]) -> None:
    result = report("latest", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["name"] == "second"


def test_junit_and_markdown_go_to_standard_output(report: Callable[..., Result]) -> None:
    assert ElementTree.fromstring(report("first", "--format", "junit").stdout.encode()) is not None
    assert report("first", "--format", "md").stdout.startswith("## old · first: FINISHED")


def test_html_goes_to_the_runs_artifacts(report: Callable[..., Result], root: Path) -> None:
    result = report("latest")
    page = find_run("latest", root).artifacts / "report.html"
    assert Path(result.stdout.strip()).resolve() == page
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_output_writes_to_a_file(report: Callable[..., Result], tmp_path: Path) -> None:
    result = report("latest", "--format", "json", "-o", "out.json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads((tmp_path / "out.json").read_text())["name"] == "second"


def test_bad_arguments_exit_with_the_usage_code(report: Callable[..., Result]) -> None:
    missing = report("latest", "--format", "md", "-o", "no/such/folder/report.md")
    unknown = report("nothing")
    assert (missing.exit_code, unknown.exit_code) == (2, 2)
    assert "no/such/folder does not exist" in missing.stderr
    assert "no run is called 'nothing'" in unknown.stderr
