"""Renders report.html, one self-contained page, and collects the values that it shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from glitchrun.errors import MissingExtra
from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report import run_details
from glitchrun.report.agreement import agreement_tables, shown
from glitchrun.report.alarms import Alarms, alarms
from glitchrun.report.figures import drawings
from glitchrun.report.figures.style import LIGHT, Drawing, palette_css, style
from glitchrun.report.formatting import MISSING, count, duration, figure, share, size
from glitchrun.report.headline import declared_headline, headline
from glitchrun.report.outcome import gate_evidence, gate_rule, gates_outcome, outcome
from glitchrun.report.severity_tables import severity_tables
from glitchrun.report.step_tables import StepColumn, StepTable, step_tables
from glitchrun.report.token_rows import VERDICTS
from glitchrun.report.token_table import token_table
from glitchrun.report.totals import MILD, Severity, is_about_tokens, severity, tallies, thresholds
from glitchrun.spec.schema import fragments
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.vocabulary.text import visible

SHOWN = 300
"""Rows of a step's table on the page; its file has all of them."""
_PAGE = Path(__file__).parent / "page"
_SHEETS = ("report.css", "tokens.css", "print.css")
_SCRIPTS = ("elements.js", "details.js", "scatter.js", "report.js")
"""They share one scope, in this order."""
_VARIABLE = {value: f"var(--{name})" for name, value in LIGHT.items()}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_QUOTED = re.compile("«(.*?)»(?!»)")


def render(record: RunRecord, drawn: Sequence[Drawing] | None = None) -> str:
    """The report as one HTML page.

    Its content security policy forbids requests, and scripts and styles other than its own, which
    it allows by hash. Text of the run is escaped; control, bidi and invisible characters are
    spelled out.

    Args:
        record: The run.
        drawn: Its figures without titles, if they are drawn already.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    with style():
        return render_page(
            "report.html.j2",
            drawings(record) if drawn is None else drawn,
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
    root = ElementTree.fromstring(buffer.getvalue())  # nosec B314 # matplotlib's own SVG
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


# What the page shows, section by section, as plain text and numbers


def sections(record: RunRecord) -> dict[str, Any]:
    """Everything that page/report.html.j2 shows, except the figures and the token table."""
    return {
        "experiment": record.identity.experiment,
        "run": record.identity.name,
        "description": record.identity.description,
        "outcome": outcome(record),
        "gates_outcome": gates_outcome(record),
        "headline": headline(record),
        "cards": _cards(record),
        "setup": run_details.setup(record),
        "steps": [run_details.step_row(step) for step in record.steps],
        "tables": [_table(table) for table in step_tables(record)],
        "about_tokens": is_about_tokens(record),
        "searched": any(map(_has_searched, record.steps)),
        "gates": record.gates,
        "gate_rule": gate_rule,
        "gate_evidence": gate_evidence,
        "figure": figure,
        "tallies": tallies(record),
        "share": share,
        **severity_tables(record),
        **agreement_tables(record),
        "legend": VERDICTS,
        "memory": run_details.memory(record),
        "census": run_details.census(record.model),
        "quantized": record.model is not None and record.model.quantization in ("int8", "int4"),
        "unquantized": record.model.unquantized if record.model else (),
        "timing": run_details.timing(record),
        "counters": run_details.counter_rows(record),
        "metrics": [(name, figure(m.value, 4), count(m.n)) for name, m in record.metrics.items()],
        "commands": run_details.commands(record),
        "provenance": run_details.provenance(record),
        "spec": json.dumps(record.spec, indent=2, ensure_ascii=False, default=str),
    }


def _has_searched(step: StepRecord) -> bool:
    """Whether a search chose the tokens of the step, and not chance."""
    strategy, search = STRATEGIES.get(step.strategy), SEARCHES.get(step.params.get("search", ""))
    chose = strategy is not None and strategy.searches and bool(step.batches)
    return chose and not (search is not None and search.random)


def _cards(record: RunRecord) -> list[tuple[str, str, str]]:
    """The key figures at the top of the page: label, number, and what it counts."""
    cards = [
        *_shown_cards(record),
        *_verdict_cards(severity(record), thresholds(record).probability),
        *map(_alarm_card, alarms(record)),
    ]
    cards += [card for step in record.steps for card in _step_cards(step)]
    cards += _speed_card(record)
    if record.model:
        cards.append(("peak memory", size(record.model.peak_bytes), f"on {record.model.device}"))
    whole = run_details.run_seconds(record)
    return [*cards, *([] if whole is None else [("time", duration(whole), "of the whole run")])]


def _speed_card(record: RunRecord) -> list[tuple[str, str, str]]:
    """The speed of the step that verified most tokens; empty if none has one."""
    rates = [
        (metric.n or 0, step.id, metric.value)
        for step in record.steps
        if (metric := step.metrics.get("tokens_per_second"))
    ]
    if not rates:
        return []
    _, step_id, value = max(rates, key=lambda rate: rate[0])
    return [(f"{step_id} speed", figure(value), "tokens per second")]


def _verdict_cards(found: Severity, limit: float) -> list[tuple[str, str, str]]:
    """Without counts that equal that of the glitch tokens because they are below `limit`."""
    if not found.verified:
        return []
    severe = ("severe", count(found.severe), f"glitch tokens, p < {SEVERE:g}")
    mild = (f"p < {MILD:g}", count(found.mild), "glitch tokens, severe ones included")
    return [
        ("verified", count(found.verified), "tokens with a verdict"),
        *([severe] if limit > SEVERE else []),
        *([mild] if limit > MILD and found.mild < found.glitch else []),
        ("glitch", count(found.glitch), f"{share(found.glitch, found.verified)} of those verified"),
    ]


def _shown_cards(record: RunRecord) -> list[tuple[str, str, str]]:
    both = shown(record)
    if both is None:
        return []
    return [
        ("fails in chat", count(both.in_chat), "glitch tokens when asked in chat"),
        ("fails even when shown", count(both.even_shown), "glitch tokens by few-shot copying too"),
    ]


def _alarm_card(found: Alarms) -> tuple[str, str, str]:
    rate = share(found.alarms, found.controls)
    return f"{found.step} false alarms", rate, f"{found.alarms:,} of {found.controls:,} controls"


def _step_cards(step: StepRecord) -> list[tuple[str, str, str]]:
    """The metrics that the strategy's `x-headline` names as cards."""
    named = (declared_headline(step) or {}).get("cards", ())
    declared = fragments().get(step.strategy, {}).get("x-metrics", {})
    cards = []
    for name in named:
        if metric := step.metrics.get(name):
            unit = declared.get(name, {}).get("unit", "")
            number = size(metric.value) if unit == "bytes" else figure(metric.value)
            label = f"{step.id} {name.replace('_', ' ')}".removesuffix(" bytes")
            cards.append((label, number, "" if unit == "bytes" else unit))
    return cards


def _table(table: StepTable) -> dict[str, Any]:
    """The first `SHOWN` rows of a table as text, and the number of the others."""
    folded = table.constant
    columns = [column for column in table.filled if column not in folded]
    texts = [table.texts(column, SHOWN) for column in columns]
    return {
        "step": table.step,
        "id": f"table-{table.step}-{table.name}",
        "title": table.title,
        "description": table.description,
        "path": table.path,
        "columns": [(column, table.is_numeric(column)) for column in columns],
        "folded": [(column, _the_value(table, column)) for column in folded],
        "rows": list(zip(*texts, strict=True)),
        "hidden": max(0, len(table.rows) - SHOWN),
    }


def _the_value(table: StepTable, column: StepColumn) -> str:
    return next(text for text in table.texts(column) if text != MISSING)
