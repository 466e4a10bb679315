"""Takes away the superuser's right to ignore permissions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_CAPABILITIES = 0x20080522
"""Version of the structures that capset(2) takes."""
_OVERRIDE = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets the superuser read and write everything."""


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions count for the superuser as for anybody, as long as the block runs."""
    before = drop()
    try:
        yield
    finally:
        _set_capabilities(before)


def drop() -> list[int]:
    """Makes permissions count from now on; returns the capabilities before."""
    before = _capabilities()
    _set_capabilities([before[0] & ~_OVERRIDE, *before[1:]])
    return before


def _capabilities() -> list[int]:
    """This thread's effective, permitted and inheritable sets, the lower halves first."""
    data = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    assert ctypes.CDLL(None).capget(header, data) == 0
    return list(data)


def _set_capabilities(sets: list[int]) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)(*sets)) == 0
