"""A resolved document together with its places: what the checks look at and point into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.spec.nodes import (
    MappingNode,
    Node,
    Path_,
    Place,
    ScalarNode,
    child,
    path_text,
    plain,
    problem_at,
)
from glitchrun.spec.problems import Problem
from glitchrun.spec.source import Source

REDACTED = "<redacted>"
_SHORTEST_SECRET = 4
"""Shorter ones are only looked for in quotes: a `1` is part of many a message."""


@dataclass(frozen=True)
class Document:
    """One cell's document, or that of a whole file where there is no matrix."""

    source: Source
    """The file that was asked for; values from other files name their origin."""
    node: MappingNode
    open: frozenset[Path_] = frozenset()
    """Values not known yet, because their environment variable is not set."""
    secret: Mapping[Path_, str] = field(default_factory=dict)
    """Values that must not be shown: where they are, and their text."""
    data: dict[str, Any] = field(init=False)
    """The document as plain data; an open value is `{"env": NAME}`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", plain(self.node))

    def is_open(self, path: Path_) -> bool:
        """Whether the value at `path`, or one that it lies in, is not known yet."""
        return any(path[:length] in self.open for length in range(1, len(path) + 1))

    def find(self, path: Path_) -> Node | None:
        """The node at `path`; None where there is none."""
        node: Node | None = self.node
        for part in path:
            node = child(node, part)
        return node

    def text(self, path: Path_) -> str | None:
        """The text at `path`; None where there is none, or something else."""
        node = self.find(path)
        is_text = isinstance(node, ScalarNode) and not node.open_variable
        return node.value if is_text and isinstance(node.value, str) else None  # type: ignore[union-attr]

    def place(self, path: Path_) -> Place:
        """Where the value at `path` is written, or the nearest value around it."""
        while path:
            node = self.find(path)
            if node is not None:
                return node.place
            path = path[:-1]
        return self.node.place

    def key_place(self, path: Path_) -> Place:
        """Where the key of the value at `path` is written; the value's own place for list items
        and for the whole document."""
        holder = self.find(path[:-1]) if path else None
        if isinstance(holder, MappingNode) and path[-1] in holder.entries:
            return holder.entries[str(path[-1])].key_place
        return self.place(path)

    def via(self, place: Place) -> str:
        """How what stands at `place` got into this document; empty for the file's own."""
        if place.via:
            return place.via
        return "" if place.source is self.source else f"extended by {self.source.name}"

    def problem(
        self, code: str, path: Path_, message: str, hint: str = "", *, place: Place | None = None
    ) -> Problem:
        """A problem with the value at `path`, shown at `place` or else at the value."""
        place = place or self.place(path)
        return problem_at(
            place, code, self._told(message), self._told(hint), path_text(path), self.via(place)
        )

    def _told(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self.secret.values():
            text = text.replace(repr(secret), REDACTED)
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, REDACTED)
        return text
