"""Replaces `{env: NAME, default: ...}` by values, removes nulls, makes relative paths absolute."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from glitchrun.spec.mlflow_rules import may_hold_secrets
from glitchrun.spec.nodes import (
    KeyEntry,
    MappingNode,
    Node,
    Path_,
    ScalarNode,
    SequenceNode,
    child,
    is_null,
    path_text,
    put,
)
from glitchrun.spec.problems import did_you_mean
from glitchrun.spec.schema import FREE, NO_REFERENCE, TOKEN_SOURCES
from glitchrun.spec.yaml_scalars import BadScalar, is_utf8, resolve
from glitchrun.terminal import conceal

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SECRET = re.compile(r"(token|key|passw(or)?d|secret|credentials?)\Z", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Za-z][a-z]*")


class Unset(Enum):
    """What happens to a reference to a variable that is not set and has no default."""

    OPEN = "kept as a value that is not known yet"
    PLACEHOLDER = "replaced by ${NAME} if a Spec needs the value, else removed"
    ABSENT = "removed"


STORE: Path_ = ("tracking", "uri")
"""Path of the address of the MLflow store."""
_NEEDED = (("model", "path"), ("metadata", "name"))


@dataclass
class Resolution:
    """A document with environment variables replaced and nulls removed."""

    node: MappingNode
    open: set[Path_] = field(default_factory=set)
    """Paths of values that depend on a variable that is not set."""
    unset: dict[Path_, str] = field(default_factory=dict)
    """Values removed because their variable is not set: the variable's name by path."""
    secret: dict[Path_, str] = field(default_factory=dict)
    """Values that must not be logged: their text by path."""
    malformed: list[tuple[Path_, Node, str, str, str]] = field(default_factory=list)
    """Invalid references: path, node, code, message, hint."""


def is_reference(node: Node, path: Path_) -> bool:
    """Whether `node` refers to an environment variable; in a few places `env` is a plain key."""
    return isinstance(node, MappingNode) and "env" in node.entries and path not in NO_REFERENCE


def resolve_environment(
    node: MappingNode, environ: Mapping[str, str], unset: Unset = Unset.ABSENT
) -> Resolution:
    """`node` with every reference replaced by its value, and without nulls."""
    result = Resolution(node)
    resolved = _Resolver(environ, unset, result).value(node, ())
    result.node = resolved if isinstance(resolved, MappingNode) else replace(node, entries={})
    return result


def is_secret(path: Path_, variable: str) -> bool:
    """Whether the value of `variable` at `path` must not appear in any log or record."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    return path[:1] == ("tracking",) or _names_secret(key) or _names_secret(variable)


def _names_secret(name: str) -> bool:
    # Compare whole words: `hf_token` is a secret, `max_new_tokens` is not.
    return any(_SECRET.search(word) for word in _WORD.findall(name))


@dataclass
class _Resolver:
    environ: Mapping[str, str]
    unset: Unset
    result: Resolution

    def value(self, node: Node, path: Path_) -> Node | None:
        """The resolved value; None if it is removed."""
        if path in FREE or (len(path) == 1 and str(path[0]).startswith("x-")):
            return None if is_null(node) else node
        if is_reference(node, path):
            assert isinstance(node, MappingNode)
            return self._reference(node, path)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return self._sequence(node, path)
        if path == STORE and may_hold_secrets(node.text):
            self._hide_address(node.text)
        return None if node.value is None else node

    def _hide_address(self, uri: str) -> None:
        """Hides a store's address that is written with its credentials."""
        self.result.secret[STORE] = uri
        conceal(uri)
        address, _, query = uri.partition("?")
        conceal(f"{address.partition('://')[2].rpartition('@')[0]}@")
        if "=" in query:
            conceal(query)

    def _mapping(self, node: MappingNode, path: Path_) -> MappingNode:
        entries = {}
        for key, entry in node.entries.items():
            value = self.value(entry.value, (*path, key))
            if value is not None:
                unchanged = value is entry.value
                entries[key] = entry if unchanged else KeyEntry(entry.key_place, value)
        return replace(node, entries=entries)

    def _sequence(self, node: SequenceNode, path: Path_) -> SequenceNode:
        items: list[Node] = []
        for item in node.items:
            value = self.value(item, (*path, len(items)))
            if value is not None:
                items.append(value)
        return replace(node, items=tuple(items))

    def _reference(self, node: MappingNode, path: Path_) -> Node | None:
        variable = self._variable(node, path)
        if variable is None:
            return None
        text = self.environ.get(variable, "")
        if not is_utf8(text):
            message = f"the environment variable {variable} has a value that is not UTF-8"
            self._malformed(path, node, "GR108", message, "set it to text in UTF-8")
            return None
        if text:
            return self._from_variable(node, path, variable, text)
        default = node.get("default")
        if default is not None and not is_null(default):
            return self.value(default, path)
        if "default" in node.entries:  # `default: null`: deliberately absent
            return None
        return self._without_value(node, path, variable)

    def _without_value(self, node: MappingNode, path: Path_, variable: str) -> Node | None:
        name = f"${{{variable}}}"
        if self.unset is Unset.OPEN:
            self.result.open.add(path)
            return ScalarNode(name, name, node.place, open_variable=variable)
        if self.unset is Unset.PLACEHOLDER and path in _NEEDED:
            return ScalarNode(name, name, node.place)
        self.result.unset[path] = variable
        return None

    def _from_variable(self, node: MappingNode, path: Path_, variable: str, text: str) -> Node:
        """The variable's text as a YAML scalar; relative paths start from the working directory."""
        try:
            value = resolve(text)
        except BadScalar:
            value = text
        place = replace(node.place, via=f"environment variable {variable}", base=Path())
        if is_secret(path, variable):
            self.result.secret[path] = text
            if path[:1] != ("tracking",):  # an address is shown, without its credentials
                conceal(text)
        return ScalarNode(text if value is None else value, text, place, from_outside=True)

    def _variable(self, node: MappingNode, path: Path_) -> str | None:
        """The variable that a reference names; None, with the reason recorded, if it is invalid."""
        name = node.get("env")
        for key, entry in node.entries.items():
            if key not in ("env", "default"):
                where = f" in the reference at {path_text(path)}" if path else ""
                hint = did_you_mean(key, ("env", "default"))
                marked = replace(entry.value, place=entry.key_place)
                self._malformed(path, marked, "GR101", f"unknown key {key!r}{where}", hint)
        if isinstance(name, ScalarNode) and isinstance(name.value, str) and _NAME.match(name.value):
            return name.value
        message = "'env' must be the name of an environment variable"
        self._malformed(path, name or node, "GR108", message, "use letters, digits and _ only")
        return None

    def _malformed(self, path: Path_, node: Node, code: str, message: str, hint: str) -> None:
        self.result.malformed.append((path, node, code, message, hint))


def join_paths(node: MappingNode) -> MappingNode:
    """`node` with absolute paths for model.path, model.adapter and every token file.

    Paths start from the folder of the file that declares them, those from `--set` and environment
    variables from the working directory. Hub ids and `package:` names are kept.
    """
    for path in (*_path_values(node), *_baselines(node)):
        value: Node | None = node
        for part in path:
            value = child(value, part)
        if isinstance(value, ScalarNode) and isinstance(value.value, str):
            always = path[0] == "steps"
            if not value.open_variable and (always or _is_file_path(value)):
                joined = replace(value, value=_absolute(value))
                node = put(node, path, joined)
    return node


def _path_values(node: MappingNode) -> Iterator[Path_]:
    yield ("model", "path")
    yield ("model", "adapter")
    steps = node.get("steps")
    for index in range(len(steps.items) if isinstance(steps, SequenceNode) else 0):
        for name in TOKEN_SOURCES:
            yield ("steps", index, name, "file")


def _baselines(node: MappingNode) -> Iterator[Path_]:
    """Gates whose baseline is written as a folder, not as a name or key."""
    gates = node.get("gates")
    for index, gate in enumerate(gates.items if isinstance(gates, SequenceNode) else ()):
        found = child(gate, "baseline")
        if isinstance(found, ScalarNode) and str(found.value).startswith((".", "/", "~")):
            yield ("gates", index, "baseline")


def _is_file_path(node: ScalarNode) -> bool:
    """Whether model.path or model.adapter is a path, not a hub id, a file of a package or
    `none`."""
    text = str(node.value)
    if text.startswith("package:") or text == "none":
        return False
    return text.startswith((".", "/", "~")) or text.endswith(".gguf") or _exists(node)


def _exists(node: ScalarNode) -> bool:
    try:
        return Path(_absolute(node)).exists()
    except (OSError, ValueError):  # too long, or contains NUL: no such file can exist
        return False


def _absolute(node: ScalarNode) -> str:
    text = os.path.expanduser(str(node.value))  # noqa: PTH111 - Path.expanduser raises
    return os.path.abspath(node.place.folder / text)  # noqa: PTH100 - keeps symlinks
