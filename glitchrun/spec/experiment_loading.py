"""Loads spec files: an Experiment, or every problem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glitchrun.spec.composition import Composition, compose
from glitchrun.spec.matrix import DraftCell, axes_missing, expand
from glitchrun.spec.matrix_axes import has_cells
from glitchrun.spec.nodes import (
    Document,
    MappingNode,
    ScalarNode,
    path_text,
    put,
    walk,
)
from glitchrun.spec.overrides import Override, apply_overrides, read_overrides, split
from glitchrun.spec.probes import Probe, defined_probe
from glitchrun.spec.problems import InvalidSpec, Problem, sorted_problems
from glitchrun.spec.resolution import STORE, Resolution, Unset, join_paths, resolve_environment
from glitchrun.spec.schema import with_defaults
from glitchrun.spec.schema_errors import schema_problems, texts_expected
from glitchrun.spec.semantics import semantic_problems
from glitchrun.spec.spec_files import find_files
from glitchrun.spec.types import (
    Cell,
    Execution,
    Experiment,
    Gate,
    InlineTemplate,
    ModelSpec,
    Origin,
    Spec,
    Step,
    Thresholds,
    TokenScope,
    Tracking,
)
from glitchrun.terminal import REDACTED

MAX_PROBLEMS = 100
"""Largest number of problems reported for one file."""


@dataclass(frozen=True)
class _Inputs:
    environ: Mapping[str, str]
    unset: Unset
    sets: Sequence[str] = ()


@dataclass
class _Loaded:
    """A file while it is loaded: the documents of its cells, and the problems found so far."""

    composition: Composition
    inputs: _Inputs
    cells: list[tuple[DraftCell, Document, Resolution]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def load_experiment(
    path: Path | str,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    require_env: bool = False,
) -> Experiment:
    """Loads the experiment in the file at `path`.

    Args:
        path: The spec file; fragments that it extends are read too.
        sets: Values of `--set`, each `KEY=VALUE`.
        environ: Environment variables; None for those of this process.
        require_env: Whether a needed value whose variable is neither set nor has a default is an
            error. Otherwise model.path becomes `${NAME}`.

    Raises:
        InvalidSpec: the spec has problems; the error carries all of them.
        UsageError: a `--set` is not of the form `KEY=VALUE`.
    """
    unset = Unset.ABSENT if require_env else Unset.PLACEHOLDER
    inputs = _Inputs(os.environ if environ is None else environ, unset, sets)
    loaded = _load(path, inputs)
    if not loaded.problems and _is_fragment(loaded.composition.node):
        loaded.problems.append(_fragment_given(loaded.composition))
    if loaded.problems:
        raise InvalidSpec(_capped(loaded.problems))
    source = loaded.composition.source
    assert source is not None  # else there is a problem
    specs = [build_spec(document) for _, document, _ in loaded.cells]
    drafts = [draft for draft, _, _ in loaded.cells]
    columns = dict.fromkeys(axis for draft in drafts for axis in draft.assignments)
    cells = [
        Cell(draft.name or spec.name, _assignments(draft, columns, spec), spec)
        for draft, spec in zip(drafts, specs, strict=True)
    ]
    text = source.text
    for _, document, _ in loaded.cells:
        if address := document.secret.get(STORE):
            text = text.replace(address, REDACTED)
    return Experiment(Path(path), text, specs[0].name, tuple(_by_model(cells)))


def _assignments(draft: DraftCell, columns: Iterable[str], spec: Spec) -> dict[str, Any]:
    """The value of every axis of the matrix in a cell; where the cell sets none, that of the spec,
    so that all cells can be sorted and grouped by the same keys."""
    own = draft.assignments
    return {axis: own[axis] if axis in own else _value_of(spec, axis) for axis in columns}


def _value_of(spec: Spec, axis: str) -> Any:
    """The value of the resolved spec at the path of an axis; None if it has none there."""
    parts: Sequence[str] = split(axis)
    if parts[0] == "steps" and len(parts) > 1 and not parts[1].isdecimal():
        ids = [step.id for step in spec.steps]
        place = str(ids.index(parts[1])) if parts[1] in ids else parts[1]
        parts = ("steps", place, *parts[2:])
    value: Any = spec.document
    for part in parts:
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            return None
    return value


def _by_model(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The cells in the order of their models' first cells, so that each model is loaded once."""
    groups: list[tuple[ModelSpec, list[Cell]]] = []
    for cell in cells:
        known = next((group for model, group in groups if model == cell.spec.model), None)
        if known is None:
            groups.append((cell.spec.model, known := []))
        known.append(cell)
    return (cell for _, group in groups for cell in group)


def check_files(
    paths: Iterable[Path | str], environ: Mapping[str, str] | None = None
) -> tuple[list[Problem], int]:
    """Every problem of the files and folders at `paths`, sorted, and the number of files.

    Raises:
        UsageError: a folder contains no spec file.
    """
    files = find_files(paths).files
    inputs = _Inputs(os.environ if environ is None else environ, Unset.OPEN)
    problems = [problem for file in files for problem in _capped(_load(file, inputs).problems)]
    return sorted_problems(problems), len(files)


def _load(path: Path | str, inputs: _Inputs) -> _Loaded:
    composition = compose(path)
    loaded = _Loaded(composition, inputs, problems=list(composition.problems))
    if composition.node is None or composition.own is None:
        return loaded
    if not composition.complete:  # do not report keys that the missing fragment would have given
        _check(loaded, composition.own.without("extends"), partial=True)
        return loaded
    overrides, problems = read_overrides(inputs.sets, composition.node.place)
    base, more = apply_overrides(composition.node, overrides)
    loaded.problems += [*problems, *more]
    if _is_fragment(base):
        _check(loaded, base, partial=True)
    elif not has_cells(base.get("matrix")):
        document, resolution = _check(loaded, base)
        loaded.problems += axes_missing(document)
        loaded.cells.append((DraftCell("", {}, base), document, resolution))
    else:
        _check_cells(loaded, base, overrides)
    return loaded


def _check_cells(loaded: _Loaded, base: MappingNode, overrides: Sequence[Override]) -> None:
    """Checks the whole document, in which the matrix may fill gaps, and then each cell."""
    whole, _ = _check(loaded, base, partial=True, semantic=False)
    if not isinstance(whole.data.get("matrix"), dict):
        return  # the schema reports it
    drafts, problems = expand(whole, base, [override.parts for override in overrides])
    loaded.problems += problems
    for draft in drafts:
        node, _ = apply_overrides(draft.node, overrides)  # again, because they win over the axes
        document, resolution = _check(loaded, node)
        loaded.cells.append((draft, document, resolution))
    loaded.problems += list(_different_workers(loaded, whole))


def _different_workers(loaded: _Loaded, whole: Document) -> Iterator[Problem]:
    """A cell that asks for other workers than the first one; `arithmetic` may differ."""
    first: dict[str, Any] | None = None
    for draft, document, _ in loaded.cells:
        given = document.data.get("execution")
        given = given if isinstance(given, dict) else {}
        asked = {key: value for key, value in given.items() if key != "arithmetic"}
        if first is None:
            first = asked
        elif asked != first:
            message = f"the cell {draft.name!r} asks for other workers than the first one"
            hint = "give all cells the same engine, workers and address"
            yield whole.problem("GR316", ("matrix",), message, hint)
            return


def _check(
    loaded: _Loaded, node: MappingNode, *, partial: bool = False, semantic: bool = True
) -> tuple[Document, Resolution]:
    """Resolves and checks the document `node`; adds its problems to `loaded`."""
    source = loaded.composition.source
    assert source is not None
    resolution = resolve_environment(node, loaded.inputs.environ, loaded.inputs.unset)
    joined = join_paths(resolution.node)
    document = Document(source, joined, frozenset(resolution.open), resolution.secret)
    document = _with_texts(document)
    for path, at, code, message, hint in resolution.malformed:
        loaded.problems.append(document.problem(code, path, message, hint, place=at.place))
    problems = schema_problems(document, partial=partial)
    loaded.problems += _explained(document, node, resolution, problems)
    if semantic:
        loaded.problems += semantic_problems(document, partial=partial)
    return document, resolution


def _with_texts(document: Document) -> Document:
    """`document` with numbers from outside the file as text if the schema wants text."""
    values = (node for _, node in walk(document.node) if isinstance(node, ScalarNode))
    if not any(node.from_outside and not isinstance(node.value, str) for node in values):
        return document
    changed = document.node
    for path in texts_expected(document):
        node = document.find(path)
        assert isinstance(node, ScalarNode)
        changed = put(changed, path, replace(node, value=node.text))
    return replace(document, node=changed)


def _explained(
    document: Document, node: MappingNode, resolution: Resolution, problems: list[Problem]
) -> Iterator[Problem]:
    """The schema's problems. A key that is missing because its environment variable is not set is
    reported as such; one whose reference is invalid has been reported already."""
    unset = {path_text(path): (path, name) for path, name in resolution.unset.items()}
    malformed = {path_text(path) for path, *_ in resolution.malformed}
    before = Document(document.source, node)
    for problem in problems:
        if problem.code == "GR104" and problem.path in unset:
            path, name = unset[problem.path]
            message = f"{problem.path} needs the environment variable {name}, which is not set"
            hint = f"set {name}, or add a default: {{env: {name}, default: ...}}"
            yield document.problem("GR204", path, message, hint, place=before.place(path))
        elif problem.code != "GR104" or problem.path not in malformed:
            yield problem


def _is_fragment(node: MappingNode | None) -> bool:
    kind = node.get("kind") if node else None
    return isinstance(kind, ScalarNode) and kind.value == "Fragment"


def _fragment_given(composition: Composition) -> Problem:
    assert composition.source is not None
    assert composition.node is not None
    hint = "list it under `extends` in a file with `kind: Experiment`"
    message = "a Fragment cannot run by itself"
    return Document(composition.source, composition.node).problem("GR214", ("kind",), message, hint)


def _capped(problems: Sequence[Problem]) -> list[Problem]:
    found = sorted_problems(problems)
    if len(found) <= MAX_PROBLEMS:
        return found
    last = found[MAX_PROBLEMS - 1]
    message = f"at least {len(found) - MAX_PROBLEMS} more problems are not shown"
    return [*found[:MAX_PROBLEMS], Problem(last.file, last.line, last.column, "GR999", message)]


def build_spec(document: Document) -> Spec:
    """The Spec of a valid document.

    Secret values are redacted in `Spec.document`, and in the description and tags, which are only
    shown.
    """
    data = document.data
    resolved = _resolved_document(document)
    shown = resolved["metadata"]
    tracking = data.get("tracking", {})
    execution = dict(data.get("execution", {}))
    arithmetic = execution.pop("arithmetic", "auto")
    probes = {name: defined_probe(name, given) for name, given in data.get("probes", {}).items()}
    return Spec(
        name=data["metadata"]["name"],
        description=shown.get("description", ""),
        tags=dict(shown.get("tags", {})),
        model=ModelSpec(**_model(document)),
        template=_template(data.get("template", "auto")),
        system=data.get("system"),
        template_variables=data.get("template_variables") or None,
        seed=data.get("seed", 0),
        tokens=_scope(data.get("tokens", {})),
        steps=tuple(_step(step, probes) for step in data["steps"]),
        thresholds=Thresholds(
            **{name: float(value) for name, value in data.get("thresholds", {}).items()}
        ),
        gates=tuple(Gate(**gate) for gate in data.get("gates", ())),
        execution=Execution(**execution),
        arithmetic=arithmetic,
        tracking=Tracking(tracking.get("uri"), tracking.get("experiment")),
        document=resolved,
        origins=_origins(document),
    )


def _scope(tokens: Mapping[str, Any]) -> TokenScope:
    named = dict(tokens)
    unused = named.pop("unused", None)
    lists = {name: tuple(value) for name, value in named.items()}
    return TokenScope(**lists, unused=tuple(unused["ids"]) if unused else None)


def _model(document: Document) -> dict[str, Any]:
    model = dict(document.data["model"])
    if "max_memory" in model:
        model["max_memory"] = model["max_memory"] or None
    return model


def _template(value: Any) -> str | InlineTemplate:
    return InlineTemplate(**value) if isinstance(value, dict) else value


def _step(step: Mapping[str, Any], probes: Mapping[str, Probe]) -> Step:
    params = {key: value for key, value in step.items() if key not in ("id", "strategy")}
    named = params.get("probes", ())
    own = {} if isinstance(named, str) else {name: probes[name] for name in named if name in probes}
    return Step(step.get("id", step["strategy"]), step["strategy"], params, own)


def _tags(document: Document) -> dict[str, str]:
    """Tags are text as written: `version: 1.10` keeps its zero."""
    tags = document.data["metadata"].get("tags", {})
    return {name: _tag_text(document, name) for name in tags}


def _tag_text(document: Document, name: str) -> str:
    node = document.find(("metadata", "tags", name))
    assert isinstance(node, ScalarNode)
    return node.value if isinstance(node.value, str) else node.text


def _resolved_document(document: Document) -> dict[str, Any]:
    filled = with_defaults(document.data)
    if document.data["metadata"].get("tags"):
        filled["metadata"]["tags"] = _tags(document)
    for path in document.secret:
        holder: Any = filled
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = REDACTED
    return filled


def _origins(document: Document) -> dict[str, Origin]:
    return {
        path_text(path): Origin(
            node.place.source.name,
            node.place.line,
            node.place.column,
            document.via(node.place) or None,
        )
        for path, node in walk(document.node)
    }
