"""Expands a document with a matrix into one document for each cell."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import PurePath
from typing import Any

from glitchrun.spec.nodes import (
    Document,
    MappingNode,
    Node,
    Path_,
    SequenceNode,
    path_text,
    plain,
    with_via,
)
from glitchrun.spec.overrides import PathError, assign, resolved, split
from glitchrun.spec.problems import Problem, did_you_mean

_MAX_CELLS = 10_000
"""With more combinations, exclusions are not tried: the matrix is rejected at once."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that varies, and its values."""

    name: str
    """The path as written: `model.quantization`."""
    values: tuple[Node, ...]


Choice = tuple[tuple[str, Node], ...]
"""Pairs of axis and value that apply together."""


@dataclass(frozen=True, slots=True)
class DraftCell:
    """A cell whose document is not resolved yet."""

    name: str
    """Readable and unique in the matrix; empty without a matrix."""
    assignments: Mapping[str, Any]
    node: MappingNode


def expand(
    base: Document, node: MappingNode, overridden: Sequence[tuple[str, ...]]
) -> tuple[list[DraftCell], list[Problem]]:
    """The cells of `base` in the order of the axes as written; the last axis varies fastest.

    Args:
        base: The document with its environment variables resolved.
        node: The same document before that; the axis values are assigned in this one.
        overridden: Paths set by `--set`. Axes that they cover are dropped, because all of their
            cells would be the same.
    """
    node = node.without("matrix")
    problems: list[Problem] = []
    axes, dropped = _axes(base, overridden, problems)
    factors = _factors(base, axes, dropped, problems)
    if problems:
        return [], problems
    if not axes:
        return [DraftCell("", {}, node)], []
    chosen, problems = _choose(base, axes, dropped, factors)
    if problems:
        return [], problems
    names = cell_names([{axis: plain(value) for axis, value in choice} for choice in chosen])
    cells = [
        _cell(base, node, choice, name, problems)
        for choice, name in zip(chosen, names, strict=True)
    ]
    return [cell for cell in cells if cell], problems


def _axes(
    base: Document, overridden: Sequence[tuple[str, ...]], problems: list[Problem]
) -> tuple[dict[str, Axis], set[str]]:
    holder = base.find(("matrix", "axes"))
    assert isinstance(holder, MappingNode)
    if not holder.entries:
        message = "the matrix has no axes, so there would be no runs"
        hint = "name an axis, or remove `matrix`"
        problems.append(base.problem("GR209", ("matrix", "axes"), message, hint))
    axes: dict[str, Axis] = {}
    dropped: set[str] = set()
    for name, entry in holder.entries.items():
        path: Path_ = ("matrix", "axes", name)
        if not isinstance(entry.value, SequenceNode):
            continue  # the schema reports it
        if not entry.value.items:
            message = f"the axis {name!r} has no values, so there would be no runs"
            problems.append(base.problem("GR209", path, message, "give it values, or remove it"))
        problems += _repeated(base, path, entry.value)
        try:
            parts = _varied(name)
        except PathError as error:
            place = entry.key_place
            problems.append(base.problem(error.code, path, str(error), error.hint, place=place))
            continue
        if any(parts[: len(prefix)] == prefix for prefix in overridden):
            dropped.add(name)
        else:
            axes[name] = Axis(name, entry.value.items)
    problems += _overlapping(base, list(axes))
    return axes, dropped


def _overlapping(base: Document, names: Sequence[str]) -> Iterator[Problem]:
    """Problems with axes that set the same value, or one a part of the other's value: the result
    would depend on their order."""
    paths = {name: resolved(base.node, split(name)) for name in names}
    for first, second in itertools.combinations(names, 2):
        outer, inner = sorted((first, second), key=lambda name: len(paths[name]))
        if paths[inner][: len(paths[outer])] == paths[outer]:
            what = "sets the same value as" if paths[inner] == paths[outer] else "sets a part of"
            message = f"the axis {inner!r} {what} the axis {outer!r}"
            hint = "use one axis for each single value, and a zip group for those that go together"
            path: Path_ = ("matrix", "axes", second)
            yield base.problem("GR215", path, message, hint, place=base.key_place(path))


def _varied(name: str) -> tuple[str, ...]:
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
        text = _canonical(plain(value))
        if text in seen:
            message = f"{path_text(path)} contains the same value twice"
            yield base.problem("GR107", (*path, index), message, "remove one: a cell runs once")
        seen.add(text)


def axes_missing(base: Document) -> Iterator[Problem]:
    """Problems of a matrix that has `zip` or `exclude` but no axes."""
    matrix = base.data.get("matrix")
    for key, code in (("zip", "GR210"), ("exclude", "GR211")):
        if isinstance(matrix, dict) and _list(matrix.get(key)):
            message = f"matrix.{key} names axes, but the matrix has none"
            yield base.problem(code, ("matrix", key), message, "add the axes under matrix.axes")


def _factors(
    base: Document, axes: dict[str, Axis], dropped: set[str], problems: list[Problem]
) -> list[list[Choice]]:
    """The factors of the product: each axis by itself, or the axes of a zip group in lock step."""
    group_of: dict[str, list[str]] = {}
    for index, group in enumerate(_list(base.data["matrix"].get("zip"))[:100]):
        known = _zip_group(base, index, group, axes, dropped, group_of, problems)
        group_of |= dict.fromkeys(known, known)
    factors = []
    for name in axes:
        members = group_of.get(name, [name])
        if members[0] == name:  # the position of a group is that of its first axis
            rows = zip(*(axes[member].values for member in members), strict=False)
            factors.append([tuple(zip(members, row, strict=True)) for row in rows])
    return factors


def _zip_group(
    base: Document, index: int, group: Any, axes: dict[str, Axis], dropped: set[str],
    taken: Mapping[str, list[str]], problems: list[Problem],
) -> list[str]:  # fmt: skip
    if not isinstance(group, list):
        return []
    for position, name in enumerate(group):
        path: Path_ = ("matrix", "zip", index, position)
        if not isinstance(name, str):
            continue  # the schema reports it
        if name in taken:
            problems.append(base.problem("GR210", path, f"{name!r} is in two zip groups"))
        elif name not in axes and name not in dropped:
            hint = did_you_mean(name, axes)
            problems.append(base.problem("GR210", path, f"{name!r} is not an axis", hint))
    # In the order of the axes, whatever the order in the group.
    known = [name for name in axes if name in group]
    lengths = {name: len(axes[name].values) for name in known}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        message = f"the axes of a zip group have different numbers of values: {shown}"
        problems.append(base.problem("GR210", ("matrix", "zip", index), message))
    return known


def _choose(
    base: Document, axes: dict[str, Axis], dropped: set[str], factors: list[list[Choice]]
) -> tuple[list[Choice], list[Problem]]:
    """The combinations that the exclusions leave, and the problems found."""
    limit = base.data["matrix"].get("max_runs", 16)
    limit = limit if isinstance(limit, int) else 1000
    total = prod(len(factor) for factor in factors)
    if total > _MAX_CELLS:  # no list of exclusions could reduce it enough
        return [], [_too_many(base, total, limit)]
    chosen = [_candidate(tuple(itertools.chain(*row))) for row in itertools.product(*factors)]
    problems: list[Problem] = []
    for index, exclusion in enumerate(_list(base.data["matrix"].get("exclude"))[:100]):
        if isinstance(exclusion, dict):
            chosen = _exclude(base, index, exclusion, axes, dropped, chosen, problems)
    if not chosen and not problems:
        message = "every cell of the matrix is excluded"
        problems.append(base.problem("GR213", ("matrix", "exclude"), message))
    elif len(chosen) > limit:
        problems.append(_too_many(base, len(chosen), limit))
    return [candidate.choice for candidate in chosen], problems


def _too_many(base: Document, total: int, limit: int) -> Problem:
    path = ("matrix", "max_runs") if "max_runs" in base.data["matrix"] else ("matrix",)
    count = f"{total:,}" if total < 10**12 else f"about 10^{len(str(total)) - 1}"
    message = f"the matrix has {count} cells, more than max_runs ({limit})"
    place = base.place(path) if len(path) > 1 else base.key_place(path)
    return base.problem("GR212", path, message, "raise max_runs, or exclude cells", place=place)


def _exclude(
    base: Document, index: int, exclusion: dict[str, Any], axes: dict[str, Axis],
    dropped: set[str], chosen: list[_Candidate], problems: list[Problem],
) -> list[_Candidate]:  # fmt: skip
    path: Path_ = ("matrix", "exclude", index)
    unknown = [name for name in exclusion if name not in axes and name not in dropped]
    for name in unknown:
        place = base.key_place((*path, name))
        hint = did_you_mean(name, axes)
        problems.append(
            base.problem("GR211", (*path, name), f"{name!r} is not an axis", hint, place=place)
        )
    if unknown or dropped & set(exclusion):
        return chosen
    unwanted = {(name, _canonical(value)) for name, value in exclusion.items()}
    kept = [candidate for candidate in chosen if not unwanted <= candidate.pairs]
    if len(kept) == len(chosen):
        message = "this exclusion matches no cell"
        problems.append(base.problem("GR211", path, message, "compare its values with the axes'"))
    return kept


@dataclass(frozen=True, slots=True)
class _Candidate:
    choice: Choice
    pairs: frozenset[tuple[str, str]]
    """Axis and value as canonical JSON: compared like this, true is not 1."""


def _candidate(choice: Choice) -> _Candidate:
    pairs = frozenset((axis, _canonical(plain(node))) for axis, node in choice)
    return _Candidate(choice, pairs)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _cell(
    base: Document, node: MappingNode, choice: Choice, label: str, problems: list[Problem]
) -> DraftCell | None:
    for axis, value in choice:
        path: Path_ = ("matrix", "axes", axis)
        via = f"matrix axis {axis}"
        place = replace(base.key_place(path), via=via)
        try:
            # Step ids are taken from `base`: an id may come from an environment variable.
            parts = resolved(base.node, split(axis))
            node = assign(node, parts, with_via(value, via), place)
        except PathError as error:
            if parts[0] == "steps" and any(at[0] == "steps" and at[-1] == "id" for at in base.open):
                continue  # it may be an id that is not known yet
            problems.append(base.problem(error.code, path, str(error), error.hint, place=place))
            return None
    return DraftCell(label, {axis: plain(value) for axis, value in choice}, node)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_MAX_VALUE = 60


def cell_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Readable and unique names for the cells: `quantization=int4, seed=2`."""
    axes = list(cells[0])
    last = {axis: axis.rsplit(".", 1)[-1] for axis in axes}
    short = {axis: name if _once(name, last.values()) else axis for axis, name in last.items()}
    names = [", ".join(f"{short[a]}={_show(v)}" for a, v in cell.items()) for cell in cells]
    repeated = {name for name in names if not _once(name, names)}
    if repeated:  # shortened to the same text
        names = [
            f"{name} #{number}" if name in repeated else name
            for number, name in enumerate(names, start=1)
        ]
    return names


def _once(name: str, names: Iterable[str]) -> bool:
    return list(names).count(name) == 1


def _show(value: Any) -> str:
    if isinstance(value, str):
        text = PurePath(value).name if "/" in value else value
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"
