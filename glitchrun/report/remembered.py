"""Remembers what was computed from the last records, which many parts of a page ask for again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

_Record = TypeVar("_Record")
_Result = TypeVar("_Result")
_LAST = 8
"""Results kept by function: the steps of one run, seldom more."""


def remembered(function: Callable[[_Record], _Result]) -> Callable[[_Record], _Result]:
    """The function, which computes nothing for an object that is among the last ones it was given.

    Records are frozen, but cannot be hashed. They are compared by identity. Callers must not change
    the result.
    """
    last: deque[tuple[_Record, _Result]] = deque(maxlen=_LAST)

    @wraps(function)
    def wrapper(record: _Record) -> _Result:
        for known, result in tuple(last):
            if known is record:
                return result
        result = function(record)
        last.append((record, result))
        return result

    return wrapper
