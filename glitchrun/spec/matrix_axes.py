"""The axes of a matrix, and the cells that it adds by name, from its four keys:

axes       values by the path of the key that they set
variants   named parts of a spec, each merged into the document: one for each model
seeds      how many seeds: short for an axis over `seed`
include    further cells
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.spec.composition import merge
from glitchrun.spec.nodes import (
    Document,
    MappingNode,
    Node,
    Path_,
    Place,
    ScalarNode,
    SequenceNode,
    path_text,
    plain,
)
from glitchrun.spec.overrides import LOCKED, PathError, resolved, split
from glitchrun.spec.problems import Problem, did_you_mean

SEED = "seed"
"""The axis that `seeds` stands for."""
_SOURCES = ("axes", "variants", "seeds", "include")
_MAX_INCLUDED = 1000


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that varies, and its values."""

    name: str
    """The path as written, `model.quantization`; or the name of the variants."""
    values: tuple[Node, ...]
    parts: Mapping[str, MappingNode] | None = None
    """For variants, the part of a spec that each value stands for; `values` are then its names."""


Choice = tuple[tuple[str, Node], ...]
"""Pairs of axis and value that apply together."""


@dataclass(frozen=True)
class Axes:
    """The axes of a matrix, and the cells of `include`."""

    by_name: dict[str, Axis]
    dropped: set[str]
    """Axes that `--set` overrides."""
    included: list[tuple[Path_, Choice]]
    """The place of each further cell, and what it sets."""

    def part(self, name: str, value: Node) -> MappingNode | None:
        """The part of a spec that a variant's name stands for; None for a value at a path."""
        axis = self.by_name.get(name)
        if axis is None or axis.parts is None:
            return None
        return axis.parts.get(str(plain(value)))


def has_cells(matrix: Node | None) -> bool:
    """Whether a `matrix` has a key that makes cells."""
    found = plain(matrix) if isinstance(matrix, MappingNode) else {}
    return any(found.get(key) is not None for key in _SOURCES)


def read_axes(
    base: Document, overridden: Sequence[tuple[str, ...]], problems: list[Problem]
) -> Axes:
    """The axes in the order in which their values vary: variants first, then axes and seeds.

    Args:
        base: The document with its environment variables resolved.
        overridden: Paths set by `--set`. Axes that they cover are dropped, because all of their
            cells would be the same.
        problems: Receives the problems found.
    """
    result = Axes({}, set(), [])
    _add_variants(base, result, problems)
    _add_paths(base, overridden, result, problems)
    _add_seeds(base, overridden, result, problems)
    if not any(_given(base, key) for key in _SOURCES):
        message = "the matrix has no axes, so there would be no runs"
        hint = "name an axis, or remove `matrix`"
        problems.append(base.problem("GR209", ("matrix", "axes"), message, hint))
    problems += _overlapping(base, result)
    if not problems:
        result.included.extend(_included(base, overridden, result, problems))
    return result


def _given(base: Document, key: str) -> Any:
    return (base.data.get("matrix") or {}).get(key)


def _add_variants(base: Document, result: Axes, problems: list[Problem]) -> None:
    holder = base.find(("matrix", "variants"))
    for name, entry in holder.entries.items() if isinstance(holder, MappingNode) else ():
        path: Path_ = ("matrix", "variants", name)
        if not isinstance(entry.value, MappingNode):
            continue  # the schema reports it
        if not entry.value.entries:
            message = f"the axis {name!r} has no variants, so there would be no runs"
            problems.append(base.problem("GR209", path, message, "add one, or remove the axis"))
        parts = {
            key: part.value
            for key, part in entry.value.entries.items()
            if isinstance(part.value, MappingNode)
        }
        for key, part in parts.items():
            problems += _locked_keys(base, (*path, key), part)
        names = tuple(
            ScalarNode(key, key, part.key_place) for key, part in entry.value.entries.items()
        )
        result.by_name[name] = Axis(name, names, parts)


def _locked_keys(base: Document, path: Path_, part: MappingNode) -> Iterator[Problem]:
    """Problems with keys that a variant may not set."""
    for key in part.entries:
        if key in LOCKED:
            message = f"{key!r} can only be set in the file itself"
        elif key in ("matrix", "tracking", "metadata"):
            message = f"a variant cannot set {key!r}: all cells belong to the same experiment"
        else:
            continue
        place = base.key_place((*path, key))
        yield base.problem("GR208", (*path, key), message, place=place)


def _add_seeds(
    base: Document, overridden: Sequence[tuple[str, ...]], result: Axes, problems: list[Problem]
) -> None:
    count = _given(base, "seeds")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= 1000:
        return  # absent, or the schema reports it
    if (SEED,) in overridden:
        result.dropped.add(SEED)
        return
    if SEED in result.by_name:
        path = ("matrix", "axes", SEED)
        problems.append(_given_twice(base, path, "seeds"))
        return
    first = base.data.get("seed")
    first = first if isinstance(first, int) else 0
    place = base.place(("matrix", "seeds"))
    seeds = range(first, first + count)
    result.by_name[SEED] = Axis(SEED, tuple(ScalarNode(one, str(one), place) for one in seeds))


def _add_paths(
    base: Document, overridden: Sequence[tuple[str, ...]], result: Axes, problems: list[Problem]
) -> None:
    holder = base.find(("matrix", "axes"))
    for name, entry in holder.entries.items() if isinstance(holder, MappingNode) else ():
        path: Path_ = ("matrix", "axes", name)
        if not isinstance(entry.value, SequenceNode):
            continue  # the schema reports it
        if not entry.value.items:
            message = f"the axis {name!r} has no values, so there would be no runs"
            problems.append(base.problem("GR209", path, message, "give it values, or remove it"))
        problems += _repeated(base, path, entry.value)
        try:
            parts = varied(name)
        except PathError as error:
            place = entry.key_place
            problems.append(base.problem(error.code, path, str(error), error.hint, place=place))
            continue
        if any(parts[: len(prefix)] == prefix for prefix in overridden):
            result.dropped.add(name)
        elif name in result.by_name:
            problems.append(_given_twice(base, path, "variants"))
        else:
            result.by_name[name] = Axis(name, entry.value.items)


def _given_twice(base: Document, path: Path_, kind: str) -> Problem:
    message = f"the axis {path[-1]!r} is given by matrix.{kind} too"
    hint = "keep one of them, or rename the variants"
    return base.problem("GR215", path, message, hint, place=base.key_place(path))


def _overlapping(base: Document, axes: Axes) -> Iterator[Problem]:
    """Problems with axes that set the same value, or one a part of the other's value: the result
    would depend on their order."""
    names = [axis.name for axis in axes.by_name.values() if axis.parts is None]
    paths = {name: resolved(base.node, split(name)) for name in names}
    for first, second in itertools.combinations(names, 2):
        outer, inner = sorted((first, second), key=lambda name: len(paths[name]))
        if paths[inner][: len(paths[outer])] == paths[outer]:
            what = "sets the same value as" if paths[inner] == paths[outer] else "sets a part of"
            message = f"the axis {inner!r} {what} the axis {outer!r}"
            hint = "use one axis for each single value, and a zip group for those that go together"
            path: Path_ = ("matrix", "axes", second)
            yield base.problem("GR215", path, message, hint, place=base.key_place(path))


def varied(name: str) -> tuple[str, ...]:
    """The parts of an axis' path.

    Raises:
        PathError: the text is not a path, or cells may not differ in this value.
    """
    parts = split(name)
    if parts[0] == "matrix":
        raise PathError("an axis cannot change the matrix itself", code="GR208")
    if parts[0] == "tracking" or parts in (("metadata",), ("metadata", "name")):
        hint = "write one file for each value, and let them extend a common fragment"
        message = f"{name!r} cannot vary: all cells belong to the same MLflow experiment"
        raise PathError(message, hint, "GR208")
    return parts


def _repeated(base: Document, path: Path_, values: SequenceNode) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, value in enumerate(values.items):
        text = canonical(plain(value))
        if text in seen:
            message = f"{path_text(path)} contains the same value twice"
            yield base.problem("GR107", (*path, index), message, "remove one: a cell runs once")
        seen.add(text)


def _included(
    base: Document, overridden: Sequence[tuple[str, ...]], axes: Axes, problems: list[Problem]
) -> Iterator[tuple[Path_, Choice]]:
    """The cells of `include`. What `--set` overrides is left out."""
    holder = base.find(("matrix", "include"))
    items = holder.items[:_MAX_INCLUDED] if isinstance(holder, SequenceNode) else ()
    for index, item in enumerate(items):
        path: Path_ = ("matrix", "include", index)
        pairs: list[tuple[str, Node]] = []
        for name, entry in item.entries.items() if isinstance(item, MappingNode) else ():
            place = entry.key_place
            try:
                kept = _included_value(base, (*path, name), entry.value, overridden, axes)
            except PathError as error:
                problem = base.problem(
                    error.code, (*path, name), str(error), error.hint, place=place
                )
                problems.append(problem)
                continue
            if kept is not None:
                pairs.append((name, kept))
        if pairs:
            yield path, tuple(pairs)


def _included_value(
    base: Document, path: Path_, value: Node, overridden: Sequence[tuple[str, ...]], axes: Axes
) -> Node | None:
    """The value that a cell of `include` gives to a key; None if `--set` overrides it.

    Raises:
        PathError: the key is no path, cells may not differ in it, or it names no variant.
    """
    name = str(path[-1])
    axis = axes.by_name.get(name)
    if axis is not None and axis.parts is not None:
        if str(plain(value)) not in axis.parts:
            hint = did_you_mean(str(plain(value)), list(axis.parts))
            raise PathError(f"{plain(value)!r} is not a variant of {name!r}", hint, "GR216")
        return value
    parts = varied(name)
    return None if any(parts[: len(prefix)] == prefix for prefix in overridden) else value


def canonical(value: Any) -> str:
    """`value` as JSON, by which values are compared: true is not 1."""
    return json.dumps(value, sort_keys=True)


def with_part(node: MappingNode, part: MappingNode) -> MappingNode:
    """The document with a variant merged over it."""
    merged = merge(node, part)
    assert isinstance(merged, MappingNode)
    return merged


def place_of(base: Document, axes: Axes, name: str, path: Path_ | None) -> Place:
    """Where a cell's value comes from: the item of `include` at `path`, or the axis."""
    if path is not None:
        return base.key_place((*path, name))
    axis = axes.by_name[name]
    if axis.parts is not None:
        return base.key_place(("matrix", "variants", name))
    if name == SEED and _given(base, "seeds"):
        return base.key_place(("matrix", "seeds"))
    return base.key_place(("matrix", "axes", name))
