"""From a document without problems to the Spec that the rest of glitchrun works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.spec.defaults import with_defaults
from glitchrun.spec.document import REDACTED, Document
from glitchrun.spec.nodes import ScalarNode, path_text, walk
from glitchrun.spec.types import (
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


def build_spec(document: Document) -> Spec:
    """The frozen Spec of a valid document. Its secret values stay out of `Spec.document` and out of
    description and tags, which are only there to be shown."""
    data = document.data
    resolved = _resolved_document(document)
    shown = resolved["metadata"]
    tracking = data.get("tracking", {})
    return Spec(
        name=data["metadata"]["name"],
        description=shown.get("description", ""),
        tags=dict(shown.get("tags", {})),
        model=ModelSpec(**_model(document)),
        template=_template(data.get("template", "auto")),
        system=data.get("system"),
        template_variables=data.get("template_variables") or None,
        seed=data.get("seed", 0),
        tokens=TokenScope(**{name: tuple(value) for name, value in data.get("tokens", {}).items()}),
        steps=tuple(_step(step) for step in data["steps"]),
        thresholds=Thresholds(
            **{name: float(value) for name, value in data.get("thresholds", {}).items()}
        ),
        gates=tuple(Gate(**gate) for gate in data.get("gates", ())),
        engine=data.get("execution", {}).get("engine", "local"),
        tracking=Tracking(tracking.get("uri"), tracking.get("experiment")),
        document=resolved,
        origins=_origins(document),
    )


def _model(document: Document) -> dict[str, Any]:
    model = dict(document.data["model"])
    if "max_memory" in model:
        model["max_memory"] = model["max_memory"] or None
    return model


def _template(value: Any) -> str | InlineTemplate:
    return InlineTemplate(**value) if isinstance(value, dict) else value


def _step(step: Mapping[str, Any]) -> Step:
    params = {key: value for key, value in step.items() if key not in ("id", "strategy")}
    return Step(step.get("id", step["strategy"]), step["strategy"], params)


def _tags(document: Document) -> dict[str, str]:
    """Tags are text, as written: `version: 1.10` keeps its zero."""
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
