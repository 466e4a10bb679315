"""A YAML document as a tree in which every key and value knows its place, and `Document` over it.

Nodes are immutable and shared: an alias and its anchor are one node. The parser bounds depth and
size, so plain recursion over a tree is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glitchrun.spec.problems import Problem
from glitchrun.spec.spec_files import Source
from glitchrun.terminal import REDACTED, SHORTEST_SECRET

Path_ = tuple[str | int, ...]
"""Path of a value in a document: `("steps", 0, "k")`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key or value was written, and how it got into the document."""

    source: Source
    line: int
    column: int
    width: int = 1
    """Number of characters on its first line."""
    via: str | None = None
    """Where the value came from if not from a file: see `Problem.via`."""
    base: Path | None = None
    """The folder from which relative paths start if that is not the file's own folder."""

    @property
    def folder(self) -> Path:
        """The folder from which relative paths start."""
        return self.base if self.base is not None else self.source.folder


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A single value."""

    value: str | int | float | bool | None
    text: str
    """As written."""
    place: Place
    open_variable: str | None = None
    """The environment variable that gives the value, if it is not set yet."""
    from_outside: bool = False
    """Whether the value comes from an environment variable or the command line. The shell removes
    quotes there, so a value that looks like a number is text if the schema wants text."""


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """The place of a key in a mapping, and its value."""

    key_place: Place
    value: Node


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping of keys to values, in the order written."""

    entries: dict[str, KeyEntry]
    place: Place

    def get(self, key: str) -> Node | None:
        """The value of `key`; None if the key is missing."""
        entry = self.entries.get(key)
        return entry.value if entry else None

    def with_entry(self, key: str, entry: KeyEntry) -> MappingNode:
        """A copy in which `key` has this entry."""
        return replace(self, entries={**self.entries, key: entry})

    def without(self, *keys: str) -> MappingNode:
        """A copy without the `keys`."""
        kept = {key: entry for key, entry in self.entries.items() if key not in keys}
        return replace(self, entries=kept)


Node = ScalarNode | SequenceNode | MappingNode


def problem_at(
    place: Place, code: str, message: str, hint: str = "", path: str = "", via: str = ""
) -> Problem:
    """A problem at `place`, with its source line."""
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
    """Whether a value is missing or null."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None)


def plain(node: Node) -> Any:
    """The tree as dicts, lists and scalars.

    A float that is a whole number becomes an int, so that `1`, `1.0` and `1e0` are the same value
    in every later step. A value that is not known yet becomes `{"env": NAME}`.
    """
    if isinstance(node, ScalarNode):
        if node.open_variable:
            return {"env": node.open_variable}
        value = node.value
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    return {key: plain(entry.value) for key, entry in node.entries.items()}


def with_via(node: Node, via: str, place: Place | None = None) -> Node:
    """The same tree with `via` on every place, or with every place replaced by `place`."""
    moved = place or replace(node.place, via=via)
    if isinstance(node, ScalarNode):
        return replace(node, place=moved)
    if isinstance(node, SequenceNode):
        return SequenceNode(tuple(with_via(item, via, place) for item in node.items), moved)
    entries = {
        key: KeyEntry(place or replace(entry.key_place, via=via), with_via(entry.value, via, place))
        for key, entry in node.entries.items()
    }
    return MappingNode(entries, moved)


def child(node: Node | None, key: str | int) -> Node | None:
    """The value at a key or index; None if it does not exist."""
    if isinstance(node, MappingNode) and isinstance(key, str):
        return node.get(key)
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.items):
        return node.items[key]
    return None


def put(node: MappingNode, path: Path_, value: Node) -> MappingNode:
    """A copy of `node` with the value at `path`, which must exist, replaced."""
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
    return node.with_entry(str(key), KeyEntry(entry.key_place, _put(entry.value, rest, value)))


def walk(node: Node, path: Path_ = ()) -> Iterator[tuple[Path_, Node]]:
    """Yields every value with its path, parents first."""
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


@dataclass(frozen=True)
class Document:
    """The document of one cell or, without a matrix, of a whole file."""

    source: Source
    """The file that the user named; problems with values from other files name their origin."""
    node: MappingNode
    open: frozenset[Path_] = frozenset()
    """Paths of values that are not known yet because their environment variable is not set."""
    secret: Mapping[Path_, str] = field(default_factory=dict)
    """Values that must not be shown: their text by path."""
    data: dict[str, Any] = field(init=False)
    """The document as plain data; an open value is `{"env": NAME}`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", plain(self.node))

    def is_open(self, path: Path_) -> bool:
        """Whether the value at `path`, or a value that contains it, is not known yet."""
        return any(path[:length] in self.open for length in range(1, len(path) + 1))

    def find(self, path: Path_) -> Node | None:
        """The node at `path`; None if it does not exist."""
        node: Node | None = self.node
        for part in path:
            node = child(node, part)
        return node

    def text(self, path: Path_) -> str | None:
        """The text at `path`; None if there is no value or it is not a text."""
        node = self.find(path)
        is_text = isinstance(node, ScalarNode) and not node.open_variable
        return node.value if is_text and isinstance(node.value, str) else None  # type: ignore[union-attr]

    def place(self, path: Path_) -> Place:
        """Where the value at `path` is written; else the nearest value that would contain it."""
        while path:
            node = self.find(path)
            if node is not None:
                return node.place
            path = path[:-1]
        return self.node.place

    def key_place(self, path: Path_) -> Place:
        """Where the key of the value at `path` is written. List items and the whole document have
        no key: the place of the value itself."""
        holder = self.find(path[:-1]) if path else None
        if isinstance(holder, MappingNode) and path[-1] in holder.entries:
            return holder.entries[str(path[-1])].key_place
        return self.place(path)

    def via(self, place: Place) -> str:
        """Where the text at `place` came from; empty for the file itself."""
        if place.via:
            return self._redacted(place.via)
        return "" if place.source is self.source else f"extended by {self.source.name}"

    def problem(
        self, code: str, path: Path_, message: str, hint: str = "", *, place: Place | None = None
    ) -> Problem:
        """A problem with the value at `path`, located at `place` or else at the value."""
        place = place or self.place(path)
        return problem_at(
            place,
            code,
            self._redacted(message),
            self._redacted(hint),
            path_text(path),
            self.via(place),
        )

    def _redacted(self, text: str) -> str:
        for secret in self.secret.values():
            text = text.replace(repr(secret), REDACTED)
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, REDACTED)
        return text
