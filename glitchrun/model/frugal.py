"""Keep the peak while loading close to what is held in the end."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_WHILE_LOADING = 256 * 1024
_AFTERWARDS = 4 * 1024 * 1024
_KEPT = 32 * 1024 * 1024
"""Free memory at the heap's end that is kept for the next operation of a pass."""
_SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def frugal() -> Iterator[None]:
    """Load one parameter after another, and give freed memory back to the system at once.

    transformers reads ahead on threads, which would put every expert of a checkpoint beside the
    stacks they are merged into. And glibc keeps freed blocks of up to 32 MiB in its heap, in holes
    that the next tensor does not fit: a Mixtral of 215 MB that ends as 56 MB in int4 peaked at
    147 MB instead of 88 MB. Blocks above the threshold are pages of their own.
    """
    before = os.environ.get(_SEQUENTIAL)
    os.environ[_SEQUENTIAL] = "1"
    _set_heap(_WHILE_LOADING, kept=_WHILE_LOADING)
    try:
        yield
    finally:
        # Larger blocks keep pages of their own, where glibc would adapt its threshold to them:
        # with that a long scan grew to 17 GB. Smaller ones, such as what attention gives for a
        # batch, come from the heap again and again: fresh pages took as long as the operation.
        _set_heap(_AFTERWARDS, kept=_KEPT)
        if before is None:
            del os.environ[_SEQUENTIAL]
        else:
            os.environ[_SEQUENTIAL] = before


def _set_heap(own_pages_from: int, kept: int) -> None:
    """Blocks from one size on get pages of their own; `kept` free bytes stay with the heap."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, own_pages_from)
            mallopt(_M_TRIM_THRESHOLD, kept)
