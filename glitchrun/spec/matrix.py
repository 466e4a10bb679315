"""Expands a document with a matrix into one document for each cell.

`matrix_axes.py` reads the axes; this module combines their values and makes the documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from glitchrun.spec.cell_names import cell_names
from glitchrun.spec.matrix_axes import Axes, Choice, canonical, place_of, read_axes, with_part
from glitchrun.spec.nodes import Document, MappingNode, Path_, path_text, plain, with_via
from glitchrun.spec.overrides import PathError, assign, resolved, split
from glitchrun.spec.problems import Problem, did_you_mean

NO_VARIANT = "(none)"
"""The value of an axis of variants in a cell of `include` that names none."""
_MAX_CELLS = 10_000
"""With more combinations, exclusions are not tried: the matrix is rejected at once."""


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
    """The cells of `base` in the order of the axes, the last of which varies fastest; then those
    of `include`.

    Args:
        base: The document with its environment variables resolved.
        node: The same document before that; the axis values are assigned in this one.
        overridden: Paths set by `--set`. Axes that they cover are dropped, because all of their
            cells would be the same.
    """
    node = node.without("matrix")
    problems: list[Problem] = []
    axes = read_axes(base, overridden, problems)
    factors = _factors(base, axes, problems)
    if problems:
        return [], problems
    chosen = _choose(base, axes, factors, problems)
    if not problems:
        chosen += _distinct(base, axes, factors, problems)
    if problems:
        return [], problems
    if not any(choice for _, choice in chosen):
        return [DraftCell("", {}, node)], []
    if len(chosen) > (limit := _limit(base)):
        return [], [_too_many(base, len(chosen), limit)]
    names = cell_names([{axis: plain(value) for axis, value in choice} for _, choice in chosen])
    cells = [
        _cell(base, node, axes, path, choice, name, problems)
        for (path, choice), name in zip(chosen, names, strict=True)
    ]
    return [cell for cell in cells if cell], problems


def _distinct(
    base: Document, axes: Axes, factors: list[list[Choice]], problems: list[Problem]
) -> Iterator[tuple[Path_, Choice]]:
    """The cells of `include`, each with a problem if it equals another cell."""
    by_pairs = {_pairs(choice) for _, choice in _combinations(axes, factors)}
    for path, choice in axes.included:
        if (pairs := _pairs(choice)) in by_pairs:
            message = f"{path_text(path)} is a cell of the matrix already"
            problems.append(base.problem("GR216", path, message, "remove it: a cell runs once"))
        by_pairs.add(pairs)
        yield path, choice


def axes_missing(base: Document) -> Iterator[Problem]:
    """Problems of a matrix that has `zip` or `exclude` but makes no cells."""
    matrix = base.data.get("matrix")
    for key, code in (("zip", "GR210"), ("exclude", "GR211")):
        if isinstance(matrix, dict) and _list(matrix.get(key)):
            message = f"matrix.{key} names axes, but the matrix has none"
            yield base.problem(code, ("matrix", key), message, "add the axes under matrix.axes")


def _factors(base: Document, axes: Axes, problems: list[Problem]) -> list[list[Choice]]:
    """The factors of the product: each axis by itself, or the axes of a zip group in lock step."""
    group_of: dict[str, list[str]] = {}
    for index, group in enumerate(_list(base.data["matrix"].get("zip"))[:100]):
        known = _zip_group(base, index, group, axes, group_of, problems)
        group_of |= dict.fromkeys(known, known)
    factors = []
    for name in axes.by_name:
        members = group_of.get(name, [name])
        if members[0] == name:  # the position of a group is that of its first axis
            rows = zip(*(axes.by_name[member].values for member in members), strict=False)
            factors.append([tuple(zip(members, row, strict=True)) for row in rows])
    return factors


def _zip_group(
    base: Document, index: int, group: Any, axes: Axes,
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
        elif name not in axes.by_name and name not in axes.dropped:
            hint = did_you_mean(name, axes.by_name)
            problems.append(base.problem("GR210", path, f"{name!r} is not an axis", hint))
    # In the order of the axes, whatever the order in the group.
    known = [name for name in axes.by_name if name in group]
    lengths = {name: len(axes.by_name[name].values) for name in known}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        message = f"the axes of a zip group have different numbers of values: {shown}"
        problems.append(base.problem("GR210", ("matrix", "zip", index), message))
    return known


def _choose(
    base: Document, axes: Axes, factors: list[list[Choice]], problems: list[Problem]
) -> list[tuple[Path_ | None, Choice]]:
    """The combinations that the exclusions leave."""
    total = prod(len(factor) for factor in factors)
    if total > _MAX_CELLS:  # no list of exclusions could reduce it enough
        problems.append(_too_many(base, total, _limit(base)))
        return []
    chosen = [_candidate(choice) for _, choice in _combinations(axes, factors)]
    for index, exclusion in enumerate(_list(base.data["matrix"].get("exclude"))[:100]):
        if isinstance(exclusion, dict):
            chosen = _exclude(base, index, exclusion, axes, chosen, problems)
    if not chosen and not problems and not axes.included:
        message = "every cell of the matrix is excluded"
        problems.append(base.problem("GR213", ("matrix", "exclude"), message))
    return [(None, candidate.choice) for candidate in chosen]


def _combinations(axes: Axes, factors: list[list[Choice]]) -> Iterator[tuple[Path_ | None, Choice]]:
    """Every combination of the factors; none if `include` alone makes the cells."""
    if not factors and axes.included and not axes.dropped:
        return
    for row in itertools.product(*factors):
        yield None, tuple(itertools.chain(*row))


def _limit(base: Document) -> int:
    limit = base.data["matrix"].get("max_runs", 16)
    return limit if isinstance(limit, int) else 1000


def _too_many(base: Document, total: int, limit: int) -> Problem:
    path = ("matrix", "max_runs") if "max_runs" in base.data["matrix"] else ("matrix",)
    count = f"{total:,}" if total < 10**12 else f"about 10^{len(str(total)) - 1}"
    message = f"the matrix has {count} cells, more than max_runs ({limit})"
    place = base.place(path) if len(path) > 1 else base.key_place(path)
    return base.problem("GR212", path, message, "raise max_runs, or exclude cells", place=place)


def _exclude(
    base: Document, index: int, exclusion: dict[str, Any], axes: Axes,
    chosen: list[_Candidate], problems: list[Problem],
) -> list[_Candidate]:  # fmt: skip
    path: Path_ = ("matrix", "exclude", index)
    known = {*axes.by_name, *axes.dropped}
    unknown = [name for name in exclusion if name not in known]
    for name in unknown:
        place = base.key_place((*path, name))
        hint = did_you_mean(name, axes.by_name)
        problems.append(
            base.problem("GR211", (*path, name), f"{name!r} is not an axis", hint, place=place)
        )
    if unknown or axes.dropped & set(exclusion):
        return chosen
    unwanted = {(name, canonical(value)) for name, value in exclusion.items()}
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
    return _Candidate(choice, _pairs(choice))


def _pairs(choice: Choice) -> frozenset[tuple[str, str]]:
    return frozenset((axis, canonical(plain(node))) for axis, node in choice)


def _cell(
    base: Document, node: MappingNode, axes: Axes, path: Path_ | None, choice: Choice, label: str,
    problems: list[Problem],
) -> DraftCell | None:  # fmt: skip
    """The cell of a choice. Variants are merged first, so that the values of axes win over them."""
    parts = [(axis, axes.part(axis, value)) for axis, value in choice]
    for axis, part in parts:
        if part is not None:
            name = next(plain(value) for named, value in choice if named == axis)
            merged = with_via(part, f"matrix variant {axis}={name}")
            assert isinstance(merged, MappingNode)
            node = with_part(node, merged)
    for (axis, value), (_, part) in zip(choice, parts, strict=True):
        if part is not None:
            continue
        via = f"matrix axis {axis}" if path is None else f"{path_text(path)} {axis}"
        place = replace(place_of(base, axes, axis, path), via=via)
        at: Path_ = ("matrix", "axes", axis) if path is None else (*path, axis)
        try:
            # Step ids are taken from `base`: an id may come from an environment variable.
            keys = resolved(base.node, split(axis))
            node = assign(node, keys, with_via(value, via), place)
        except PathError as error:
            if keys[0] == "steps" and any(at[0] == "steps" and at[-1] == "id" for at in base.open):
                continue  # it may be an id that is not known yet
            problems.append(base.problem(error.code, at, str(error), error.hint, place=place))
            return None
    without = {name: NO_VARIANT for name, axis in axes.by_name.items() if axis.parts is not None}
    return DraftCell(label, without | {axis: plain(value) for axis, value in choice}, node)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
