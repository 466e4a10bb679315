"""Which tokens next. One file a search; `BUILDERS` is the list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from glitchrun.search.base import Search, Space
from glitchrun.search.cascade import Cascade, screened
from glitchrun.search.gradient import GradientWalk
from glitchrun.search.ordered import (
    Ordered,
    at_random,
    by_category,
    by_norm,
    by_pattern,
    by_range,
)
from glitchrun.search.stratified import stratified
from glitchrun.search.surrogate import Surrogate

__all__ = ["BUILDERS", "SCREENED", "Cascade", "Ordered", "Search", "Space"]

BUILDERS: Mapping[str, Callable[[Space, Any], Search]] = {
    "gradient": GradientWalk.build,
    "low-norm": by_norm,
    "random": at_random,
    "stratified": stratified,
    "surrogate": Surrogate.build,
    "screen": screened,
    "cascade": Cascade.build,
    "range": by_range,
    "category": by_category,
    "pattern": by_pattern,
}
"""From a search's name in the spec to what builds it from a space and the strategy's Config."""

SCREENED = frozenset({"screen", "cascade"})
"""The searches that need the scores of the screen."""
