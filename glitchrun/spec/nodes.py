"""A YAML document as a tree in which every key and value knows its place.

Nodes are immutable and shared: an alias and its anchor are one node. The loader bounds depth and
size, so plain recursion over a tree is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glitchrun.spec.problems import Problem
from glitchrun.spec.source import Source

Path_ = tuple[str | int, ...]
"""Where a value is in a document: `("steps", 0, "k")`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written, and how it got into the document."""

    source: Source
    line: int
    column: int
    width: int = 1
    """Characters it takes on its first line."""
    via: str | None = None
    base: Path | None = None
    """The folder its relative paths start from, where that is not the file's own."""

    @property
    def folder(self) -> Path:
        return self.base if self.base is not None else self.source.folder


@dataclass(frozen=True, slots=True)
class ScalarNode:
    value: str | int | float | bool | None
    text: str
    """As written."""
    place: Place
    open_variable: str | None = None
    """The environment variable whose value this will be, while that is not known."""
    from_outside: bool = False
    """Whether an environment variable or the command line gave it, where quotes are the shell's:
    what looks like a number is text where text is wanted."""


@dataclass(frozen=True, slots=True)
class SequenceNode:
    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entry:
    key_place: Place
    value: Node


@dataclass(frozen=True, slots=True)
class MappingNode:
    entries: dict[str, Entry]
    place: Place

    def get(self, key: str) -> Node | None:
        entry = self.entries.get(key)
        return entry.value if entry else None

    def with_entry(self, key: str, entry: Entry) -> MappingNode:
        return replace(self, entries={**self.entries, key: entry})

    def without(self, *keys: str) -> MappingNode:
        kept = {key: entry for key, entry in self.entries.items() if key not in keys}
        return replace(self, entries=kept)


Node = ScalarNode | SequenceNode | MappingNode


def problem_at(
    place: Place, code: str, message: str, hint: str = "", path: str = "", via: str = ""
) -> Problem:
    """A problem shown at `place`, with its source line."""
    source = place.source
    return Problem(
        source.name,
        place.line,
        place.column,
        code,
        message,
        path,
        hint,
        via or place.via or "",
        source_line=source.line(place.line),
        width=place.width,
    )


def is_null(node: Node | None) -> bool:
    """Whether a value is absent: not written, or written as null."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None)


def plain(node: Node) -> Any:
    """The document as dicts, lists and scalars. A float that is a whole number becomes an int, so
    that `1`, `1.0` and `1e0` are one value everywhere after this."""
    if isinstance(node, ScalarNode):
        if node.open_variable:
            return {"env": node.open_variable}
        value = node.value
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    return {key: plain(entry.value) for key, entry in node.entries.items()}


def with_via(node: Node, via: str, place: Place | None = None) -> Node:
    """The same value with `via` on every place; all of it moved to `place` where that is given."""
    moved = place or replace(node.place, via=via)
    if isinstance(node, ScalarNode):
        return replace(node, place=moved)
    if isinstance(node, SequenceNode):
        return SequenceNode(tuple(with_via(item, via, place) for item in node.items), moved)
    entries = {
        key: Entry(place or replace(entry.key_place, via=via), with_via(entry.value, via, place))
        for key, entry in node.entries.items()
    }
    return MappingNode(entries, moved)


def child(node: Node | None, key: str | int) -> Node | None:
    """The value under one key or index; None where there is none."""
    if isinstance(node, MappingNode) and isinstance(key, str):
        return node.get(key)
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.items):
        return node.items[key]
    return None


def put(node: MappingNode, path: Path_, value: Node) -> MappingNode:
    """`node` with the value at `path`, which exists, replaced."""
    result = _put(node, path, value)
    assert isinstance(result, MappingNode)
    return result


def _put(node: Node, path: Path_, value: Node) -> Node:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, SequenceNode):
        items = list(node.items)
        items[int(key)] = _put(items[int(key)], rest, value)
        return replace(node, items=tuple(items))
    assert isinstance(node, MappingNode)
    entry = node.entries[str(key)]
    return node.with_entry(str(key), Entry(entry.key_place, _put(entry.value, rest, value)))


def walk(node: Node, path: Path_ = ()) -> Iterator[tuple[Path_, Node]]:
    """Every value with its path, parents first."""
    yield path, node
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            yield from walk(item, (*path, index))
    elif isinstance(node, MappingNode):
        for key, entry in node.entries.items():
            yield from walk(entry.value, (*path, key))


def path_text(path: Sequence[str | int]) -> str:
    """A path as messages show it: `steps[0].k`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
