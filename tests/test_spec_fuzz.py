"""Valid specs with one random change give either problems or an experiment."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from glitchrun.errors import UsageError
from glitchrun.spec.digest import results_digest
from glitchrun.spec.experiment_loading import check_files, load_experiment
from glitchrun.spec.nodes import plain, walk
from glitchrun.spec.problem_formats import as_text
from glitchrun.spec.problems import CODES, InvalidSpec
from glitchrun.spec.spec_files import Source, read_source
from glitchrun.spec.yaml_parser import parse

EXAMPLES = Path(__file__).parent / "examples"
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 10**20, "", "x", "mine", "{user}", "é\u202e", "(",
    "steps.0.k",
    [], [[]], [None], [1, 2], [[2, 1]], ["mine", "mine"], {}, {"a": 1}, {"env": "UNSET"},
    {"env": "SET"}, {"env": "UNSET", "default": [1]}, {"env": 5}, {"env": "SET", "x": 1},
    {"ids": [1], "from": "x"}, {"from": {"env": "SET"}}, {"steps.0.k": [1, 2]}, {"seed": []},
    {"seed": [1]}, {"steps": [[1]]}, {"model.path.x": [1]}, {"": [1]}, [{"seed": 1}], [["seed"]],
    [{"strategy": "scan"}], [{"id": "model", "strategy": []}], "\0", "~nobody/x", "x" * 400,
]  # fmt: skip


def mutated(document: Any, random_: random.Random) -> Any:
    """`document` with one value, anywhere in it, replaced, removed or given a new neighbour."""
    holders = [part for part in _parts(document) if part]
    holder = random_.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = random_.choice(keys)
    kind = random_.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random_.choice(["env", "x-a", "id", "from", "steps", "1", ""])] = holder[key]
    else:
        holder[key] = json.loads(json.dumps(random_.choice(VALUES)))
    return document


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(part for inner in value.values() for part in _parts(inner))]
    if isinstance(value, list):
        return [value, *(part for inner in value for part in _parts(inner))]
    return []


@pytest.mark.parametrize("seed", range(5))
def test_any_change_to_a_spec_gives_problems_or_an_experiment(seed: int, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    source = read_source(EXAMPLES / "valid" / "everything.yaml")
    assert isinstance(source, Source)
    node, _ = parse(source)
    assert node is not None
    whole = {**plain(node), "extends": None}
    path = tmp_path / "spec.yaml"
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(30):
        document = json.loads(json.dumps(whole))
        for _ in range(random_.randint(1, 3)):
            document = mutated(document, random_)
        path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
        problems, _ = check_files([path], {"SET": "1"})
        assert {problem.code for problem in problems} <= set(CODES)
        assert "Traceback" not in as_text(problems)
        sets = random_.choice([[], ["seed=3"], ["steps.0.k=x"], ["template.user=3"], ["matrix="]])
        try:
            experiment = load_experiment(path, sets, {"SET": "1"}, require_env=seed % 2 == 0)
        except (InvalidSpec, UsageError):
            outcomes["refused"] += 1
            continue
        outcomes["loaded"] += 1
        names = [cell.name for cell in experiment.cells]
        assert len(set(names)) == len(names)
        for cell in experiment.cells:
            assert len(results_digest(cell.spec)) == 64
            json.dumps(cell.spec.document, allow_nan=False)
    assert min(outcomes.values()) > 0, outcomes


def test_the_places_of_a_document_are_those_of_its_values() -> None:
    for path in EXAMPLES.glob("valid/*.yaml"):
        source = read_source(path)
        assert isinstance(source, Source)
        node, _ = parse(source)
        assert node is not None
        for _, part in walk(node):
            line = source.line(part.place.line)
            text = getattr(part, "text", "")
            start = part.place.column - 1
            marked = line[start : start + part.place.width]
            assert text in marked.replace("\\\\", "\\") or text == ""
