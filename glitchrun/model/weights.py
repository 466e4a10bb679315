"""A checkpoint's tensors, opened but not read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from glitchrun.errors import ModelUnavailable


@contextmanager
def open_safetensors(files: tuple[Path, ...], *, mapped: bool) -> Iterator[dict[str, Any]]:
    """Every tensor's name with a slice object that reads it on demand, `slice[...]`.

    `mapped` hands out views of the mapped file, at no cost until they are used: right where weights
    stay as stored. Without it each tensor is read into memory of its own and can be let go; mapped
    pages of a checkpoint that is converted would stay in the resident set beside the result.
    """
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt", backend="mmap" if mapped else "pread")
                stack.enter_context(handle)
            except (SafetensorError, OSError) as error:
                raise ModelUnavailable(
                    f"{file}: cannot be read ({error}); it may be cut short, fetch it again"
                ) from error
            tensors.update({name: handle.get_slice(name) for name in handle.keys()})  # noqa: SIM118
        yield tensors


@contextmanager
def open_pickled(files: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    """The tensors of pickled weight files, mapped; torch's restricted unpickler runs no code."""
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            tensors.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
        # The archive reader raises RuntimeError, the unpickler the rest.
        except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
            raise ModelUnavailable(
                f"{file}: cannot be read as weights alone ({str(error).splitlines()[0]})"
            ) from error
    yield tensors
