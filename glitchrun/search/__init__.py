"""Searches: which tokens to verify next. One file per search; `spec/searches.py` is their list."""

from __future__ import annotations

from glitchrun.search.base import Parameters, Search, Space, foreseen
from glitchrun.search.cascade import Cascade
from glitchrun.search.ordered import Ordered
from glitchrun.spec.searches import SEARCHES

__all__ = ["Cascade", "Ordered", "Parameters", "Search", "Space", "build_search", "foreseen"]


def build_search(name: str, space: Space, config: Parameters) -> Search:
    """The search of that name over a space, with the parameters of `mine`.

    Raises:
        PreflightError: the search is of another package, and its code cannot be imported.
    """
    search: Search = SEARCHES.code(name, SEARCHES[name].build)(space, config)
    return search
