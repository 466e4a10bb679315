"""Relative paths in a spec, joined to the folder of the file that declares them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from glitchrun.spec.nodes import MappingNode, Node, Path_, ScalarNode, SequenceNode, child, put
from glitchrun.spec.schema import TOKEN_SOURCES


def join_paths(node: MappingNode) -> MappingNode:
    """`node` with model.path, model.adapter and every file of tokens absolute. Values from `--set`
    and environment variables start from the working directory; hub ids and `package:` names
    stand."""
    for path in _path_values(node):
        value: Node | None = node
        for part in path:
            value = child(value, part)
        if isinstance(value, ScalarNode) and isinstance(value.value, str):
            is_model = path[0] == "model"
            if not value.open_variable and (not is_model or _is_file_path(value)):
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


def _is_file_path(node: ScalarNode) -> bool:
    """Whether model.path or model.adapter means a file here rather than a hub id, a package's file,
    or no adapter."""
    text = str(node.value)
    if text.startswith("package:") or text == "none":
        return False
    return text.startswith((".", "/", "~")) or text.endswith(".gguf") or _exists(node)


def _exists(node: ScalarNode) -> bool:
    try:
        return Path(_absolute(node)).exists()
    except (OSError, ValueError):  # too long, or a NUL: no file has such a name
        return False


def _absolute(node: ScalarNode) -> str:
    text = os.path.expanduser(str(node.value))  # noqa: PTH111 - Path.expanduser raises
    return os.path.abspath(node.place.folder / text)  # noqa: PTH100 - keeps symlinks
