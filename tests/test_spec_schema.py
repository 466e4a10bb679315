"""The schema: up to date in schemas/, valid, and consistent with types and checks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from glitchrun.spec import types
from glitchrun.spec.problems import CODES
from glitchrun.spec.schema import assembled, closed, fragments, named, published
from glitchrun.spec.templates import FAMILIES, TEMPLATE_MODES

ROOT = Path(__file__).parents[1]


def schemas(
    node: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every mapping in a schema with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from schemas(value, (*path, key))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from schemas(item, (*path, str(index)))


def test_the_published_file_is_the_assembled_schema() -> None:
    text = (ROOT / "schemas" / "experiment.schema.json").read_text(encoding="utf-8")
    assert text == published()


@pytest.mark.parametrize("schema", [assembled, closed])
def test_the_schema_is_a_valid_json_schema(schema: Any) -> None:
    Draft202012Validator.check_schema(schema())


def test_every_mapping_rejects_unknown_keys() -> None:
    free = {("matrix", "axes"), ("matrix", "exclude")}
    for path, node in schemas(assembled()):
        if "properties" not in node or "if" in path or path == ("else",):
            continue
        if "$defs" in path and path[-1] == "step":  # closed by each strategy's branch
            assert all(part["then"]["additionalProperties"] is False for part in node["allOf"])
        elif path[:1] == ("else",) or path in free:
            continue
        else:
            assert node["additionalProperties"] is False, path


def test_every_key_is_described() -> None:
    for path, node in schemas(closed()):
        if path[-1:] != ("properties",) or "if" in path or path[0] == "else":
            continue
        for key, part in node.items():
            if part is not True:
                assert part.get("description"), (*path, key)


def test_annotations_are_not_published() -> None:
    assert not [path for path, _ in schemas(assembled()) if path and path[-1].startswith("x-")]
    assert "x-used-by" in str(closed())


def test_the_strategy_is_chosen_by_if_and_then() -> None:
    branches = assembled()["$defs"]["step"]["allOf"]
    chosen = [branch["if"]["properties"]["strategy"]["const"] for branch in branches]
    assert chosen == list(fragments())


def test_defaults_are_valid() -> None:
    for path, node in schemas(closed()):
        if node.get("default") is not None and path[-1] != "properties":
            assert Draft202012Validator(node).is_valid(node["default"]), path


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (types.ModelSpec, ("model",)),
        (types.Thresholds, ("thresholds",)),
        (types.Tracking, ("tracking",)),
        (types.TokenScope, ("tokens",)),
        (types.Gate, ("gates", "items")),
        (types.InlineTemplate, ("template", "then")),
    ],
)
def test_types_have_the_keys_and_defaults_of_the_schema(kind: Any, path: tuple[str, ...]) -> None:
    schema: Any = closed()["properties"][path[0]]
    for part in path[1:]:
        schema = schema[part]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert set(fields) == set(schema["properties"])
    for name, part in schema["properties"].items():
        default = fields[name].default
        if part.get("default") is not None:
            assert json.loads(json.dumps(default)) == part["default"], name
        else:
            assert default in (None, dataclasses.MISSING), name


def test_needed_parameters_are_used_ones() -> None:
    for name, fragment in fragments().items():
        for key, part in fragment["properties"].items():
            for chooser, user in part.get("x-used-by", {}).items():
                assert set(named(user)) <= set(fragment["properties"][chooser]["enum"]), (name, key)
            assert part.get("x-needed-by", {}).items() <= part.get("x-used-by", {}).items()


def test_the_documentation_lists_every_code_and_template() -> None:
    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| GR")
    )
    assert rows == CODES
    for name in (*TEMPLATE_MODES, *FAMILIES):
        assert f"`{name}`" in text
