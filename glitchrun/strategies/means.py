"""Means of what may be empty."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return fmean(values) if values else None
