"""The tables of severity, probes passed and false alarms, as text for the page and for Markdown."""

from __future__ import annotations

from collections import Counter
from typing import Any

from glitchrun.behaviour.significance import wilson
from glitchrun.behaviour.symptoms import MEANINGS
from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord
from glitchrun.report.alarms import Alarms, alarms
from glitchrun.report.formatting import (
    MISSING,
    count,
    figure,
    percent,
    share,
    spelled,
    spelled_token,
)
from glitchrun.report.token_files import attempts_by_token
from glitchrun.report.token_rows import TokenRow
from glitchrun.report.totals import (
    DECADES,
    EMITTED,
    MILD,
    Band,
    Pattern,
    bands,
    most_severe,
    patterns,
    severity,
    thresholds,
)

LISTED = 12
"""Largest number of severe tokens shown at the top of the page."""


def severity_tables(record: RunRecord) -> dict[str, Any]:
    """Everything that page/severity.html.j2 shows, by name; every cell is text."""
    found, in_bands = severity(record), bands(record)
    limit = thresholds(record).probability
    kinds = [kind for kind in (*EMITTED, "unknown") if any(b.emitted.get(kind) for b in in_bands)]
    return {
        "severe_below": f"{SEVERE:g}",
        "mild_below": f"{MILD:g}",
        "limit": f"{limit:g}",
        "all_severe": limit <= SEVERE,
        "bands": [_band(band, found.verified, kinds) for band in in_bands],
        "band_sums": _sums(in_bands, found.verified, kinds) if in_bands else None,
        "kinds": [EMITTED.get(kind, kind) for kind in kinds],
        "severest": [_token(row) for row in most_severe(record, LISTED)],
        "below_mild": found.mild,
        "alarms": [_alarms(one) for one in alarms(record)],
        "alarms_by_kind": [row for one in alarms(record) for row in _alarms_by_kind(one)],
        "patterns": [_pattern(one) for one in patterns(record)],
        "symptoms": symptom_rows(record),
    }


def band_label(low: float, high: float) -> str:
    """A band of probability in words: `0.001 to 0.01`, `below 1e-05`, `0.1 and more`."""
    if low == DECADES[0]:
        return f"below {high:g}"
    return f"{low:g} and more" if high == DECADES[-1] else f"{low:g} to {high:g}"


def _band(band: Band, verified: int, kinds: list[str]) -> dict[str, Any]:
    return {
        "label": band_label(band.low, band.high),
        "severe": band.severe,
        "failed": count(band.failed),
        "share": share(band.failed, verified),
        "glitch": count(band.glitch),
        "kinds": [_part(band.emitted.get(kind, 0), band.failed) for kind in kinds],
        "sampled": count(band.sampled) if band.sampled else MISSING,
        "confirmed": count(band.confirmed) if band.sampled else MISSING,
    }


def _sums(found: list[Band], verified: int, kinds: list[str]) -> dict[str, Any]:
    """The totals of all bands."""
    failed = sum(band.failed for band in found)
    by_kind = {kind: sum(band.emitted.get(kind, 0) for band in found) for kind in kinds}
    sampled = sum(band.sampled for band in found)
    return {
        "failed": count(failed),
        "share": share(failed, verified),
        "glitch": count(sum(band.glitch for band in found)),
        "kinds": [_part(by_kind[kind], failed) for kind in kinds],
        "sampled": count(sampled) if sampled else MISSING,
        "confirmed": count(sum(band.confirmed for band in found)) if sampled else MISSING,
    }


def _part(number: int, whole: int) -> tuple[str, str]:
    return count(number), share(number, whole) if number else ""


def _token(row: TokenRow) -> dict[str, str]:
    assert row.closest
    result, sampled = row.closest[1], row.sampled
    return {
        "text": spelled_token(row.token),
        "id": str(row.token.id),
        "p": figure(result.p),
        "rank": count(result.rank),
        "answer": MISSING if row.answer is None else spelled(row.answer),
        "kind": EMITTED.get(row.verified.emitted or "", MISSING) if row.verified else MISSING,
        "asr": f"{sampled.failures}/{sampled.attempts}" if sampled else MISSING,
    }


def _alarms(found: Alarms) -> dict[str, str]:
    return {
        "step": found.step,
        "own": f"{found.flagged:,} of {found.tokens:,}",
        "own_share": share(found.flagged, found.tokens),
        "controls": count(found.controls),
        "alike": share(found.alike, found.controls),
        "alarms": count(found.alarms),
        "rate": share(found.alarms, found.controls),
        "interval": _interval(found.low, found.high),
    }


def _interval(low: float | None, high: float | None) -> str:
    return MISSING if low is None or high is None else f"{percent(low)} to {percent(high)}"


def _alarms_by_kind(found: Alarms) -> list[dict[str, str]]:
    """A row for each kind of token, then one for the controls from other scripts."""
    rows = [
        {
            "step": found.step,
            "kind": one.kind,
            "own": f"{one.flagged:,} of {one.tokens:,}",
            "alarms": f"{one.alarms:,} of {one.controls:,}",
            "rate": share(one.alarms, one.controls),
            "interval": _interval(one.low, one.high),
        }
        for one in found.kinds
    ]
    if found.elsewhere:
        rate = wilson(found.elsewhere_alarms, found.elsewhere)
        elsewhere = {
            "step": found.step,
            "kind": f"scripts other than {', '.join(found.doubtful)}",
            "own": MISSING,
            "alarms": f"{found.elsewhere_alarms:,} of {found.elsewhere:,}",
            "rate": share(found.elsewhere_alarms, found.elsewhere),
            "interval": _interval(rate.low, rate.high),
        }
        rows.append(elsewhere)
    return rows


def _pattern(found: Pattern) -> dict[str, Any]:
    return {
        "step": found.step,
        "probes": [(name, "pass" if ok else "fail") for name, ok in found.passed.items()],
        "tokens": count(found.tokens),
        "severe": count(found.severe),
    }


def symptom_rows(record: RunRecord) -> list[dict[str, str]]:
    """How often a step's own tokens had each symptom, as text: one row per step and symptom that
    occurs, the most frequent first, then a row for the continuations that contain the token."""
    found = []
    for step in record.steps:
        rows = [row for some in attempts_by_token(step).values() for row in some if not row.control]
        tokens: dict[str | None, set[int]] = {}
        counts = Counter(row.symptom for row in rows)
        for row in rows:
            tokens.setdefault(row.symptom, set()).add(row.token.id)
        found += [
            {
                "step": step.id,
                "symptom": name or "said",
                "meaning": MEANINGS[name] if name else "the token itself",
                "continuations": count(number),
                "share": share(number, len(rows)),
                "tokens": count(len(tokens[name])),
            }
            for name, number in sorted(
                counts.items(), key=lambda item: (item[0] is None, -item[1], item[0])
            )
        ]
    return found
