"""report.html: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from glitchrun.errors import MissingExtra
from glitchrun.ledger.record import RunRecord
from glitchrun.report import palette
from glitchrun.report.figures import drawings
from glitchrun.report.figures.style import style
from glitchrun.report.sections import sections
from glitchrun.report.svg import inline
from glitchrun.report.token_table import token_table
from glitchrun.report.writing import replacing
from glitchrun.vocabulary.text import visible

_PAGE = Path(__file__).parent / "page"


def write_html(record: RunRecord, path: Path) -> Path:
    """Writes the report's page. The file appears whole or not at all.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    with replacing(path) as file:
        file.write(render(record))
    return path


def render(record: RunRecord) -> str:
    """The report as one HTML page.

    Its policy allows no request and no script or style but its own two, by their hashes. Text
    from the run is escaped, and shown with control, bidi and invisible characters written out.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    sheet = palette.css() + (_PAGE / "report.css").read_text(encoding="utf-8")
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    template = _environment().get_template("report.html.j2")
    markup = _markup()
    return str(
        template.render(
            **sections(record),
            escaped=markup.escape,
            sheet=markup(sheet),
            script=markup(script),
            policy=_policy(sheet, script),
            figures=[{**figure, "svg": markup(figure["svg"])} for figure in _figures(record)],
            tokens=markup(token_table(record)),
        )
    )


def _policy(sheet: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_hash(sheet)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _figures(record: RunRecord) -> list[dict[str, str]]:
    with style():
        return [
            {
                "name": drawing.name,
                "title": drawing.title,
                "caption": drawing.caption,
                "svg": inline(drawing.figure, drawing.name, f"{drawing.title}. {drawing.caption}"),
            }
            for drawing in drawings(record)
        ]


def _environment() -> Any:
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


_PROSE = str.maketrans({"␣": " ", "␊": "\n", "␉": "\t"})


def _legible(value: Any) -> Any:
    """Text with nothing hidden in it; spaces and line breaks stay what they are, this is prose."""
    if type(value) is not str:  # Markup is a str that has been seen to already
        return value
    return visible(value).translate(_PROSE)
