"""One file a strategy: a frozen `Config` and `run(config, context, history) -> Iterator[Event]`.

A strategy whose prompts are not just its `probes` lists them in a function `prompt_ids`; see
prompt_ids.py. A strategy is found by its name, which is also the name of its module here and of its
fragment in `spec/schema/strategies/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from glitchrun.events import Batch, Event
from glitchrun.strategies.context import Context


class Strategy(Protocol):
    """What a strategy's module offers."""

    Config: type[Any]

    def run(self, config: Any, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
        """Goes on after the batches in `history` and yields what is new."""


def load(name: str) -> Strategy:
    """The strategy of a name that the schema accepts."""
    return cast("Strategy", import_module(f"glitchrun.strategies.{name}"))


def configure(strategy: Strategy, params: Mapping[str, Any]) -> Any:
    """A strategy's Config from a step's parameters; lists become tuples, so it stays frozen.

    Parameters that are no field of it are those of a search of another package: its field `own`.
    """
    frozen = {key: _freeze(value) for key, value in params.items()}
    fields = strategy.Config.__dataclass_fields__
    own = {key: frozen.pop(key) for key in list(frozen) if key not in fields}
    return strategy.Config(**frozen, **({"own": own} if own else {}))


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
