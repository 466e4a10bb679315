"""The one place where a model's own forward pass is called."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import glitchrun
from glitchrun.errors import GlitchrunError, PreflightError, RunError
from glitchrun.probing.memory_limits import is_out_of_memory

_STATES = ("past_key_values", "cache_params", "state")
"""Names under which models take what they keep of earlier positions, and give it back."""
_OURS = Path(glitchrun.__file__).parent
_TORCH = Path(torch.__file__).parent
_ARITHMETIC = _OURS / "probing" / "float32.py"
"""Stands around every operation of a model in float32, so it is in the way of every error."""


class ModelCall:
    """Calls a causal model with the arguments that its own signature has."""

    def __init__(self, module: Any) -> None:
        self.module = module
        names = inspect.signature(module.forward).parameters
        if "input_ids" not in names:
            raise PreflightError(
                f"{type(module).__name__} takes no token ids (`input_ids`), so it cannot be "
                "run token by token; set model.path to a causal language model of text"
            )
        self._caches = "use_cache" in names
        self._keeps_last = "logits_to_keep" in names
        self._state = next((name for name in _STATES if name in names), None)

    def __call__(
        self, ids: Tensor, state: Any = None, *, keep: bool = False, every: bool = False
    ) -> tuple[Tensor, Any]:
        """Runs ids `(B, S)` behind a state that an earlier call returned.

        Args:
            ids: Token ids, on the model's device.
            state: What the model keeps of earlier positions; used up.
            keep: Whether a state is wanted.
            every: Whether logits of every position are wanted, not of the last one alone.

        Returns:
            Logits `(B, V)` after the last position, or `(B, S, V)`, and the state: None where the
            model gives none.

        Raises:
            RunError: the model's forward pass failed.
        """
        given: dict[str, Any] = {"use_cache": keep} if self._caches else {}
        if self._keeps_last and not every:
            given["logits_to_keep"] = 1
        if state is not None and self._state is not None:
            given[self._state] = state
        with model_errors(self.module):
            out = self.module(input_ids=ids, **given)
        logits = self._logits(out, ids)
        kept = getattr(out, self._state, None) if keep and self._state else None
        return logits if every else logits[:, -1], kept

    def body(self, ids: Tensor, state: Any) -> Any:
        """Runs ids behind a state without the head; returns the state."""
        assert self._state is not None  # there is a state
        with model_errors(self.module):
            out = self.module.base_model(input_ids=ids, use_cache=True, **{self._state: state})
        return getattr(out, self._state)

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


@contextmanager
def model_errors(module: Any) -> Iterator[None]:
    """Turns what a model's own code raises into a RunError.

    Out of memory stays what it is: whoever chose the batch may try a smaller one. An error that
    comes from glitchrun's own code keeps its traceback.

    Raises:
        RunError: the model's forward pass failed; names the error and where it was raised.
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
    """Whether glitchrun's code raised an error: torch's own (RuntimeError) are the model's."""
    file = Path(_raised(error)[0])
    return file.is_relative_to(_OURS) and not isinstance(error, RuntimeError)


def _where(error: Exception) -> str:
    file, line = _raised(error)
    return f"{Path(file).parent.name}/{Path(file).name}:{line}"


def _raised(error: Exception) -> tuple[str, int]:
    """File and line that raised an error, torch's own frames aside."""
    frames = [
        (frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)
    ]
    outside = [
        (file, line)
        for file, line in frames
        if not Path(file).is_relative_to(_TORCH) and Path(file) != _ARITHMETIC
    ]
    own_call = (str(Path(__file__)), 0)
    inside = [place for place in outside if Path(place[0]) != Path(__file__)]
    return (inside or frames or [own_call])[-1]
