"""A model's state after past positions, row by row.

Keys and values, the states of convolutions and of recurrences, or several of these: whatever the
model's own object holds, each of its tensors has one entry for each row. So rows are taken out of
it without knowing what it is. `choose` proves on the model at hand that this is so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn


class CacheMode(Enum):
    """How a model continues after past positions."""

    ROWS = "its cache"
    """By its cache, whose rows are taken out, repeated and reordered."""
    STEPS = "its cache for one token at a time"
    """By its cache where one more token comes; several are run with all that came before them."""
    NOTHING = "whole prompts"
    """By running all that came before once more."""


def take_rows(state: Any, rows: Tensor, count: int) -> Any:
    """A state of the rows at these indices `(R,)`; the one given stays as it was.

    Args:
        state: What a model keeps of `count` rows.
        rows: Indices on the state's device; each may come any number of times.
        count: Rows of the state.
    """
    return _RowSelector(rows, count).of(state)


class _RowSelector:
    def __init__(self, rows: Tensor, count: int) -> None:
        self._rows = rows
        self._count = count
        self._made: dict[int, Any] = {}
        """By the id of what it is a copy of: two names for one tensor stay so."""

    def of(self, value: Any) -> Any:
        if id(value) not in self._made:
            self._made[id(value)] = self._copied(value)
        return self._made[id(value)]

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._taken(value)
        if isinstance(value, Mapping) and not hasattr(value, "__dict__"):
            return type(value)({key: self.of(part) for key, part in value.items()})  # type: ignore[call-arg]
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self.of(part) for part in value)
        if not _is_of_transformers(value):
            return value
        made = copy.copy(value)
        for name, part in list(vars(made).items()):
            setattr(made, name, self.of(part))
        return made

    def _taken(self, tensor: Tensor) -> Tensor:
        if tensor.dim() < 2 or len(tensor) != self._count:
            return tensor.clone()  # models write into their states
        return tensor.index_select(0, self._rows.to(tensor.device))


def _is_of_transformers(value: Any) -> bool:
    """Whether an object is part of a cache: of a class of transformers or of a checkpoint's own."""
    if isinstance(value, type | nn.Module | torch.dtype) or not hasattr(value, "__dict__"):
        return False
    package = type(value).__module__.partition(".")[0]
    is_config = hasattr(value, "model_type")
    return package in ("transformers", "transformers_modules") and not is_config
