"""Keep the peak while loading close to what is held in the end."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3  # mallopt(3)
_WHILE_LOADING = 256 * 1024
_AFTERWARDS = 1024 * 1024
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
    _own_pages_from(_WHILE_LOADING)
    try:
        yield
    finally:
        # 1 MiB rather than glibc's adaptive threshold: with that one a long scan grew to 17 GB.
        _own_pages_from(_AFTERWARDS)
        if before is None:
            del os.environ[_SEQUENTIAL]
        else:
            os.environ[_SEQUENTIAL] = before


def _own_pages_from(size: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, size)
