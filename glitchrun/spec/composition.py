"""Merges a file over the fragments that it extends: mappings merge, lists replace, null deletes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from glitchrun.spec.nodes import (
    KeyEntry,
    MappingNode,
    Node,
    Path_,
    ScalarNode,
    SequenceNode,
    is_null,
    problem_at,
    put,
)
from glitchrun.spec.problems import Problem
from glitchrun.spec.resolution import is_reference
from glitchrun.spec.spec_files import Source, read_source
from glitchrun.spec.yaml_parser import parse

_MAX_FILES = 100
"""Most fragments of one file, and most entries of one `extends`."""


@dataclass
class Composition:
    """The result of reading a file and everything that it extends."""

    source: Source | None = None
    """The file itself; None if it could not be read."""
    node: MappingNode | None = None
    """The merged document without `extends`; None if the file could not be read."""
    own: MappingNode | None = None
    """The file's own document before merging."""
    problems: list[Problem] = field(default_factory=list)
    fragments: dict[str, tuple[Source, MappingNode] | None] = field(default_factory=dict)
    """Every extended file by its real path; each is read once. None if it could not be read."""
    merged: dict[str, MappingNode] = field(default_factory=dict)
    """The same files with their own fragments merged in."""
    complete: bool = True
    """False if a fragment is missing: keys that it would have given must not be reported."""


def compose(path: Path | str) -> Composition:
    """Reads the file at `path` and merges it over its fragments."""
    result = Composition()
    loaded = _load(str(path), result)
    if loaded is not None:
        result.source, result.own = loaded
        merged = _with_fragments(loaded[0], loaded[1], result, (_identity(path),))
        result.node = _with_variants(merged.without("extends"), result, (_identity(path),))
    return result


def _with_variants(node: MappingNode, result: Composition, chain: tuple[str, ...]) -> MappingNode:
    """`node` with every variant of its matrix that is the path of a fragment replaced by it."""
    matrix = node.get("matrix")
    variants = matrix.get("variants") if isinstance(matrix, MappingNode) else None
    if not isinstance(variants, MappingNode):
        return node
    for name, axis in variants.entries.items():
        for key, entry in axis.value.entries.items() if isinstance(axis.value, MappingNode) else ():
            value = entry.value
            if isinstance(value, ScalarNode) and isinstance(value.value, str):
                fragment = _fragment(value.place.source, value, result, chain)
                if fragment is None:
                    result.complete = False
                else:
                    part = fragment.without("apiVersion")
                    node = put(node, ("matrix", "variants", name, key), part)
    return node


def merge(lower: Node, upper: Node, path: Path_ = ()) -> Node:
    """`upper` merged over `lower`. A null in `upper` is kept and so hides the value in `lower`."""
    both_maps = isinstance(lower, MappingNode) and isinstance(upper, MappingNode)
    if not both_maps or is_reference(lower, path) or is_reference(upper, path):
        return upper
    assert isinstance(lower, MappingNode)
    assert isinstance(upper, MappingNode)
    entries = dict(lower.entries)
    for key, entry in upper.entries.items():
        below = entries.get(key)
        value = merge(below.value, entry.value, (*path, key)) if below else entry.value
        entries[key] = KeyEntry(entry.key_place, value)
    return MappingNode(entries, upper.place)


def _load(
    name: str, result: Composition, item: Node | None = None
) -> tuple[Source, MappingNode] | None:
    """Reads the file at `name`, which `item` extends; None for the file that the user named."""
    source = read_source(name)
    if isinstance(source, Problem):
        result.problems.append(source)
        return None
    if item is not None and "Fragment" not in source.text:
        # It is no fragment: nothing of it, such as a line of a file with passwords, may be shown.
        return source, MappingNode({}, item.place)
    node, problems = parse(source)
    result.problems += problems
    if node is None:
        return None
    if not isinstance(node, MappingNode):
        message = "the top of the file must be a mapping of keys to values"
        result.problems.append(problem_at(node.place, "GR016", message))
        return None
    return source, node


def _with_fragments(
    source: Source, node: MappingNode, result: Composition, chain: tuple[str, ...]
) -> MappingNode:
    """`node` merged over the fragments that it names; later fragments win over earlier ones."""
    merged: MappingNode | None = None
    for item in _fragment_items(node, result)[:_MAX_FILES]:
        fragment = _fragment(source, item, result, chain)
        if fragment is None:
            result.complete = False
        elif merged is None:
            merged = fragment
        else:
            merged = _as_mapping(merge(merged, fragment))
    return node if merged is None else _as_mapping(merge(merged, node))


def _fragment_items(node: MappingNode, result: Composition) -> list[ScalarNode]:
    listed = node.get("extends")
    if is_null(listed):
        return []
    items = listed.items if isinstance(listed, SequenceNode) else ()
    good = [item for item in items if isinstance(item, ScalarNode) and isinstance(item.value, str)]
    wrong = [item for item in items if item not in good]
    if not isinstance(listed, SequenceNode):
        assert listed is not None
        wrong = [listed]
    for bad in wrong:
        hint = "write it as extends: [fragments/base.yaml]"
        _report(result, bad, "GR205", "'extends' must be a list of paths", hint)
        result.complete = False
    return good


def _fragment(
    source: Source, item: ScalarNode, result: Composition, chain: tuple[str, ...]
) -> MappingNode | None:
    """The merged document of one entry of `extends`, without its `kind` and `extends`."""
    name = str(source.folder / os.path.expanduser(str(item.value)))  # noqa: PTH111 - never raises
    if not os.path.isfile(name):  # noqa: PTH113 - Path raises for some texts
        _report(result, item, "GR201", f"{item.value!r} is not a file: {name} does not exist")
        return None
    identity = _identity(name)
    if identity in chain:
        _report(
            result, item, "GR202", f"{item.value!r} extends itself, directly or through other files"
        )
        return None
    if identity not in result.fragments:
        if len(result.fragments) >= _MAX_FILES:
            _report(result, item, "GR202", f"more than {_MAX_FILES} files are extended")
            return None
        result.fragments[identity] = _load(name, result, item)
    loaded = result.fragments[identity]
    if loaded is None:
        return None
    fragment_source, node = loaded
    kind = node.get("kind")
    if not (isinstance(kind, ScalarNode) and kind.value == "Fragment"):
        hint = "only files with `kind: Fragment` can be extended"
        _report(result, item, "GR203", f"{item.value!r} is not a Fragment", hint)
        return None
    if identity not in result.merged:
        merged = _with_fragments(fragment_source, node, result, (*chain, identity))
        result.merged[identity] = merged.without("kind", "extends")
    return result.merged[identity]


def _report(result: Composition, node: Node, code: str, message: str, hint: str = "") -> None:
    result.problems.append(problem_at(node.place, code, message, hint, path="extends"))


def _identity(path: Path | str) -> str:
    return str(Path(path).resolve())


def _as_mapping(node: Node) -> MappingNode:
    assert isinstance(node, MappingNode)
    return node
