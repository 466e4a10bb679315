"""Token ids that a spec contains, with their paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.spec.nodes import Path_, path_text
from glitchrun.spec.schema import parameters
from glitchrun.spec.types import Spec

BY_ID = re.compile(r"<#([0-9]{1,9})>")
"""A token named by its id in a text, such as `<#31415>`. More digits are plain text: no vocabulary
is that large, and chat services write channels like that."""


def token_ids(spec: Spec) -> Iterator[tuple[str, int]]:
    """Yields the path of each id, such as `steps[0].tokens.ids[2]`, and the id.

    Ids are integers that the schema marks with `x-token-id`, and those named (`<#31415>`) in texts
    that it marks with `x-names-tokens`.
    """
    for index, step in enumerate(spec.steps):
        schemas = parameters(step.strategy)
        for name, value in step.params.items():
            for path, token_id in _marked(schemas[name], value, ("steps", index, name)):
                yield path_text(path), token_id


def _marked(schema: Mapping[str, Any], value: Any, path: Path_) -> Iterator[tuple[Path_, int]]:
    if isinstance(value, int):
        if "x-token-id" in schema:
            yield path, value
        return
    if isinstance(value, str):
        if "x-names-tokens" in schema:
            yield from ((path, int(found)) for found in BY_ID.findall(value))
        return
    for part in (schema, schema.get("then", {})):
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from _marked(part.get("properties", {}).get(name, {}), inner, (*path, name))
        elif isinstance(value, list | tuple):
            for place, item in enumerate(value):
                yield from _marked(part.get("items", {}), item, (*path, place))
