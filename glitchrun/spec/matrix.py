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


@dataclass(frozen=True, slots=True)
class Axis:
    name: str
    """The path as written: `model.quantization`."""
    values: tuple[Node, ...]


Choice = tuple[tuple[str, Node], ...]
"""Axis and value pairs that go together."""


@dataclass(frozen=True, slots=True)
class DraftCell:
    """A cell before its document is resolved."""

    name: str
    """Readable, unique in the matrix; empty where there is none."""
    assignments: Mapping[str, Any]
    node: MappingNode


def expand(
    base: Document, node: MappingNode, overridden: Sequence[tuple[str, ...]]
) -> tuple[list[DraftCell], list[Problem]]:
    """The cells of `base`, in the order of the axes as written (the last varies fastest). `node` is
    the same document before its environment values are put in; axis values go into that. Axes that
    `--set` overrides are dropped: all their cells would be one."""
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
            continue  # the schema says so
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
    """Axes that set the same value, or one within another's: which of them wins is the order's to
    say."""
    paths = {name: resolved(base.node, split(name)) for name in names}
    for first, second in itertools.combinations(names, 2):
        outer, inner = sorted((first, second), key=lambda name: len(paths[name]))
        if paths[inner][: len(paths[outer])] == paths[outer]:
            what = "is the same as" if paths[inner] == paths[outer] else "lies within"
            message = f"the axis {inner!r} {what} the axis {outer!r}"
            hint = "name axes for the single values, in one zip group where they go together"
            path: Path_ = ("matrix", "axes", second)
            yield base.problem("GR215", path, message, hint, place=base.key_place(path))


def _varied(name: str) -> tuple[str, ...]:
    """The parts of an axis' path; raises PathError where the cells cannot differ in it."""
    parts = split(name)
    if parts[0] == "matrix":
        raise PathError("the matrix cannot vary itself", code="GR208")
    if parts[0] == "tracking" or parts in (("metadata",), ("metadata", "name")):
        hint = "write a file for each, and let both extend one fragment"
        raise PathError(
            f"all cells belong to one MLflow experiment; {name!r} is its", hint, "GR208"
        )
    return parts


def _repeated(base: Document, path: Path_, values: SequenceNode) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, value in enumerate(values.items):
        text = _canonical(plain(value))
        if text in seen:
            message = f"{path_text(path)} holds the same value twice"
            yield base.problem("GR107", (*path, index), message, "each cell is run once")
        seen.add(text)


def axes_missing(base: Document) -> Iterator[Problem]:
    """The problems of a matrix without axes that speaks of some."""
    matrix = base.data.get("matrix")
    for key, code in (("zip", "GR210"), ("exclude", "GR211")):
        if isinstance(matrix, dict) and _list(matrix.get(key)):
            message = f"matrix.{key} speaks of axes, but the matrix has none"
            yield base.problem(code, ("matrix", key), message, "name them under matrix.axes")


def _factors(
    base: Document, axes: dict[str, Axis], dropped: set[str], problems: list[Problem]
) -> list[list[Choice]]:
    """What is crossed: each axis by itself, or the axes of a zip group in lock step."""
    group_of: dict[str, list[str]] = {}
    for index, group in enumerate(_list(base.data["matrix"].get("zip"))[:100]):
        known = _zip_group(base, index, group, axes, dropped, group_of, problems)
        group_of |= dict.fromkeys(known, known)
    factors = []
    for name in axes:
        members = group_of.get(name, [name])
        if members[0] == name:  # a group stands where its first axis does
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
            continue  # the schema says so
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
        message = f"axes that go in lock step differ in length: {shown}"
        problems.append(base.problem("GR210", ("matrix", "zip", index), message))
    return known


def _choose(
    base: Document, axes: dict[str, Axis], dropped: set[str], factors: list[list[Choice]]
) -> tuple[list[Choice], list[Problem]]:
    """The combinations that are left after the exclusions, if they are not too many."""
    limit = base.data["matrix"].get("max_runs", 16)
    limit = limit if isinstance(limit, int) else 1000
    total = prod(len(factor) for factor in factors)
    if total > _MAX_CELLS:  # not even looked at; no list of exclusions saves this
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
        message = "this exclusion matches no cell of the matrix"
        problems.append(base.problem("GR211", path, message, "compare its values with the axes'"))
    return kept


@dataclass(frozen=True, slots=True)
class _Candidate:
    choice: Choice
    pairs: frozenset[tuple[str, str]]
    """Axis and value as canonical JSON, which is how values are compared: true is not 1."""


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
            # Ids of steps are those of the whole document: one may come from the environment.
            parts = resolved(base.node, split(axis))
            node = assign(node, parts, with_via(value, via), place)
        except PathError as error:
            if parts[0] == "steps" and any(at[0] == "steps" and at[-1] == "id" for at in base.open):
                continue  # an id that is not known yet may be the one
            problems.append(base.problem(error.code, path, str(error), error.hint, place=place))
            return None
    return DraftCell(label, {axis: plain(value) for axis, value in choice}, node)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_MAX_VALUE = 60


def cell_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Readable names, unique among the cells."""
    axes = list(cells[0])
    last = {axis: axis.rsplit(".", 1)[-1] for axis in axes}
    short = {axis: name if _once(name, last.values()) else axis for axis, name in last.items()}
    names = [", ".join(f"{short[a]}={_show(v)}" for a, v in cell.items()) for cell in cells]
    repeated = {name for name in names if not _once(name, names)}
    if repeated:  # cut or shortened to the same text
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
