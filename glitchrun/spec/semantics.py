"""Checks that a schema cannot express: references between values, and combinations of
parameters."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

from glitchrun.spec.mlflow_rules import (
    MAX_TAG_VALUE,
    checkpoint_around,
    database,
    is_sqlite,
    objection,
    tag_objection,
)
from glitchrun.spec.nodes import Document, Path_
from glitchrun.spec.probe_checks import defined_problems, named_problems
from glitchrun.spec.problems import Problem, did_you_mean, one_of
from glitchrun.spec.schema import TOKEN_SOURCES, fragments, named
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES, TEMPLATE_MODES, without_system
from glitchrun.terminal import REDACTED, shortened

MODEL_METRICS = ("model/load_seconds", "model/bytes", "model/peak_bytes")
_RESERVED = ("model",)
"""Ids that no step may have, because metrics of that name belong to the run."""
_WITHOUT_PHRASES = ("controls", "sequential", "error_rate", "match")
_MAX_STEPS = 200
"""The schema's limit; further steps are not checked here."""
_MAX_PATTERN = 1000
LEAST_TEMPERATURE = 0.001
"""With a smaller temperature, logits divided by it leave the range of float32; 0 is greedy."""


def semantic_problems(document: Document, *, partial: bool = False) -> list[Problem]:
    """Every problem that the schema cannot find; values of the wrong type are left to the schema.

    A `partial` document (a fragment) may lack the targets of its references.
    """
    problems = [*_step_ids(document), *_template(document), *_system(document)]
    problems += [*_exclude(document), *_variables(document)]
    problems += [*_tags(document), *_store(document), *defined_problems(document)]
    problems += _execution(document)
    for index, step in _steps(document):
        problems += _token_source(document, index, step)
        problems += _parameters(document, index, step)
        problems += _residency(document, index, step)
        problems += _phrases(document, index, step)
        problems += named_problems(document, index, step, partial=partial)
    if not partial:
        problems += _gates(document)
    return problems


def _steps(document: Document) -> Iterator[tuple[int, dict[str, Any]]]:
    steps = _list(document.data.get("steps"))
    for index, step in enumerate(steps if len(steps) <= _MAX_STEPS else ()):
        if isinstance(step, dict):
            yield index, step


def _id(step: dict[str, Any]) -> str | None:
    """The id of a step; None if it is not known or not text."""
    name = step.get("id", step.get("strategy"))
    return name if isinstance(name, str) else None


def _step_ids(document: Document) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, step in _steps(document):
        name = _id(step)
        key = "id" if "id" in step else "strategy"
        path: Path_ = ("steps", index, key)
        if name is None:
            continue
        if name in first:
            line = document.place(("steps", first[name])).line
            message = f"two steps have the id {name!r}; the first is on line {line}"
            hint = "" if key == "id" else "the id of a step is by default its strategy: add an `id`"
            yield document.problem("GR301", path, message, hint)
        elif name in _RESERVED:
            yield document.problem(
                "GR301", path, f"the id {name!r} is reserved for metrics of the run"
            )
        first.setdefault(name, index)


def _token_source(document: Document, index: int, step: dict[str, Any]) -> Iterator[Problem]:
    for name in TOKEN_SOURCES:
        yield from _named_tokens(document, index, name, step.get(name))


def _named_tokens(document: Document, index: int, name: str, tokens: Any) -> Iterator[Problem]:
    if not isinstance(tokens, dict):
        return
    path: Path_ = ("steps", index, name)
    wanted = tokens.get("from")
    if isinstance(wanted, str):
        yield from _reference(document, index, (*path, "from"), wanted)
    for position, one in enumerate(_list(wanted)):
        if isinstance(one, str):
            yield from _reference(document, index, (*path, "from", position), one)
    file = tokens.get("file")
    if isinstance(file, str) and not os.path.isfile(file):  # noqa: PTH113 - Path() costs more
        message = f"the token file {file!r} does not exist"
        yield document.problem("GR312", (*path, "file"), message)


def _phrases(document: Document, index: int, step: dict[str, Any]) -> Iterator[Problem]:
    """Phrases in a step that does not take them, and parameters that they leave without effect."""
    strategy = STRATEGIES.get(str(step.get("strategy")))
    for name in TOKEN_SOURCES:
        source = step.get(name)
        if strategy is None or not isinstance(source, dict) or source.get("phrases") is None:
            continue
        path: Path_ = ("steps", index, name, "phrases")
        if not strategy.takes_phrases or name != "tokens":
            message = f"{step['strategy']} takes single tokens, not phrases"
            yield document.problem("GR334", path, message, "use test or validate")
            continue
        for other in _WITHOUT_PHRASES:
            if step.get(other):
                message = f"{other!r} has no effect on phrases, which have controls of their own"
                yield document.problem("GR334", ("steps", index, other), message, "remove it")


def _residency(document: Document, index: int, step: dict[str, Any]) -> Iterator[Problem]:
    """A step that cannot run on a streamed model."""
    model, strategy = document.data.get("model"), STRATEGIES.get(str(step.get("strategy")))
    if not isinstance(model, dict) or model.get("residency") != "streamed" or strategy is None:
        return
    if reason := strategy.needs_resident(step):
        path: Path_ = ("steps", index, "search" if "search" in step else "strategy")
        message = f"this step needs a resident model, not model.residency: streamed: {reason}"
        hint = "set model.residency: resident, or remove it"
        yield document.problem("GR314", path, message, hint)


def _reference(document: Document, index: int, path: Path_, wanted: str) -> Iterator[Problem]:
    names = {position: _id(step) for position, step in _steps(document)}
    earlier = [name for position, name in names.items() if position < index and name]
    if wanted in earlier or None in names.values():  # it may be an id that is not known yet
        return
    if wanted in names.values():
        which = "itself" if wanted == names[index] else "a later step"
        message = f"'from: {wanted}' names {which}, but steps run in the order written"
        yield document.problem("GR303", path, message, did_you_mean(wanted, earlier))
    else:
        hint = (
            did_you_mean(wanted, earlier) or "this is the first step; put the other one before it"
        )
        yield document.problem("GR302", path, f"there is no step {wanted!r}", hint)


def _parameters(document: Document, index: int, step: dict[str, Any]) -> Iterator[Problem]:
    fragment = fragments().get(str(step.get("strategy")))
    if fragment is None:
        return
    yield from _unused_and_needed(document, index, step, fragment["properties"])
    temperature = step.get("temperature")
    if isinstance(temperature, int | float) and 0 < temperature < LEAST_TEMPERATURE:
        message = f"temperature must be 0 or at least {LEAST_TEMPERATURE}, not {temperature}"
        path: Path_ = ("steps", index, "temperature")
        yield document.problem(
            "GR105", path, message, "write 0 to always take the most likely token"
        )
    for position, pattern in enumerate(_list(step.get("patterns"))):
        if isinstance(pattern, str):
            yield from _regex(document, ("steps", index, "patterns", position), pattern)
    if isinstance(pattern := step.get("pool_pattern"), str):
        yield from _regex(document, ("steps", index, "pool_pattern"), pattern)
    yield from STRATEGIES[step["strategy"]].problems(document, index, step)
    for position, span in enumerate(_list(step.get("ranges"))):
        ends = [end for end in _list(span) if isinstance(end, int)]
        if len(ends) == 2 and ends[1] < ends[0]:
            message = f"the range {ends} ends before it starts"
            path = ("steps", index, "ranges", position)
            yield document.problem("GR309", path, message, f"write [{ends[1]}, {ends[0]}]")


def _unused_and_needed(
    document: Document, index: int, step: dict[str, Any], properties: dict[str, Any]
) -> Iterator[Problem]:
    for name, schema in properties.items():
        for chooser, user in schema.get("x-used-by", {}).items():
            chosen = step.get(chooser, properties[chooser].get("default"))
            if not isinstance(chosen, str) or chosen not in properties[chooser]["enum"]:
                continue
            users = named(user)
            if name in step and chosen not in users:
                path: Path_ = ("steps", index, name)
                message = f"{name!r} is not used by {chooser}: {chosen}, only by {', '.join(users)}"
                place = document.key_place(path)
                yield document.problem("GR311", path, message, "remove it", place=place)
            elif name not in step and chosen in users and "x-needed-by" in schema:
                path = ("steps", index, chooser)
                yield document.problem("GR310", path, f"{chooser}: {chosen} needs {name!r}")


def _regex(document: Document, path: Path_, pattern: str) -> Iterator[Problem]:
    if len(pattern) > _MAX_PATTERN:  # the schema reports it
        return
    try:
        with warnings.catch_warnings():
            # `[[a]` may mean something else in a future Python, which this warning says.
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        yield document.problem("GR308", path, f"not a valid regular expression: {error}")


def _template(document: Document) -> Iterator[Problem]:
    template = document.data.get("template")
    if isinstance(template, str):
        names = (*TEMPLATE_MODES, *FAMILIES)
        if template not in names:
            hint = did_you_mean(template, names) or one_of(names)
            message = f"there is no template {template!r}"
            yield document.problem("GR305", ("template",), message, hint)
    elif isinstance(template, dict):
        for part in ("user", "system"):
            text = template.get(part)
            if isinstance(text, str) and text.count(f"{{{part}}}") != 1:
                message = f"template.{part} must contain {{{part}}} once, in place of the text"
                yield document.problem("GR306", ("template", part), message)


def _variables(document: Document) -> Iterator[Problem]:
    template, path = document.data.get("template", "auto"), ("template_variables",)
    if path[0] not in document.data or template in ("auto", "tokenizer"):
        return
    if isinstance(template, str) or (isinstance(template, dict) and "env" not in template):
        message = "template_variables work only with the tokenizer's own chat template"
        place = document.key_place(path)
        hint = "remove them, or set template: tokenizer"
        yield document.problem("GR307", path, message, hint, place=place)


def _system(document: Document) -> Iterator[Problem]:
    template = document.data.get("template")
    if not document.data.get("system") or document.is_open(("system",)):
        return  # an empty text needs no place
    inline_without = (
        isinstance(template, dict) and "env" not in template and "system" not in template
    )
    named_without = isinstance(template, str) and without_system(template)
    if named_without or inline_without:
        which = f"the template {template}" if named_without else "the template"
        message = f"there is a system text, but {which} has no place for it"
        place = document.key_place(("system",))
        other = "remove `system`, or choose another `template`"
        hint = "add template.system with {system} in it" if inline_without else other
        yield document.problem("GR307", ("system",), message, hint, place=place)


def _exclude(document: Document) -> Iterator[Problem]:
    scope = document.data.get("tokens")
    patterns = _list(scope.get("exclude")) if isinstance(scope, dict) else []
    for position, pattern in enumerate(patterns):
        if isinstance(pattern, str):
            yield from _regex(document, ("tokens", "exclude", position), pattern)


def _tags(document: Document) -> Iterator[Problem]:
    """Problems of tags that are reserved or that MLflow does not accept."""
    metadata = document.data.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    for name, value in (tags if isinstance(tags, dict) else {}).items():
        path: Path_ = ("metadata", "tags", str(name))
        if found := tag_objection(str(name)):
            message = f"the tag {shortened(str(name))!r} {found}"
            yield document.problem("GR320", path, message, place=document.key_place(path))
        elif isinstance(value, str) and len(value) > MAX_TAG_VALUE:
            message = f"a tag has at most {MAX_TAG_VALUE:,} characters, not {len(value):,}"
            yield document.problem(
                "GR320", path, message, "shorten it, or write it into the description"
            )


def _store(document: Document) -> Iterator[Problem]:
    """Problems of a tracking store: an invalid address, or a file that is not MLflow's."""
    path: Path_ = ("tracking", "uri")
    uri = document.text(path)
    if not uri:
        return
    if found := objection(uri):
        if path in document.secret and is_sqlite(uri):
            found = found.replace(uri.partition("://")[2].lstrip("/"), REDACTED)
        yield document.problem("GR321", path, f"the tracking store {found}")
    elif is_sqlite(uri) and checkpoint_around(database(uri)):
        message = "the tracking store is in a folder that contains a model"
        yield document.problem("GR321", path, message, "use a path outside of it")


def _execution(document: Document) -> Iterator[Problem]:
    """An address that the engine does not use."""
    execution = document.data.get("execution")
    if not isinstance(execution, dict) or execution.get("engine", "local") != "local":
        return
    if isinstance(address := execution.get("address"), str) and address != "local":
        message = f"the engine local runs on this machine, and does not use the address {address!r}"
        hint = "set execution.engine: ray, or remove the address"
        yield document.problem("GR315", ("execution", "address"), message, hint)


def _gates(document: Document) -> Iterator[Problem]:
    metrics = _metrics(document)
    if metrics is None:
        return
    for index, gate in enumerate(_list(document.data.get("gates"))[:_MAX_STEPS]):
        name = gate.get("metric") if isinstance(gate, dict) else None
        if isinstance(name, str) and name not in metrics:
            hint = did_you_mean(name, metrics)
            message = f"no step produces the metric {name!r}"
            yield document.problem("GR304", ("gates", index, "metric"), message, hint)


def _metrics(document: Document) -> list[str] | None:
    """Every metric that the run will have; None if the id or strategy of a step is not known."""
    metrics = list(MODEL_METRICS)
    for _, step in _steps(document):
        fragment = fragments().get(str(step.get("strategy")))
        if fragment is None or _id(step) is None:
            return None
        metrics += [f"{_id(step)}/{name}" for name in fragment["x-metrics"]]
    return metrics


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
