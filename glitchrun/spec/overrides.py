"""Key paths such as `model.quantization`, `steps.0.k` and `steps.mine.k`, and `--set PATH=VALUE`.

The matrix assigns its values by the same paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glitchrun.errors import UsageError
from glitchrun.spec.nodes import (
    KeyEntry,
    MappingNode,
    Node,
    Place,
    ScalarNode,
    SequenceNode,
    is_null,
    path_text,
    problem_at,
    with_via,
)
from glitchrun.spec.problems import Problem, did_you_mean
from glitchrun.spec.spec_files import Source
from glitchrun.spec.yaml_parser import parse
from glitchrun.spec.yaml_scalars import BadScalar, is_utf8, resolve

_INDEX = re.compile(r"\[(\d{1,9})\]")
LOCKED = ("apiVersion", "kind", "extends")
"""Keys that only the file itself can set, because they say what the file is."""


class PathError(ValueError):
    """A path that does not exist in the document or may not be set."""

    def __init__(self, message: str, hint: str = "", code: str = "GR207") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def split(text: str) -> tuple[str, ...]:
    """The parts of a path as written.

    Raises:
        PathError: the text is not a path, or names a locked key.
    """
    parts = tuple(_INDEX.sub(r".\1", text.strip()).split("."))
    if not all(parts):
        raise PathError(f"{text!r} is not a path", "write it as model.device or steps.mine.k")
    if parts[0] in LOCKED:
        raise PathError(f"{parts[0]!r} can only be set in the file itself", code="GR208")
    return parts


def assign(node: MappingNode, parts: tuple[str, ...], value: Node, key_place: Place) -> MappingNode:
    """The document with `value` at the path.

    Missing keys on the way are created, located at `key_place`; the schema decides whether such
    keys exist.

    Raises:
        PathError: the path does not exist in the document.
    """
    result = _assign(node, parts, value, (), key_place)
    assert isinstance(result, MappingNode)
    return result


def place_near(node: MappingNode, parts: tuple[str, ...]) -> Place:
    """Where the value at the path is written, or else the last existing value on the way to it.

    Problems with an override from outside the file are shown there.
    """
    current: Node = node
    place = node.place
    while parts:
        try:
            key, parts = _step(current, parts, ())
        except PathError:
            return place
        if isinstance(current, MappingNode) and isinstance(key, str) and key in current.entries:
            entry = current.entries[key]
            current, place = entry.value, entry.value.place if not parts else entry.key_place
        elif isinstance(current, SequenceNode) and isinstance(key, int):
            current = current.items[key]
            place = current.place
        else:
            return place
    return place


def resolved(node: MappingNode, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The path with the index of a step in place of its id, so that two paths can be compared."""
    steps = node.get("steps")
    if parts[0] != "steps" or len(parts) < 2 or not isinstance(steps, SequenceNode):
        return parts
    try:
        return ("steps", str(_index(steps, parts[1], ("steps",))), *parts[2:])
    except PathError:
        return parts


def step_name(step: Node) -> str | None:
    """The id of a step, by default its strategy's name; None if it is not known."""
    if not isinstance(step, MappingNode):
        return None
    for key in ("id", "strategy"):
        node = step.get(key)
        if not is_null(node):
            named = isinstance(node, ScalarNode) and isinstance(node.value, str)
            return str(node.value) if named and isinstance(node, ScalarNode) else None
    return None


def _assign(
    node: Node | None,
    parts: tuple[str, ...],
    value: Node,
    at: tuple[str, ...],
    key_place: Place,
) -> Node:
    if not parts:
        return value
    if is_null(node):
        node = MappingNode({}, key_place)
    assert node is not None
    key, rest = _step(node, parts, at)
    if isinstance(node, SequenceNode):
        assert isinstance(key, int)
        items = list(node.items)
        items[key] = _assign(items[key], rest, value, (*at, str(key)), key_place)
        return replace(node, items=tuple(items))
    assert isinstance(node, MappingNode)
    assert isinstance(key, str)
    old = node.entries.get(key)
    new = _assign(old.value if old else None, rest, value, (*at, key), key_place)
    return node.with_entry(key, KeyEntry(old.key_place if old else key_place, new))


def _step(
    node: Node, parts: tuple[str, ...], at: tuple[str, ...]
) -> tuple[str | int, tuple[str, ...]]:
    """The key or index in `node` that the path goes to, and the rest of the path."""
    if isinstance(node, SequenceNode):
        return _index(node, parts[0], at), parts[1:]
    if isinstance(node, MappingNode):
        for count in range(len(parts), 1, -1):  # keys that contain dots
            joined = ".".join(parts[:count])
            if joined in node.entries:
                return joined, parts[count:]
        if at == ("matrix", "axes"):  # the name of an axis is a path
            return ".".join(parts), ()
        return parts[0], parts[1:]
    if is_null(node):
        return parts[0], parts[1:]
    raise PathError(f"{path_text(at)!r} is a single value and has no key {parts[0]!r}")


def _index(node: SequenceNode, part: str, at: tuple[str, ...]) -> int:
    where = path_text(at)
    if part.isdecimal() and len(part) < 10:
        if int(part) < len(node.items):
            return int(part)
        raise PathError(
            f"{where!r} has no index {part}: it has {len(node.items)} items, counted from 0"
        )
    names = [step_name(item) for item in node.items] if at == ("steps",) else []
    if part in names:
        return names.index(part)
    if None in names:
        hint = f"the id of a step is not known here: use the index of the step, as in {where}[0].k"
        raise PathError(f"{where!r} has no item {part!r}", hint)
    raise PathError(f"{where!r} has no item {part!r}", did_you_mean(part, names))


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set`, parsed but not applied."""

    text: str
    parts: tuple[str, ...]
    value: Node

    def apply(self, node: MappingNode) -> MappingNode:
        """A copy of `node` with the value, located where the file has the key.

        Raises:
            PathError: the path does not exist in `node`.
        """
        via = f"--set {self.text}"
        place = replace(place_near(node, self.parts), via=via, base=Path())
        return assign(node, self.parts, with_via(self.value, via, place), place)


def read_overrides(texts: Sequence[str], root: Place) -> tuple[list[Override], list[Problem]]:
    """Parses the `--set` options of a command line. Returns the overrides and the problems found.

    Raises:
        UsageError: an option is not of the form `KEY=VALUE`.
    """
    overrides, problems = [], []
    for text in texts:
        key, equals, written = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r}: write it as KEY=VALUE, such as model.device=cpu")
        value, wrong = _value(text, written, root)
        problems += wrong
        try:
            parts = split(key)
        except PathError as error:
            problems.append(_problem(root, text, error.code, str(error), error.hint))
            continue
        if value is not None:
            overrides.append(Override(text, parts, value))
    return overrides, problems


def apply_overrides(
    node: MappingNode, overrides: Sequence[Override]
) -> tuple[MappingNode, list[Problem]]:
    """Applies the overrides in order. Returns the new document and what could not be applied."""
    problems = []
    for override in overrides:
        try:
            node = override.apply(node)
        except PathError as error:
            place = place_near(node, override.parts)
            problems.append(_problem(place, override.text, error.code, str(error), error.hint))
    return node, problems


def _value(text: str, written: str, root: Place) -> tuple[Node | None, list[Problem]]:
    plain = written.strip()
    if not is_utf8(written):
        return None, [_problem(root, text, "GR206", "the value is not UTF-8", "")]
    try:
        value = resolve(plain)
    except BadScalar:  # 12e4567 may be a commit; the schema rejects text if it wants a number
        return ScalarNode(plain, plain, root, from_outside=True), []
    if value is None:  # `--set model.revision=` means null, like an empty value in a file
        return ScalarNode(None, plain, root), []
    node, found = parse(Source("--set", written, Path()))
    if isinstance(node, ScalarNode):
        node = replace(node, from_outside=True)
    message = "the value is not valid YAML: "
    return node, [_problem(root, text, "GR206", message + p.message, p.hint) for p in found]


def _problem(place: Place, text: str, code: str, message: str, hint: str) -> Problem:
    return problem_at(place, code, message, hint, via=f"--set {text}")
