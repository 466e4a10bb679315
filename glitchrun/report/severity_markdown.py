"""The report's tables of severity and of controls as Markdown."""

from __future__ import annotations

from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.report.formatting import code, escaped, grid
from glitchrun.report.severity_page import severity_sections


def severity_parts(record: RunRecord) -> list[str]:
    """What page/severity.html.j2 shows: bands of probability, patterns of probes, false alarms.

    The most severe tokens are left out: the list of tokens has them.
    """
    found = severity_sections(record)
    return [
        *_bands(found),
        *_patterns(found["patterns"]),
        *_alarms(found["alarms"]),
        *_by_kind(found),
    ]


def _bands(found: dict[str, Any]) -> list[str]:
    if not found["bands"]:
        return []
    kinds = map(escaped, found["kinds"])
    head = ("Probability", "Failed", "Of verified", "Glitch", *kinds, "Sampled", "Confirmed")
    rows = [_band(_label(band), band) for band in found["bands"]]
    title = f"**Failures by probability**, severe below {found['severe_below']}, and what was said"
    return [title, grid(head, [*rows, _band("all failures", found["band_sums"])])]


def _label(band: dict[str, Any]) -> str:
    label = escaped(band["label"])
    return f"{label} (severe)" if band["severe"] else label


def _band(label: str, band: dict[str, Any]) -> list[str]:
    kinds = [f"{number} ({part})" if part else number for number, part in band["kinds"]]
    before = [band["failed"], band["share"], band["glitch"]]
    return [label, *map(escaped, [*before, *kinds, band["sampled"], band["confirmed"]])]


def _patterns(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    rows = [
        (
            code(one["step"]),
            ", ".join(f"{name} {outcome}" for name, outcome in one["probes"]),
            one["tokens"],
            one["severe"],
        )
        for one in found
    ]
    return ["**Probes passed**", grid(("Step", "Probes", "Tokens", "Severe"), rows)]


def _alarms(found: list[dict[str, str]]) -> list[str]:
    if not found:
        return []
    names = ("own", "own_share", "controls", "alike", "alarms", "rate", "interval")
    head = ("Step", "Its own tokens flagged", "Share", "Controls", "Of same script and spacing")
    rows = [[code(one["step"]), *(escaped(one[name]) for name in names)] for one in found]
    title = "**False alarms**: the same check on ordinary tokens"
    return [title, grid((*head, "Flagged", "False-alarm rate", "95 % interval"), rows)]


def _by_kind(found: dict[str, Any]) -> list[str]:
    rows = found["alarms_by_kind"]
    if not rows:
        return []
    names = ("kind", "own", "alarms", "rate")
    cells = [[code(one["step"]), *(escaped(one[name]) for name in names)] for one in rows]
    head = ("Step", "Kind of token", "Its own tokens flagged", "Controls flagged")
    return [grid((*head, "False-alarm rate"), cells)]
