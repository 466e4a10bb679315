"""The gates of a planned run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.spec.types import Gate


@dataclass(frozen=True, slots=True)
class PlannedGate:
    """A gate, with the limit that its baseline gives."""

    gate: Gate
    origin: str
    """file:line:column of the gate."""
    limit: float | None
    """The value that the metric is compared with; None if the baseline's metric has none."""
    baseline: str | None = None
    """`EXPERIMENT · NAME KEY#N` of the baseline."""
    baseline_value: float | None = None
    folder: Path | None = None
    """The folder of the baseline."""

    def to_json(self) -> dict[str, Any]:
        """The gate as data, see `Plan.to_json`."""
        return {
            "metric": self.gate.metric,
            "op": self.gate.op,
            "value": self.limit,
            "min_n": self.gate.min_n,
            "baseline": self.baseline,
            "baseline_value": self.baseline_value,
            "tolerance": self.gate.tolerance if self.baseline else None,
        }
