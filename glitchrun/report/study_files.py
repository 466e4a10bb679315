"""A study as an HTML page, Markdown, JSON and JUnit XML, and the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glitchrun.behaviour.significance import Mean
from glitchrun.ledger.record import RunRecord
from glitchrun.report.comparison.output import as_markdown
from glitchrun.report.figures.style import style
from glitchrun.report.formatting import counted, prose
from glitchrun.report.study import Flip, Measure, Study, ValuePair
from glitchrun.report.study_sections import drawings, sections
from glitchrun.report.writing import replacing, rounded, rounded_floats

FILES = ("study.html", "study.md", "study.json")


def write_study(folder: Path, records: Sequence[RunRecord]) -> None:
    """Writes the files of a study.

    Args:
        folder: Is created.
        records: The runs of its cells.

    Raises:
        MissingExtra: jinja2, matplotlib or scipy is not installed.
        OSError: a file cannot be written.
    """
    study = Study(records)
    texts = (as_page(study), as_md(study), as_json(study))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, texts, strict=True):
        with replacing(folder / name) as file:
            file.write(text)


def as_page(study: Study) -> str:
    """The study as a self-contained HTML page.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    from glitchrun.report.html import render_page

    description = study.records[0].identity.description
    with style():
        return render_page(
            "comparison.html.j2",
            drawings(study),
            above=f"Study of {counted(len(study.records), 'cell')}",
            noun="cells",
            title=study.experiment,
            description=description,
            legend=[],
            sections=list(sections(study)),
        )


def as_md(study: Study) -> str:
    """The study as Markdown, for a comment or a page."""
    title = f"## {prose(study.experiment)}: study of {counted(len(study.records), 'cell')}\n\n"
    return title + as_markdown(sections(study, 20))


def as_json(study: Study) -> str:
    """The study as JSON: `experiment`, `axes`, `cells`, `metrics`, `groups`, `pairs`, `flips`."""
    found = {
        "experiment": study.experiment,
        "parent": study.records[0].identity.parent,
        "axes": study.axes,
        "cells": [_cell(study, place) for place in range(len(study.records))],
        "metrics": [_metric(study, measure) for measure in study.measures],
        "groups": [_group(study, place) for place in range(len(study.groups))],
        "test": "exact McNemar, two-sided, adjusted by Benjamini and Hochberg over all pairs",
        "pairs": [_pair(*one) for one in zip(study.pairs, study.adjusted, strict=True)],
        "flips": {
            axis: [_flip(one, study.by_text) for one in study.flips(axis)]
            for axis in study.settings
        },
    }
    return json.dumps(rounded_floats(found), indent=1, ensure_ascii=False) + "\n"


def _cell(study: Study, place: int) -> dict[str, Any]:
    record = study.records[place]
    return {
        "name": record.identity.name,
        "key": record.identity.key,
        "attempt": record.identity.attempt,
        "run_id": record.delivered_to.get("run_id"),
        "status": record.status,
        "assignments": dict(record.identity.assignments),
        "gates": [gate.outcome for gate in record.gates],
        "metrics": {name: metric.value for name, metric in record.metrics.items()},
    }


def _metric(study: Study, measure: Measure) -> dict[str, Any]:
    means = study.means(measure)
    best = study.best_groups(measure)
    return {
        "name": measure.result.name,
        "unit": measure.result.unit,
        "better": measure.better or None,
        "best_cells": [study.records[place].identity.name for place in measure.best],
        "interval": "Student's t over seeds, 95 %",
        "means": [_mean(one) for one in means],
        "best_groups": [study.groups[place].name for place in best],
    }


def _mean(one: Mean | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"mean": one.value, "low": one.low, "high": one.high, "n": one.n}


def _group(study: Study, place: int) -> dict[str, Any]:
    group = study.groups[place]
    every, some, none = study.stability(group)
    return {
        "name": group.name,
        "setting": dict(group.setting),
        "cells": [study.records[cell].identity.name for cell in group.places],
        "tokens": {"every_seed": every, "some_seeds": some, "no_seed": none},
    }


def _pair(pair: ValuePair, p_adjusted: float) -> dict[str, Any]:
    counts, overlap, test = pair.counts, pair.overlap, pair.test
    return {
        "axis": pair.axis,
        "left": pair.left,
        "right": pair.right,
        "others": dict(pair.others),
        **asdict(counts),
        "agreement": counts.agreement,
        "kappa": counts.kappa,
        "overlap_by_chance": overlap.expected,
        "reading": overlap.reading,
        "p": test.p,
        "p_adjusted": p_adjusted,
        "smallest_p": test.least,
        "power": test.power,
    }


def _flip(flip: Flip, by_text: bool) -> dict[str, Any]:
    values: Mapping[str, Any] = {
        value: {"found": one.found, "judged": one.judged, "p": rounded(one.p), "asr": one.asr}
        for value, one in flip.by_value.items()
    }
    return {
        "token_id": None if by_text else flip.token.id,
        "token": flip.token.text,
        "others": dict(flip.others),
        "values": values,
    }
