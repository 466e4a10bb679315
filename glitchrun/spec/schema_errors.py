"""Checks a document against the schema and explains each error in plain words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.validators import Draft202012Validator, extend

from glitchrun.spec.nodes import Document, Path_, ScalarNode, path_text
from glitchrun.spec.problems import Problem, did_you_mean, nearest, nearest_free, one_of
from glitchrun.spec.schema import closed
from glitchrun.spec.yaml_scalars import BadScalar, resolve
from glitchrun.terminal import shortened

_MAX_ERRORS = 200
"""Largest number of errors taken from one document; a hostile document could have one for each
value."""

_TYPE_NAMES = {
    "object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number",
    "number": "a number", "boolean": "true or false", "null": "null",
}  # fmt: skip
_KINDS: dict[type, str] = {dict: "a mapping", list: "a list", str: "the text "}
_CODES = {
    "type": "GR102", "enum": "GR103", "const": "GR103", "pattern": "GR108",
    "minimum": "GR105", "maximum": "GR105",
    "exclusiveMinimum": "GR105", "exclusiveMaximum": "GR105",
    "minItems": "GR106", "maxItems": "GR106", "minLength": "GR106", "maxLength": "GR106",
    "minProperties": "GR106", "uniqueItems": "GR107",
}  # fmt: skip


def schema_problems(document: Document, *, partial: bool = False) -> list[Problem]:
    """Every violation of the schema in `document`.

    A `partial` document (a fragment, or a file whose matrix fills gaps) may lack required keys.
    """
    errors = _validator().iter_errors(document.data)
    problems: dict[Problem, None] = {}
    for error in itertools.islice(errors, _MAX_ERRORS):
        path = tuple(error.absolute_path)
        if document.is_open(path) or (partial and error.validator == "required"):
            continue
        if error.validator == "pattern" and error.instance == "" and "minLength" in error.schema:
            continue  # an empty text is already reported by minLength
        if error.validator == "oneOf" and not isinstance(error.instance, dict):
            continue  # the type is already reported
        problems |= dict.fromkeys(_translate(document, path, error))
    return list(problems)


def texts_expected(document: Document) -> list[Path_]:
    """Paths of values from outside the file that were read as a number or boolean although the
    schema wants text."""
    return [
        path
        for path, error in _type_errors(document)
        if isinstance(node := document.find(path), ScalarNode)
        and node.from_outside
        and not isinstance(node.value, str)
        and "string" in str(error.validator_value)
    ]


def _type_errors(document: Document) -> Iterator[tuple[Path_, ValidationError]]:
    for error in itertools.islice(_validator().iter_errors(document.data), _MAX_ERRORS):
        if error.validator == "type":
            yield tuple(error.absolute_path), error


@cache
def _validator() -> Any:
    # Both keywords are replaced to bound the time for hostile lists: jsonschema's uniqueItems
    # compares all pairs if the items differ in type, and its items continues beyond maxItems.
    keywords = {"uniqueItems": _unique_items, "items": _items}
    kind = extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]
    return kind(closed())


def _unique_items(
    _validator: Any, wanted: bool, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if wanted and isinstance(instance, list):
        texts = [json.dumps(item, sort_keys=True) for item in instance]
        if len(set(texts)) < len(texts):
            yield ValidationError("repeated item")


def _items(
    validator: Any, items: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(instance, list) or len(instance) <= schema.get("maxItems", len(instance)):
        yield from Draft202012Validator.VALIDATORS["items"](validator, items, instance, schema)


def _translate(document: Document, path: Path_, error: ValidationError) -> Iterator[Problem]:
    special: Mapping[str, Callable[..., Iterator[Problem]]] = {
        "additionalProperties": _unknown_keys,
        "required": _missing_keys,
        "oneOf": _exactly_one,
        "dependentRequired": _dependent,
        "uniqueItems": _repeated,
    }
    keyword = str(error.validator)
    if keyword in special:
        yield from special[keyword](document, path, error)
    elif "propertyNames" in error.absolute_schema_path:
        yield _bad_key(document, path, error)
    else:
        code = _CODES.get(keyword, "GR110")
        message = f"{_subject(path)} {_violation(document, path, error)}"
        yield document.problem(code, path, message, _hint(error))


def _unknown_keys(document: Document, path: Path_, error: ValidationError) -> Iterator[Problem]:
    known = error.schema.get("properties", {})  # type: ignore[union-attr]
    patterns = error.schema.get("patternProperties", {})  # type: ignore[union-attr]
    instance: Mapping[str, Any] = error.instance  # type: ignore[assignment]
    extras = (key for key in instance if key not in known)
    for key in itertools.islice(extras, _MAX_ERRORS):
        if patterns and key.startswith("x-"):
            continue
        where = f" in {path_text(path)}" if path else ""
        if path[:1] == ("steps",) and len(path) == 2:
            where = f" in a step with strategy {instance.get('strategy')!r}"
        place = document.key_place((*path, key))
        message = f"unknown key {shortened(key)!r}{where}"
        near = nearest_free(key, known, taken=instance)
        hint = f"did you mean {near!r}?" if near else did_you_mean(key, known)
        yield document.problem("GR101", (*path, key), message, hint, place=place)


def _missing_keys(document: Document, path: Path_, error: ValidationError) -> Iterator[Problem]:
    for key in error.validator_value:  # type: ignore[union-attr]
        if key not in error.instance:  # type: ignore[operator]
            where = f" in {path_text(path)}" if path else ""
            message = f"missing key {key!r}{where}"
            yield document.problem("GR104", (*path, key), message, place=document.key_place(path))


def _exactly_one(document: Document, path: Path_, error: ValidationError) -> Iterator[Problem]:
    names = [name for part in error.validator_value for name in part["required"]]  # type: ignore[union-attr]
    given = [name for name in names if name in error.instance]  # type: ignore[operator]
    found = f"{', '.join(map(repr, given))} are given" if given else "none is given"
    message = f"{_subject(path)} needs exactly one of {', '.join(map(repr, names))}; {found}"
    place = document.key_place((*path, given[1])) if len(given) > 1 else document.key_place(path)
    yield document.problem("GR109", path, message, place=place)


def _dependent(document: Document, path: Path_, error: ValidationError) -> Iterator[Problem]:
    for key, needed in error.validator_value.items():  # type: ignore[union-attr]
        missing = [name for name in needed if name not in error.instance]  # type: ignore[operator]
        if key in error.instance and missing:  # type: ignore[operator]
            message = f"{key!r} has no effect without {', '.join(map(repr, missing))}"
            place = document.key_place((*path, key))
            yield document.problem("GR109", (*path, key), message, place=place)


def _repeated(document: Document, path: Path_, error: ValidationError) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, item in enumerate(error.instance):  # type: ignore[arg-type]
        text = json.dumps(item, sort_keys=True)
        if text in seen:
            message = f"{_subject(path)} contains {_show(item)} twice"
            yield document.problem("GR107", (*path, index), message)
        seen.add(text)


def _bad_key(document: Document, path: Path_, error: ValidationError) -> Problem:
    key = str(error.instance)
    message = f"the key {shortened(key)!r} in {path_text(path)} does not have the required form"
    place = document.key_place((*path, key))
    return document.problem("GR108", (*path, key), message, _hint(error), place=place)


def _violation(document: Document, path: Path_, error: ValidationError) -> str:
    wanted: Any = error.validator_value
    value = _show(error.instance)
    kinds = wanted if isinstance(wanted, list) else [wanted]
    node = document.find(path)
    if isinstance(node, ScalarNode) and node.text and not isinstance(node.value, str):
        value = shortened(node.text)  # as written: 1e3, not 1000.0
    texts: dict[str, Callable[[], str]] = {
        "type": lambda: (
            f"must be {' or '.join(_TYPE_NAMES.get(k, str(k)) for k in kinds)}, "
            f"not {_KINDS.get(type(error.instance), '')}{value}"
        ),
        "enum": lambda: f"cannot be {value}",
        "const": lambda: f"must be {_constant(wanted)}, not {value}",
        "minimum": lambda: f"must be at least {wanted}, not {value}",
        "maximum": lambda: f"must be at most {wanted}, not {value}",
        "exclusiveMinimum": lambda: f"must be more than {wanted}, not {value}",
        "exclusiveMaximum": lambda: f"must be less than {wanted}, not {value}",
        "minItems": lambda: f"must have at least {wanted} item{'s' * (wanted != 1)}",
        "maxItems": lambda: f"must have at most {wanted} items",
        "minLength": lambda: "must not be empty",
        "maxLength": lambda: f"must have at most {wanted} characters",
        "minProperties": lambda: "must not be empty",
        "pattern": lambda: f"cannot be {value}",
    }
    return texts.get(str(error.validator), lambda: f"is not allowed: {shortened(error.message)}")()


def _hint(error: ValidationError) -> str:
    schema: Mapping[str, Any] = error.schema  # type: ignore[assignment]
    if error.validator == "enum":
        return _choices(error)
    if error.validator == "type":
        return _quotes(error)
    if error.validator == "pattern":
        return str(schema.get("x-form") or schema.get("description", ""))
    return ""


def _choices(error: ValidationError) -> str:
    """The allowed values, the most likely first."""
    wanted: Any = error.validator_value
    choices = [choice for choice in wanted if choice is not None]
    near = nearest(error.instance, choices)
    if near is None or len(choices) == 1:
        return one_of(choices)
    ordered = [near, *(choice for choice in choices if choice != near)]
    return f"did you mean {near!r}? Allowed: {', '.join(map(repr, ordered))}"


def _quotes(error: ValidationError) -> str:
    """A hint to remove or add quotes; empty if quotes are not the reason."""
    kinds, value = error.validator_value, error.instance
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if isinstance(value, str) and "string" not in kinds:
        try:
            read = resolve(value)
        except BadScalar as bad:
            return str(bad)
        fits = any(_is_of(read, kind) for kind in kinds)
        return f"write {value} without quotes" if fits else ""
    if isinstance(value, bool | int | float) and "string" in kinds:
        return "put it in quotes if text is meant"
    if isinstance(value, dict) and not any(value.values()) and "string" in kinds:
        return "put the text in quotes: YAML reads braces as a mapping"
    return ""


def _is_of(value: Any, kind: str) -> bool:
    """Whether `value` has the JSON Schema type `kind`."""
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types: dict[str, type] = {"integer": int, "boolean": bool}
    return type(value) is types.get(kind)


def _constant(wanted: Any) -> str:
    return json.dumps(wanted) if isinstance(wanted, bool) else repr(wanted)


def _subject(path: Path_) -> str:
    return path_text(path) or "the document"


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return ""
    return repr(shortened(value)) if isinstance(value, str) else json.dumps(value)
