"""What is made larger: the share of what could be gained that was gained."""

from __future__ import annotations


def reduction(before: float, after: float) -> float:
    """(P0 − P1) / P0: 1 where a probability fell to nothing, negative where it rose; 0 where there
    was nothing to take away."""
    return (before - after) / before if before > 0 else 0.0


def increase(before: float, after: float) -> float:
    """(P1 − P0) / (1 − P0): 1 where a probability rose to certainty, negative where it fell; 0
    where there was nothing to add."""
    return (after - before) / (1 - before) if before < 1 else 0.0
