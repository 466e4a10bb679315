"""Outcome of a check: its values, each compared with what was wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Entry


@dataclass(frozen=True, slots=True)
class Finding:
    """One number or text of a check."""

    what: str
    value: Any
    wanted: str | None = None
    """What was wanted of it, in words; None where it is only reported."""
    holds: bool | None = None
    measured: bool = False
    """Whether the clock or the machine gave it, so that it differs from run to run."""

    @property
    def failure(self) -> str:
        """That it does not hold. What was measured stays out: it stands in the table."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        return f"{self.what}: wanted {self.wanted}{'' if self.measured else f', found {value}'}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A check with its values. `skipped` says why there was nothing to compare them with."""

    name: str
    findings: tuple[Finding, ...]
    skipped: str | None = None

    @property
    def outcome(self) -> str:
        """fail where anything does not hold, also in a check that is otherwise skipped."""
        if any(finding.holds is False for finding in self.findings):
            return "fail"
        held = any(finding.holds for finding in self.findings)
        return "skip" if self.skipped is not None or not held else "pass"

    @property
    def reason(self) -> str:
        """Why the check has this outcome."""
        """Why the check passed, failed or was skipped, as a phrase."""
        failed = [one for one in self.findings if one.holds is False]
        if failed:
            return "; ".join(one.failure for one in failed)
        if self.outcome == "skip":
            return self.skipped or "nothing was wanted of it"
        held = sum(one.holds is True for one in self.findings)
        return f"all {held} hold" if held > 1 else "it holds"

    def entries(self) -> Iterator[Entry]:
        """The rows of both tables."""
        cells = {"check": self.name, "outcome": self.outcome, "reason": self.reason}
        yield Entry("checks", cells)
        for one in self.findings:
            yield Entry("measurements", self._row(one))

    def _row(self, one: Finding) -> Mapping[str, Any]:
        outcome = None if one.holds is None else "pass" if one.holds else "fail"
        return {
            "what": f"{self.name}: {one.what}",
            "value": None if one.measured else _ready(one.value),
            "measured": _ready(one.value) if one.measured else None,
            "wanted": one.wanted,
            "outcome": outcome,
            "check": self.name,
        }


def _ready(value: Any) -> Any:
    """`value` as JSON can carry it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def equals(what: str, value: Any, wanted: Any) -> Finding:
    """That a value is just the one wanted; only reported where that is None."""
    if wanted is None:
        return Finding(what, value)
    return Finding(what, value, str(wanted), value == wanted)


def at_most(what: str, value: float, limit: float, *, measured: bool = False) -> Finding:
    """That a number does not exceed a limit."""
    return Finding(
        what,
        value,
        f"at most {limit:,g}" if limit < 1e6 else f"at most {limit:,.0f}",
        value <= limit,
        measured,
    )


def at_least(what: str, value: float, limit: float) -> Finding:
    """That a number reaches a limit."""
    return Finding(what, value, f"at least {limit:g}", value >= limit)


def within_factor(what: str, value: float, reference: float, factor: float) -> Finding:
    """That a number is a reference's, up to a factor either way."""
    holds = reference / factor <= value <= reference * factor
    return Finding(what, value, f"{reference:g}, up to a factor of {factor:g}", holds)
