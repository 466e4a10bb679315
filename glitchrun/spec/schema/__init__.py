"""The JSON Schema of a spec, assembled from `base.json` and one fragment for each strategy, and the
document with its defaults filled in.

Fragments and `base.json` have annotations, which are not published:

    x-metrics        names of the strategy's final metrics
    x-tables         tables of its entries, with their columns
    x-headline       the first metric in the report of a run without verdicts
    x-enum           stands for the names in a table (`ENUMS`)
    x-used-by        values of another parameter that use this one; others reject it
    x-needed-by      values of another parameter that need this one
    x-token-id       the integer is a token id
    x-names-tokens   the text may name tokens by id, such as `<#31415>`
    x-form           the meaning of a `pattern` in words, for hints

For the searches of `mine`, their table (`spec.searches`) gives x-used-by and x-needed-by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from glitchrun.errors import PreflightError
from glitchrun.spec.probes import PROBES, PROTOCOLS
from glitchrun.spec.registry import Registry
from glitchrun.spec.searches import SEARCHES, readers
from glitchrun.spec.strategy import STRATEGIES

_FOLDER = Path(__file__).parent
_PARTS = ("description", "properties", "required", "x-metrics")
"""Keys that every fragment has."""

ENUMS: Mapping[str, Registry[Any]] = {"searches": SEARCHES, "probes": PROBES}
"""The tables whose names an `x-enum` or `x-examples` stands for."""

# Parts of a document that are kept as written, including nulls; `{env: ...}` has no meaning there.
FREE = (
    *(("matrix", key) for key in ("axes", "exclude", "include", "variants")),
    ("extends",),
)
TOKEN_SOURCES = ("tokens", "pool")
"""Parameters of steps that name tokens by ids, texts, file or an earlier step."""
# Mappings in which `env` is never a reference: in tags it is an ordinary key, and the number of
# runs must not depend on the environment.
NO_REFERENCE = (("metadata", "tags"), ("matrix",))


@cache
def fragments(*, built_in: bool = False) -> Mapping[str, Mapping[str, Any]]:
    """Each strategy's fragment by its name, in alphabetical order.

    Args:
        built_in: Whether to leave out what other packages add: strategies, searches and probes.

    Raises:
        PreflightError: another package's strategy or search does not fit.
    """
    chosen = STRATEGIES.built_in if built_in else STRATEGIES
    return {name: _fragment(name, chosen[name].fragment, built_in) for name in sorted(chosen)}


def _fragment(name: str, fragment: Mapping[str, Any], built_in: bool) -> dict[str, Any]:
    """A fragment with the names of searches and probes, and the parameters of its searches."""
    if missing := [part for part in _PARTS if part not in fragment]:
        raise PreflightError(
            f"the fragment of the strategy {name!r} lacks {', '.join(missing)}; repair the package "
            f"{STRATEGIES.origin(name)}"
        )
    found: dict[str, Any] = _with_enums(fragment, built_in)
    for chooser, part in fragment["properties"].items():
        if isinstance(part, Mapping) and part.get("x-enum") == "searches":
            _add_parameters_of_searches(name, chooser, found["properties"], built_in)
    return found


def _add_parameters_of_searches(
    strategy: str, chooser: str, properties: dict[str, Any], built_in: bool
) -> None:
    """Adds the parameters that only one search has, and says of each parameter of a strategy which
    searches read it. `chooser` is the parameter that names the search."""
    searches = SEARCHES.built_in if built_in else SEARCHES
    for search in searches:
        for name, part in SEARCHES[search].parameters.items():
            if name in properties:
                raise PreflightError(
                    f"the search {search!r} of the package {SEARCHES.origin(search)} declares a "
                    f"parameter {name!r}, which `{strategy}` already has; rename the parameter"
                )
            properties[name] = dict(part)
    for name, part in properties.items():
        if used := readers(name, searches):
            part["x-used-by"] = {chooser: used}
            needing = [one for one in used if name in SEARCHES[one].needs]
            part |= {"x-needed-by": {chooser: needing}} if needing else {}


def _with_enums(part: Any, built_in: bool) -> Any:
    """A fragment with every `x-enum` and `x-examples` replaced by the names that it stands for.

    A spec may define probes of its own, so their names are only examples, which editors offer.
    """
    if isinstance(part, list):
        return [_with_enums(item, built_in) for item in part]
    if not isinstance(part, dict):
        return part
    found: dict[str, Any] = {}
    for key, value in part.items():
        if key in ("x-enum", "x-examples"):
            found[key.removeprefix("x-")] = _names(value, built_in)
        else:
            found[key] = _with_enums(value, built_in)
    return found


def _names(table: str, built_in: bool) -> list[str]:
    if table == "protocols":
        return list(PROTOCOLS)
    names = list(ENUMS[table].built_in if built_in else ENUMS[table])
    return [*names, *PROTOCOLS] if table == "probes" else names


@cache
def assembled(*, built_in: bool = False) -> Mapping[str, Any]:
    """The schema of files as written, self-contained: every value may also be null or
    `{env: NAME, default: ...}`.

    Args:
        built_in: Whether to leave out what other packages add.
    """
    schema = _joined(built_in=built_in)
    schema["properties"] = {
        name: _opened(part, (name,)) for name, part in schema["properties"].items()
    }
    for name in ("inlineTemplate", "probe", "shot", "tokenSource", "phraseSource", "step"):
        schema["$defs"][name] = _opened_children(schema["$defs"][name], ())
    result: dict[str, Any] = _without_annotations(schema)
    return result


@cache
def closed() -> Mapping[str, Any]:
    """The schema of a resolved document: no null, no environment values, and every `$ref` replaced
    by what it names, which makes validating several times faster."""
    schema = _joined()
    result: dict[str, Any] = _inline(schema, schema["$defs"])
    return result


@cache
def parameters(strategy: str) -> Mapping[str, Any]:
    """The schema of each parameter of a strategy, every `$ref` replaced by what it names."""
    result: dict[str, Any] = _inline(fragments()[strategy]["properties"], _joined()["$defs"])
    return result


def published(*, built_in: bool = False) -> str:
    """The schema as text; with `built_in`, that of `schemas/experiment.schema.json`."""
    return json.dumps(assembled(built_in=built_in), indent=2, ensure_ascii=False) + "\n"


def _joined(*, built_in: bool = False) -> dict[str, Any]:
    """`base.json` with the strategies in their place."""
    schema: dict[str, Any] = json.loads((_FOLDER / "base.json").read_text(encoding="utf-8"))
    step = schema["$defs"]["step"]
    found = fragments(built_in=built_in)
    step["properties"]["strategy"]["enum"] = list(found)
    step["allOf"] = [_branch(name, fragment) for name, fragment in found.items()]
    return schema


def _branch(name: str, fragment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a step's schema that applies if its strategy is `name`."""
    return {
        "if": {"required": ["strategy"], "properties": {"strategy": {"const": name}}},
        "then": {
            "description": fragment["description"],
            "additionalProperties": False,
            "required": fragment["required"],
            "properties": {"id": True, "strategy": True, **fragment["properties"]},
        },
    }


def _opened(schema: Any, path: tuple[str, ...]) -> Any:
    """`schema`, so that null and `{env: NAME, default: ...}` are valid as well."""
    if schema is True or path in FREE:
        return schema
    inner = _nullable(_opened_children(schema, path))
    if path in NO_REFERENCE:
        return inner
    kept = {key: inner.pop(key) for key in ("description", "default") if key in inner}
    reference = {"type": "object", "required": ["env"]}
    return {**kept, "if": reference, "then": {"$ref": "#/$defs/environment"}, "else": inner}


def _opened_children(schema: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """`schema` with every value below it opened, itself left as it is."""
    opened = dict(schema)
    for name in ("items", "additionalProperties"):
        if isinstance(opened.get(name), dict):
            opened[name] = _opened(opened[name], (*path, "*"))
    if "properties" in opened:
        parts = opened["properties"].items()
        opened["properties"] = {key: _opened(part, (*path, key)) for key, part in parts}
    if "allOf" in opened:
        opened["allOf"] = [
            {**branch, "then": _opened_children(branch["then"], path)} for branch in opened["allOf"]
        ]
    return opened


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if "if" in schema:
        return {**schema, "else": _nullable(schema["else"])}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "$ref" in schema:
        return {"if": {"type": "null"}, "else": schema}
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return {**schema, "type": [*types, "null"]}
    return schema


def _without_annotations(schema: Any) -> Any:
    """`schema` without the `x-` keywords, which strict validators refuse."""
    if isinstance(schema, dict):
        return {
            key: _without_annotations(value)
            for key, value in schema.items()
            if not key.startswith("x-")
        }
    if isinstance(schema, list):
        return [_without_annotations(item) for item in schema]
    return schema


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    merged = {key: value for key, value in schema.items() if key not in ("$ref", "$defs")}
    if "$ref" in schema:
        merged |= definitions[schema["$ref"].removeprefix("#/$defs/")]
    return {key: _inline(value, definitions) for key, value in merged.items()}


def with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a valid document with a value for every key that has a default.

    Parameters that the chosen search does not use are left out.
    """
    filled: dict[str, Any] = _filled(data, closed())
    filled["steps"] = [step_with_defaults(step) for step in data["steps"]]
    return filled


def _filled(data: Any, schema: Mapping[str, Any]) -> Any:
    if not isinstance(data, dict):
        return _copy(data)
    filled = {key: _copy(value) for key, value in data.items()}
    for key, part in schema.get("properties", {}).items():
        if part.get("default") is not None:
            filled.setdefault(key, _copy(part["default"]))
        elif "properties" in part and key != "matrix":
            inner = _filled(data.get(key, {}), part)
            if inner:
                filled[key] = inner
    return filled


def named(user: str | list[str]) -> list[str]:
    """The values of `x-used-by` as a list."""
    return [user] if isinstance(user, str) else user


def step_with_defaults(step: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of one step with its id and the defaults of its strategy."""
    filled = {"id": step["strategy"], **_copy(dict(step))}
    properties = fragments()[step["strategy"]]["properties"]
    for name, part in properties.items():
        users = part.get("x-used-by", {}).items()
        unused = any(
            filled.get(key, properties[key].get("default")) not in named(user)
            for key, user in users
        )
        if part.get("default") is not None and not unused:
            filled.setdefault(name, _copy(part["default"]))
    return filled


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    # 1.0 in the schema is the 1 of a document (nodes.plain).
    return int(value) if isinstance(value, float) and value.is_integer() else value
