"""Checks every file in tests/examples. A new case is a new file.

Files in `valid` have no problem. Files in `invalid` have exactly the problems that the comments
`# expect: [FILE:]LINE:COLUMN CODE` at their top list.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from glitchrun.ledger.record import Metric
from glitchrun.plan.gates import PlannedGate
from glitchrun.runner.gates import evaluate
from glitchrun.spec.experiment_loading import check_files, load_experiment
from glitchrun.spec.problems import CODES

ROOT = Path(__file__).parents[1]
EXAMPLES = Path(__file__).parent / "examples"
VALID = sorted(EXAMPLES.glob("valid/*.yaml")) + sorted((ROOT / "specs").glob("*.yaml"))
FRAGMENTS = [*EXAMPLES.glob("valid/fragments/*.yaml"), *(ROOT / "specs").glob("fragments/*.yaml")]
INVALID = sorted(EXAMPLES.glob("invalid/*.yaml"))
_EXPECT = re.compile(r"^# expect: (?:(\S+?):)?(\d+):(\d+) (GR\d{3})$", re.MULTILINE)
# Met by the tests of reading files, of --set and of loading; they need more than one file's text.
CODES_WITHOUT_EXAMPLE = set(
    "GR001 GR002 GR003 GR004 GR008 GR014 GR110 GR204 GR206 GR214 GR999".split()  # noqa: SIM905
)


def test_there_are_examples() -> None:
    assert len(VALID) >= 5
    assert len(INVALID) >= 50


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_valid_example_has_no_problem_and_loads(path: Path) -> None:
    assert check_files([path], environ={}) == ([], 1)
    assert load_experiment(path, environ={}, require_env=True).cells


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_example_has_the_problems_it_names(path: Path) -> None:
    expected = {
        (str(path.parent / file) if file else str(path), int(line), int(column), code)
        for file, line, column, code in _EXPECT.findall(path.read_text(encoding="utf-8"))
    }
    problems, _ = check_files([path], environ={})
    assert expected
    found = {(p.file, p.line, p.column, p.code) for p in problems}
    assert found == expected, "\n".join(map(str, problems))


def test_every_code_has_an_example() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in INVALID)
    seen = {code for *_, code in _EXPECT.findall(text)}
    assert seen == set(CODES) - CODES_WITHOUT_EXAMPLE


def test_all_invalid_examples_at_once_are_sorted() -> None:
    problems, files = check_files([EXAMPLES / "invalid"], environ={})
    assert files == len(list((EXAMPLES / "invalid").rglob("*.yaml")))
    places = [(p.file, p.line, p.column) for p in problems]
    assert places == sorted(places)
    assert len(set(problems)) == len(problems) > len(INVALID)


def test_the_published_schema_accepts_the_valid_examples_as_written() -> None:
    """Files as written, by a validator that knows nothing of glitchrun."""
    command = [
        str(Path(sys.executable).with_name("check-jsonschema")),
        "--schemafile",
        str(ROOT / "schemas" / "experiment.schema.json"),
        *map(str, [*VALID, *FRAGMENTS]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["unknown_key_thresholds", "wrong_enum", "missing_nested"])
def test_the_published_schema_rejects_the_examples_that_a_schema_can_reject(name: str) -> None:
    command = [
        str(Path(sys.executable).with_name("check-jsonschema")),
        "--schemafile",
        str(ROOT / "schemas" / "experiment.schema.json"),
        str(EXAMPLES / "invalid" / f"{name}.yaml"),
    ]
    assert subprocess.run(command, capture_output=True).returncode == 1


@pytest.mark.parametrize("path", [one for one in VALID if one.parent.name == "specs"])
def test_a_gate_of_a_shipped_spec_can_fail(path: Path) -> None:
    """A run that did all its work and found nothing does not pass it."""
    work = ("verified", "validated", "evaluations", "attempts", "generations", "checks")
    for cell in load_experiment(path, environ={}, require_env=True).cells:
        nothing = {gate.metric: Metric(0.0, 99_999) for gate in cell.spec.gates}
        planned = [PlannedGate(gate, "", gate.value) for gate in cell.spec.gates]
        for gate in evaluate(planned, SimpleNamespace(metrics=nothing)):  # type: ignore[arg-type]
            assert gate.metric.partition("/")[2] not in work
            assert gate.outcome == "fail" or (gate.op, gate.value) == ("==", 0)
