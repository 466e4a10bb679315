"""A search of the lowest values of an indicator first, as Land and Bartolo choose candidates."""

from __future__ import annotations

from glitchrun.errors import PreflightError
from glitchrun.search.base import Parameters, Space
from glitchrun.search.ordered import Ordered
from glitchrun.vocabulary.indicators import Indicators


def by_indicator(space: Space, config: Parameters) -> Ordered:
    """Ascending value of the indicator that `indicator` names.

    Raises:
        PreflightError: the indicator needs reference rows, and the vocabulary has none.
    """
    found = space.indicators or Indicators.of_tables(
        space.input_embeddings, space.embeddings, space.vocabulary
    )
    name = str(config.own["indicator"])
    name = found.main if name == "auto" else name
    values = found.values(name)
    if values is None:
        raise PreflightError(
            f"indicator: {name} needs rows that training hardly changed, and the vocabulary has "
            "no unused, unreachable or byte token; name such rows with "
            "tokens: {unused: {ids: [...]}}"
        )
    known = values[space.ids].nan_to_num(nan=float("inf"))
    return Ordered(space.ids[known.sort(stable=True).indices].tolist())
