"""Every number of a spec at its extremes is rejected by `validate` or accepted by the plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from glitchrun.errors import GlitchrunError
from glitchrun.plan.build import build
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.problems import InvalidSpec
from glitchrun.spec.schema import closed, parameters
from tests.support.oracle import FOLDER

EXTREMES = (
    ".nan", ".inf", "-.inf", "1e400", "1e300", "-1e300", "1e-300", "-1", "0", "0.5",
    str(2**31), str(2**63), str(2**64), str(10**30),
)  # fmt: skip
TOKENS = {"ids": [300]}
STEPS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "check": (
        {
            "prompts": [{"text": "a", "expected": "b", "reference": {"raw": {"p": 0.5}}}],
            "labelled": {"normal": [300]},
            "controls": [301],
            "glitch": [300],
            "expect": {},
        },
    ),
    "classify": ({"tokens": TOKENS},),
    "genetic": ({"base_text": "a", "pool": {"ids": [300, 301]}},),
    "mine": (
        {"search": "gradient"},
        {"search": "cascade"},
        {"search": "range", "ranges": [[260, 270]]},
    ),
    "predict": ({"prompts": [{"text": "a", "expected": "b"}]},),
    "profile": ({"workload": {}},),
    "scan": ({},),
    "test": ({"tokens": TOKENS},),
    "validate": ({"tokens": TOKENS}, {"tokens": TOKENS, "sequential": True}),
}
_HERE = "@number@"
Path_ = tuple[str | int, ...]


def _numbers(schema: Mapping[str, Any], at: Path_ = ()) -> Iterator[Path_]:
    """Paths of the numbers that a schema allows."""
    for part in (schema, schema.get("then", {}), schema.get("else", {})):
        kinds = part.get("type", ())
        if {"number", "integer"} & set([kinds] if isinstance(kinds, str) else kinds):
            yield at
        for name, inner in part.get("properties", {}).items():
            yield from _numbers(inner, (*at, name))
        if "items" in part:
            yield from _numbers(part["items"], (*at, 0))


def _with(data: Any, path: Path_) -> Any:
    """A copy of `data` with a mark at the path; lists and mappings on the way are made."""
    if not path:
        return _HERE
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        items = list(data) if isinstance(data, list) else [None]
        return [_with(items[0], rest), *items[1:]]
    holder = dict(data) if isinstance(data, dict) else {}
    return {**holder, key: _with(holder.get(key), rest)}


def _document(step: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": "extreme"},
        "model": {"path": str(FOLDER), "device": "cpu"},
        "steps": [{"id": "step", **copy.deepcopy(dict(step))}],
    }


def _outcome(path: Path, document: Any, number: str) -> str:
    """refused or planned; raises where neither is said in words."""
    path.write_text(json.dumps(document).replace(f'"{_HERE}"', number))
    try:
        experiment = load_experiment(path)
    except InvalidSpec:
        return "refused"
    try:
        plan = build(experiment, lambda key: None, fetch=False)
    except GlitchrunError:
        return "refused"
    json.dumps(plan.to_json(), allow_nan=False)
    return "planned"


@pytest.mark.parametrize(
    ("strategy", "given"), [(name, given) for name, some in STEPS.items() for given in some]
)
def test_every_number_of_a_step_at_its_extremes(
    tmp_path: Path, strategy: str, given: Mapping[str, Any]
) -> None:
    schemas = parameters(strategy)
    paths = {path for name, schema in schemas.items() for path in _numbers(schema, (name,))}
    for path in sorted(paths, key=str):
        document = _document(_with({"strategy": strategy, **given}, path))
        found = {number: _outcome(tmp_path / "spec.yaml", document, number) for number in EXTREMES}
        refused = {number for number, outcome in found.items() if outcome == "refused"}
        assert {".nan", ".inf", "-.inf", "1e400"} <= refused, path
        if not _any_number(schemas, path):
            assert {"1e300", "-1e300", "-1", str(10**30)} <= refused, path


def _any_number(schemas: Mapping[str, Any], path: Path_) -> bool:
    """Numbers that are only compared with, or that a size may be."""
    return path[0] in ("rank_factor", "p_factor", "min_improvement", "memory_budget")


def test_every_strategy_is_tried() -> None:
    step = closed()["properties"]["steps"]["items"]
    assert set(STEPS) == set(step["properties"]["strategy"]["enum"])


@pytest.mark.parametrize(
    "path",
    [("seed",), ("thresholds", "asr"), ("thresholds", "probability"), ("gates", 0, "min_n"),
     ("matrix", "max_runs"), ("model", "max_memory", "cpu")],
)  # fmt: skip
def test_every_number_outside_the_steps_at_its_extremes(tmp_path: Path, path: Path_) -> None:
    document = _document({"strategy": "scan"})
    document["gates"] = [{"metric": "step/glitch", "op": ">", "value": 0}]
    document["matrix"] = {"axes": {"system": ["a", "b"]}}
    document = _with(document, path)
    for number in EXTREMES:
        outcome = _outcome(tmp_path / "spec.yaml", document, number)
        if number in (".nan", "1e400", "1e300", "-1e300", "-1", str(10**30)):
            assert outcome == "refused", number


@pytest.mark.parametrize(
    "step",
    [
        "strategy: validate, tokens: {ids: [3]}, temperature: 1e-300",
        "strategy: classify, tokens: {ids: [3]}, temperature: 1e-300",
        "strategy: validate, tokens: {ids: [3]}, temperature: 1e300",
        "strategy: genetic, base_text: a, population: 1000000000",
    ],
)
def test_values_that_would_fail_in_the_run_are_rejected(tmp_path: Path, step: str) -> None:
    document = json.dumps(_document({"strategy": "scan"}))
    spec = tmp_path / "spec.yaml"
    spec.write_text(document.replace('{"id": "step", "strategy": "scan"}', f"{{{step}}}"))
    with pytest.raises(InvalidSpec, match="GR105"):
        load_experiment(spec)
    spec.write_text(spec.read_text().replace("1e-300", "0").replace("1e300", "2"))
    spec.write_text(spec.read_text().replace("1000000000", "10"))
    assert load_experiment(spec).cells


@pytest.mark.parametrize(("seed", "valid"), [(2**64 - 1, True), (2**64, False)])
def test_a_seed_is_one_that_every_generator_takes(tmp_path: Path, seed: int, valid: bool) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({**_document({"strategy": "profile"}), "seed": seed}))
    if valid:
        assert load_experiment(spec).cells[0].spec.seed == seed
        return
    with pytest.raises(InvalidSpec, match="seed must be at most"):
        load_experiment(spec)
