"""report.html: one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from glitchrun.errors import MissingExtra
from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures import drawings
from glitchrun.report.figures.style import LIGHT, Drawing, palette_css, style
from glitchrun.report.page_sections import sections
from glitchrun.report.token_table import token_table
from glitchrun.report.writing import replacing
from glitchrun.vocabulary.text import visible

_PAGE = Path(__file__).parent / "page"
_SHEETS = ("report.css", "tokens.css", "print.css")
_SCRIPTS = ("elements.js", "details.js", "scatter.js", "report.js")
"""They share one scope, in this order."""
_VARIABLE = {value: f"var(--{name})" for name, value in LIGHT.items()}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_QUOTED = re.compile("«(.*?)»(?!»)")


def write_html(record: RunRecord, path: Path) -> Path:
    """Writes report.html and returns its path. The file appears whole or not at all.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    with replacing(path) as file:
        file.write(render(record))
    return path


def render(record: RunRecord) -> str:
    """The report as one HTML page.

    Its content security policy forbids requests, and scripts and styles other than its own, which
    it allows by hash. Text of the run is escaped; control, bidi and invisible characters are
    spelled out.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    with style():
        return render_page(
            "report.html.j2",
            drawings(record),
            **sections(record),
            with_tokens=_with_tokens,
            tokens=_markup()(token_table(record)),
        )


def render_page(template: str, drawn: Iterable[Drawing], **values: Any) -> str:
    """A page of the folder `page/` with the style, the script and the policy of the report.

    Needs `figures.style.style`.

    Args:
        template: Name of the template.
        drawn: Its figures.
        values: What else the template shows.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    sheet = palette_css() + _joined(_SHEETS)
    script = f'"use strict";\n(() => {{\n{_joined(_SCRIPTS)}}})();\n'
    markup = _markup()
    return str(
        _environment()
        .get_template(template)
        .render(
            **values,
            escaped=markup.escape,
            sheet=markup(sheet),
            script=markup(script),
            policy=_policy(sheet, script),
            figures=[
                {
                    "name": one.name,
                    "title": one.title,
                    "caption": markup.escape(one.caption),
                    "svg": markup(_svg(one.figure, one.name, f"{one.title}. {one.caption}")),
                }
                for one in drawn
            ],
        )
    )


def _joined(names: tuple[str, ...]) -> str:
    return "".join((_PAGE / name).read_text(encoding="utf-8") for name in names)


def _policy(sheet: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_hash(sheet)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _svg(figure: Any, name: str, description: str) -> str:
    """A matplotlib figure as an `<svg>` element that follows the page's colours and policy.

    Colours of the light palette become CSS variables, so that the figure turns dark with the page.
    Styles become attributes, because the page's policy forbids inline styles. Ids are prefixed
    with `name`, which is unique on the page.
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
    """The declarations of a style as presentation attributes; of a font only size and weight."""
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


@cache
def _environment() -> Any:
    """Kept, with the compiled templates: compiling them takes 0.9 s."""
    try:
        import jinja2
    except ImportError as exc:
        raise MissingExtra("jinja2") from exc
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        finalize=_legible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _markup() -> Any:
    from markupsafe import Markup

    return Markup


def _with_tokens(sentence: str) -> Any:
    """A sentence whose quoted tokens do not change the writing direction around them."""
    quoted = _QUOTED.sub(r'«<bdi class="token">\1</bdi>»', str(_markup().escape(sentence)))
    return _markup()(quoted.replace(" %", "\xa0%"))  # a number and its unit stay on one line


_PROSE = str.maketrans({"␣": " ", "␊": "\n", "␉": "\t"})


def _legible(value: Any) -> Any:
    """Text with invisible characters spelled out, except spaces and line breaks."""
    if type(value) is not str:  # Markup, a subclass of str, is escaped already
        return value
    return visible(value).translate(_PROSE)
