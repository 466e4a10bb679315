"""Which of two sequences is the fitter: one rule for the search, its tables and the live view."""

from __future__ import annotations

import math

_DIGITS = 6
"""Decimals that count of the logarithm of what is lacking: a pass's rounding, which differs between
machines, shall seldom decide between two sequences, yet near 1 a fitness has no such decimals."""


def standing(fitness: float) -> float:
    """ln(1 − fitness), the logarithm of the share that is still lacking: the lower the fitter.

    Where the target's fall is all that counts, it is ln(P1 / P0). −inf where nothing is lacking.
    """
    lack = 1 - fitness
    return round(math.log(lack), _DIGITS) if lack > 0 else -math.inf


def ranking(fitness: float, ids: tuple[int, ...]) -> tuple[float, int, tuple[int, ...]]:
    """Sorts the fittest first; of equal ones the shorter, then the lower ids."""
    return standing(fitness), len(ids), ids
