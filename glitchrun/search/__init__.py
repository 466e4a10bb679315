"""Which tokens next. One file a search; the list of them is `spec/searches.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from glitchrun.search.base import Search, Space
from glitchrun.search.cascade import Cascade
from glitchrun.search.ordered import Ordered
from glitchrun.spec.searches import SEARCHES

__all__ = ["BUILDERS", "Cascade", "Ordered", "Search", "Space"]


def _builder(place: str) -> Callable[[Space, Any], Search]:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    owner: Any = import_module(module)
    for part in name.split("."):
        owner = getattr(owner, part)
    found: Callable[[Space, Any], Search] = owner
    return found


BUILDERS: Mapping[str, Callable[[Space, Any], Search]] = {
    name: _builder(search.build) for name, search in SEARCHES.items()
}
"""From a search's name in the spec to what builds it from a space and the strategy's Config."""
