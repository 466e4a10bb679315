"""The formats of problems: text, JSON, GitHub annotations, SARIF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glitchrun.spec.experiment_loading import check_files
from glitchrun.spec.problem_formats import as_github, as_json, as_sarif, as_text, visible
from glitchrun.spec.problems import CODES, Problem


def problem(line: str, column: int, width: int = 1, **fields: Any) -> Problem:
    values = {"message": "wrong", "hint": "", **fields}
    return Problem("a.yaml", 3, column, "GR101", source_line=line, width=width, **values)


def test_text_has_the_documented_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "kind: Fragment\nthresholds:\n  asr_treshold: 0.5\n"
    Path("spec.yaml").write_text(text)
    problems, _ = check_files(["spec.yaml"], {})
    assert as_text(problems) == (
        "spec.yaml:3:3: error[GR101] unknown key 'asr_treshold' in thresholds\n"
        " 3 |   asr_treshold: 0.5\n"
        "   |   ^^^^^^^^^^^^ did you mean 'asr'?"
    )


@pytest.mark.parametrize(
    ("line", "column", "width", "shown"),
    [
        ("\tkey: 1", 2, 3, ["    key: 1", "    ^^^"]),
        ("日本: x", 5, 1, ["日本: x", "      ^"]),
        ("e\u0301: x", 5, 1, ["e\u0301: x", "   ^"]),
        ("a: \x1b[31m\u202e", 4, 1, ["a: \\x1b[31m\\u202e", "   ^^^^"]),
        ("key:", 5, 1, ["key:", "    ^"]),
    ],
)
def test_the_mark_is_under_the_marked_text(
    line: str, column: int, width: int, shown: list[str]
) -> None:
    lines = as_text([problem(line, column, width)]).splitlines()[1:]
    assert [shown_line.split(" | ", 1)[1] for shown_line in lines] == shown


@pytest.mark.parametrize("column", [1, 400, 9_990])
def test_long_lines_are_shortened_around_the_mark(column: int) -> None:
    line = "x" * (column - 1) + "Y" * 5 + "z" * 500
    _, source, mark = as_text([problem(line, column, 5)]).splitlines()
    assert len(source) < 120
    assert source[mark.index("^") : mark.rindex("^") + 1] == "YYYYY"
    assert "…" in source


def test_a_value_wider_than_the_line_is_shortened() -> None:
    _, source, mark = as_text([problem("y" * 5000, 1, 5000)]).splitlines()
    assert max(len(source), len(mark)) < 120


def test_control_characters_of_a_spec_do_not_reach_the_terminal() -> None:
    shown = as_text([problem("a\x1b[2J", 1, 1, message="bad '\x1b[2J'", hint="\u202e")])
    assert visible(shown.replace("\n", "")) == shown.replace("\n", "")


def test_json_has_the_documented_keys() -> None:
    data = json.loads(as_json([problem("a", 1, path="x[0].y", hint="h")], 7))
    assert data["files"] == 7
    (error,) = data["errors"]
    assert {"file", "line", "column", "code", "path", "message", "hint"} <= set(error)
    assert (error["line"], error["path"], error["hint"]) == (3, "x[0].y", "h")


def test_github_escapes_characters_that_would_end_a_command() -> None:
    strange = Problem("a,b:c%.yaml", 1, 2, "GR101", "50%\r\n::error::x", width=4)
    assert as_github([strange]) == (
        "::error file=a%2Cb%3Ac%25.yaml,line=1,col=2,endColumn=5,title=GR101::50%25%0D%0A::error::x"
    )


def test_sarif_has_the_structure_of_2_1_0() -> None:
    found = [problem("ab", 1, 2), Problem("dir/ü x.yaml", 1, 1, "GR005", "bad", via="--set a=b")]
    log = json.loads(as_sarif(found))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "glitchrun"
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(set(rules)) == len(rules)
    assert len(run["results"]) == len(found)
    for result, source in zip(run["results"], found, strict=True):
        assert result["ruleId"] == rules[result["ruleIndex"]] == source.code
        assert result["level"] == "error"
        assert source.message in result["message"]["text"]
        (location,) = result["locations"]
        region = location["physicalLocation"]["region"]
        assert region["startLine"] == source.line
        assert region["endColumn"] > region["startColumn"] == source.column
    uri = run["results"][1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "dir/%C3%BC%20x.yaml"


def test_sarif_without_problems_says_so() -> None:
    assert json.loads(as_sarif([]))["runs"][0]["results"] == []


def test_codes_are_sentences() -> None:
    assert all(
        text.endswith(".") and text[0] in "`ABCDEFGHIJKLMNOPQRSTUVWXYZ" for text in CODES.values()
    )


def test_a_file_name_that_is_not_utf8_is_shown_in_every_format() -> None:
    problems, _ = check_files(["a\udcffb.yaml"], {})
    assert "a%FFb.yaml" in as_sarif(problems)
    for shown in (as_json(problems, 1), as_github(problems), as_text(problems)):
        assert "GR001" in shown
