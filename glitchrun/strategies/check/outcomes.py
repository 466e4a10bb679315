"""The result of a check: its values, and the outcome of comparing each with its requirement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Entry


@dataclass(frozen=True, slots=True)
class Finding:
    """One value of a check, and whether it meets its requirement."""

    what: str
    value: Any
    wanted: str | None = None
    """The requirement, in words; None if the value is only reported."""
    holds: bool | None = None
    """Whether the value meets the requirement; None without one."""
    measured: bool = False
    """Whether it depends on the machine, and so differs from run to run."""

    @property
    def failure(self) -> str:
        """The failed requirement with the value found; without the value if it is `measured`."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        return f"{self.what}: wanted {self.wanted}{'' if self.measured else f', found {value}'}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A check with its values. `skipped` is the reason why it cannot decide, if it cannot."""

    name: str
    findings: tuple[Finding, ...]
    skipped: str | None = None

    @property
    def outcome(self) -> str:
        """`pass`, `fail` or `skip`. A failed requirement fails a check even if it is `skipped`."""
        if any(finding.holds is False for finding in self.findings):
            return "fail"
        held = any(finding.holds for finding in self.findings)
        return "skip" if self.skipped is not None or not held else "pass"

    @property
    def reason(self) -> str:
        """Why the check passed, failed or was skipped, as a phrase."""
        failed = [one for one in self.findings if one.holds is False]
        if failed:
            return "; ".join(one.failure for one in failed)
        if self.outcome == "skip":
            return self.skipped or "no value has a requirement"
        held = sum(one.holds is True for one in self.findings)
        return f"all {held} requirements met" if held > 1 else "requirement met"

    def entries(self) -> Iterator[Entry]:
        """The rows of the tables `checks` and `measurements`."""
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
    """The value, or None for a number that JSON cannot represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def equals(what: str, value: Any, wanted: Any) -> Finding:
    """Requires a value to equal `wanted`; only reports it if `wanted` is None."""
    if wanted is None:
        return Finding(what, value)
    return Finding(what, value, str(wanted), value == wanted)


def at_most(what: str, value: float, limit: float, *, measured: bool = False) -> Finding:
    """Requires a number not to exceed a limit."""
    return Finding(
        what,
        value,
        f"at most {limit:,g}" if limit < 1e6 else f"at most {limit:,.0f}",
        value <= limit,
        measured,
    )


def at_least(what: str, value: float, limit: float) -> Finding:
    """Requires a number to reach a limit."""
    return Finding(what, value, f"at least {limit:g}", value >= limit)


def within_factor(what: str, value: float, reference: float, factor: float) -> Finding:
    """Requires a number to differ from a reference by at most a factor, either way."""
    holds = reference / factor <= value <= reference * factor
    return Finding(what, value, f"{reference:g}, up to a factor of {factor:g}", holds)
