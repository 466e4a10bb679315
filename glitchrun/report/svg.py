"""A matplotlib figure as SVG that lives inside the page: its colours, its fonts, its rules."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

from glitchrun.report.palette import LIGHT

_VARIABLE = {value: f"var(--{name})" for name, value in LIGHT.items()}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(figure: Any, name: str, description: str) -> str:
    """The figure as an `<svg>` element.

    Colours of the light palette become the page's variables, so that the figure turns dark with
    it. Styles become attributes, because the page's policy forbids inline styles. Ids are prefixed
    with `name`, which must differ between the figures of a page.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root, name)
    root.attrib.pop("height", None)
    root.attrib.pop("width", None)
    root.attrib.update({"role": "img", "aria-label": description, "class": "chart"})
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, name: str) -> None:
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _clean(child, name)
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    attributes.update(_presentation(attributes.pop("style", "")))
    element.attrib.clear()
    element.attrib.update({key: _own(key, value, name) for key, value in attributes.items()})


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _presentation(style: str) -> dict[str, str]:
    """Declarations of a style as presentation attributes; a font keeps its size alone."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    found = {key.strip(): value.strip() for key, value in pairs}
    font = found.pop("font", "")
    if size := re.search(r"[\d.]+(?=px)", font):
        found["font-size"] = size.group()
    if "bold" in font or re.search(r"\b[67]00\b", font):
        found["font-weight"] = "600"
    return found


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    return _VARIABLE.get(value, value)
