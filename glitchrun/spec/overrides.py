"""`--set key.path=value`: assignments from outside the file, over everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glitchrun.errors import UsageError
from glitchrun.spec.nodes import MappingNode, Node, Place, ScalarNode, problem_at, with_via
from glitchrun.spec.paths import PathError, assign, place_near, split
from glitchrun.spec.problems import Problem
from glitchrun.spec.scalars import BadScalar, resolve
from glitchrun.spec.source import Source
from glitchrun.spec.yaml_core import parse


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set`, read but not applied."""

    text: str
    parts: tuple[str, ...]
    value: Node

    def apply(self, node: MappingNode) -> MappingNode:
        """`node` with the value in it, shown where the file has the key; raises PathError."""
        via = f"--set {self.text}"
        place = replace(place_near(node, self.parts), via=via, base=Path())
        return assign(node, self.parts, with_via(self.value, via, place), place)


def read_overrides(texts: Sequence[str], root: Place) -> tuple[list[Override], list[Problem]]:
    """The overrides of a command line. Raises UsageError where one is not `KEY=VALUE`."""
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
    """`node` with every override in it, in the order given, and what could not be applied."""
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
    try:
        value = resolve(plain)
    except BadScalar:  # text where text is wanted (12e4567 may be a commit); else refused there
        return ScalarNode(plain, plain, root, from_outside=True), []
    if value is None:  # `--set model.revision=`: as an empty value in a file
        return ScalarNode(None, plain, root), []
    node, found = parse(Source("--set", written, Path()))
    if isinstance(node, ScalarNode):
        node = replace(node, from_outside=True)
    message = "the value is not YAML: "
    return node, [_problem(root, text, "GR206", message + p.message, p.hint) for p in found]


def _problem(place: Place, text: str, code: str, message: str, hint: str) -> Problem:
    return problem_at(place, code, message, hint, via=f"--set {text}")
