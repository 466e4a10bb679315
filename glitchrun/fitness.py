"""The fitness of sequences, and the order by it: for the search, its tables and the live view."""

from __future__ import annotations

import math

Ids = tuple[int, ...]
"""A sequence of token ids."""

_DECIMALS = 6
"""Decimals of the shortfall that count, so that rounding, which differs between machines, seldom
decides between two sequences. The fitness itself has too few decimals near 1."""


def reduction(before: float, after: float) -> float:
    """(P0 − P1) / P0: 1 if the probability fell to 0, negative if it rose; 0 if P0 is 0."""
    return (before - after) / before if before > 0 else 0.0


def increase(before: float, after: float) -> float:
    """(P1 − P0) / (1 − P0): 1 if the probability rose to 1, negative if it fell; 0 if P0 is 1."""
    return (after - before) / (1 - before) if before < 1 else 0.0


def shortfall(fitness: float) -> float:
    """ln(1 − fitness), the logarithm of the distance from a perfect fitness: lower is fitter.

    It is ln(P1 / P0) where the fitness is the reduction of one probability; −inf at fitness 1.
    """
    missing = 1 - fitness
    return round(math.log(missing), _DECIMALS) if missing > 0 else -math.inf


def sort_key(fitness: float, ids: Ids) -> tuple[float, int, Ids]:
    """Sorts sequences by descending fitness; among equals, the shorter and then the one with the
    lower ids comes first."""
    return shortfall(fitness), len(ids), ids
