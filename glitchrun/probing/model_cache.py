"""Selects rows of any model's cache of past positions.

A cache may contain keys and values, states of convolutions and of recurrences, or several of these.
In all of them the first dimension of a tensor is the row, so rows can be selected without knowing
the kind of cache. `backend_selection` tests this on the model at hand.
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

    FULL = "its cache"
    """With its cache, whose rows are selected, repeated and reordered."""
    ONE_TOKEN = "its cache for one token at a time"
    """With its cache for one more token; for several, everything is run again."""
    NONE = "whole prompts"
    """Everything is run again."""


def select_rows(cache: Any, rows: Tensor, count: int) -> Any:
    """Returns a cache of the rows at these indices; the given one is unchanged.

    Args:
        cache: A model's cache of `count` rows.
        rows: Indices `(R,)` on the cache's device; each may occur any number of times.
        count: Rows of the cache.
    """
    return _RowSelector(rows, count).copy(cache)


class _RowSelector:
    def __init__(self, rows: Tensor, count: int) -> None:
        self._rows = rows
        self._count = count
        self._copies: dict[int, Any] = {}
        """By the id of the original: two names of one tensor still name one tensor."""

    def copy(self, value: Any) -> Any:
        if id(value) not in self._copies:
            self._copies[id(value)] = self._new_copy(value)
        return self._copies[id(value)]

    def _new_copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._selected(value)
        if isinstance(value, Mapping) and not hasattr(value, "__dict__"):
            return type(value)({key: self.copy(part) for key, part in value.items()})  # type: ignore[call-arg]
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self.copy(part) for part in value)
        if not _is_part_of_cache(value):
            return value
        copied = copy.copy(value)
        for name, part in list(vars(copied).items()):
            setattr(copied, name, self.copy(part))
        return copied

    def _selected(self, tensor: Tensor) -> Tensor:
        if tensor.dim() < 2 or len(tensor) != self._count:
            return tensor.clone()  # models write into their caches
        return tensor.index_select(0, self._rows.to(tensor.device))


def _is_part_of_cache(value: Any) -> bool:
    """Whether an object's class belongs to transformers or to a checkpoint's own code."""
    if isinstance(value, type | nn.Module | torch.dtype) or not hasattr(value, "__dict__"):
        return False
    package = type(value).__module__.partition(".")[0]
    is_config = hasattr(value, "model_type")
    return package in ("transformers", "transformers_modules") and not is_config
