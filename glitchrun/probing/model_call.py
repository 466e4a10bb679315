"""Calls a model's own forward pass: arguments, errors, float32 arithmetic, rows of its cache."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import glitchrun
from glitchrun.errors import GlitchrunError, PreflightError, RunError
from glitchrun.probing.memory_limits import is_out_of_memory

_CACHE_NAMES = ("past_key_values", "cache", "cache_params", "state")
"""Names under which models accept and return their cache of past positions."""
_PACKAGE = Path(glitchrun.__file__).parent
_TORCH = Path(torch.__file__).parent
_LOW_PRECISION = (torch.bfloat16, torch.float16)


class ModelCall:
    """Calls a causal model with the arguments that its signature has.

    Raises:
        PreflightError: The model takes no token ids.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        names = inspect.signature(module.forward).parameters
        if "input_ids" not in names:
            raise PreflightError(
                f"{type(module).__name__} takes no token ids (`input_ids`), so it cannot be "
                "run token by token; set model.path to a causal language model of text"
            )
        self._takes_use_cache = "use_cache" in names
        self._takes_logits_to_keep = "logits_to_keep" in names
        self._cache_name = next((name for name in _CACHE_NAMES if name in names), None)

    def __call__(
        self,
        ids: Tensor,
        cache: Any = None,
        *,
        use_cache: bool = False,
        all_positions: bool = False,
    ) -> tuple[Tensor, Any]:
        """Runs ids after the positions in a cache.

        Args:
            ids: Token ids on the model's device, `(B, S)`.
            cache: The cache that an earlier call returned. It is used up.
            use_cache: Whether to return a cache.
            all_positions: Whether to return the logits of all positions, not only of the last one.

        Returns:
            Logits `(B, V)` after the last position, or `(B, S, V)`; and the cache, or None if the
            model returns none.

        Raises:
            RunError: The model's forward pass failed.
            PreflightError: The model returns no next-token logits.
        """
        kwargs: dict[str, Any] = {"use_cache": use_cache} if self._takes_use_cache else {}
        if self._takes_logits_to_keep and not all_positions:
            kwargs["logits_to_keep"] = 1
        if cache is not None and self._cache_name is not None:
            kwargs[self._cache_name] = cache
        with model_errors(self.module):
            out = self.module(input_ids=ids, **kwargs)
        logits = self._logits(out, ids)
        returned = getattr(out, self._cache_name, None) if use_cache and self._cache_name else None
        return logits if all_positions else logits[:, -1], returned

    def without_head(self, ids: Tensor, cache: Any) -> Any:
        """Runs ids `(B, S)` after the positions in a cache, without the head; returns the cache."""
        assert self._cache_name is not None  # there is a cache
        with model_errors(self.module):
            out = self.module.base_model(input_ids=ids, use_cache=True, **{self._cache_name: cache})
        return getattr(out, self._cache_name)

    def _logits(self, out: Any, ids: Tensor) -> Tensor:
        logits = getattr(out, "logits", None)
        if isinstance(logits, Tensor) and logits.dim() == 3 and len(logits) == len(ids):
            return logits
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
        raise PreflightError(
            f"{type(self.module).__name__} does not return next-token logits for each row of ids "
            f"(logits: {shape} for ids {tuple(ids.shape)}); set model.path to a causal language "
            "model of text"
        )


# Errors ---------------------------------------------------------------------------------------


@contextmanager
def model_errors(module: Any) -> Iterator[None]:
    """Turns errors of a model's own code into a RunError.

    An out-of-memory error passes unchanged, because the caller may try a smaller batch. So does an
    error of glitchrun's own code, with its traceback.

    Raises:
        RunError: The model's forward pass failed; names the error and where it was raised.
    """
    try:
        yield
    except GlitchrunError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or _is_ours(error):
            raise
        first, _, _ = str(error).strip().partition("\n")
        raise RunError(
            f"the forward pass of {type(module).__name__} failed: {type(error).__name__}: {first} "
            f"({_where(error)}). Its config.json and weights may not belong together, or this "
            "version of transformers cannot run it here: try model.quantization: float32, "
            "model.device: cpu, or another version of transformers"
        ) from error


def _is_ours(error: Exception) -> bool:
    # A RuntimeError is torch's, about the model.
    file = Path(_origin(error)[0])
    return file.is_relative_to(_PACKAGE) and not isinstance(error, RuntimeError)


def _where(error: Exception) -> str:
    file, line = _origin(error)
    return f"{Path(file).parent.name}/{Path(file).name}:{line}"


def _origin(error: Exception) -> tuple[str, int]:
    """File and line that raised an error, without the frames of torch and of this module.

    This module is in the traceback of every error: it makes the call, and in float32 it wraps every
    operation of the model.
    """
    frames = [
        (frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)
    ]
    outside = [
        (file, line)
        for file, line in frames
        if not Path(file).is_relative_to(_TORCH) and Path(file) != Path(__file__)
    ]
    return (outside or frames or [(__file__, 0)])[-1]


# Float32 arithmetic ---------------------------------------------------------------------------


class Float32Arithmetic(TorchFunctionMode):
    """While active, every operation on bfloat16 or float16 tensors is done in float32.

    Weights are widened one operation at a time, so the extra memory is one weight, not one model.
    Quantized weights keep their values: they are dequantized as usual and multiplied in float32.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return _widen_dtype(func(*args))
        return func(*tree_map(_widen, args), **tree_map(_widen, kwargs or {}))


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _LOW_PRECISION else value
    return _widen_dtype(value)


def _widen_dtype(value: Any) -> Any:
    # Without this, `x.to(weight.dtype)` would round in between.
    return torch.float32 if isinstance(value, torch.dtype) and value in _LOW_PRECISION else value


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
