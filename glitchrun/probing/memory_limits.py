"""How many rows a forward pass may have, by memory and by time, and what to do when memory runs out
all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from glitchrun import boundary
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.passes import CACHE_HEADROOM, SAMPLE_BATCH, SCREEN_BATCH, VERIFY_BATCH

LOST_SECONDS = 20.0
"""Time in which a token should get all of its answers. A kill loses what was sampled for tokens
without all of them, and on average they have half."""
_LEAST = 48
"""Attempts that run side by side even if that takes longer. Fewer hardly save time, because a pass
reads the same weights: on SmolLM2, 16 rows took a sixth of the time of 256."""
_CHANGE = 1.25


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of torch reports that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, RuntimeError) and boundary.is_out_of_memory(error)


def prepare_retry(error: RuntimeError, rows: int, counters: Counter[str]) -> None:
    """Frees memory for a retry with half of `rows`, and counts it in `batch_halvings`.

    Raises:
        RuntimeError: `error` itself, if it does not report that memory ran out or one row is too
            many already.
    """
    if rows == 1 or not is_out_of_memory(error):
        raise error
    counters["batch_halvings"] += 1
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def standard_rows(
    model: LoadedModel, positions: int, free_bytes: int, *, sampling: bool = False
) -> int:
    """Returns the largest power of two of rows that fits in half of `free_bytes`.

    Args:
        model: The model to be run.
        positions: Prompt positions of a row, prefix and suffix.
        free_bytes: Memory free on the model's device.
        sampling: Whether rows are continuations that grow by one position per pass.
    """
    standard = SAMPLE_BATCH if sampling else VERIFY_BATCH
    return _fitting(standard, model, row_bytes(model, positions, grows=sampling), free_bytes)


def screening_rows(model: LoadedModel, positions: int, free_bytes: int) -> int:
    """Returns the rows of a pass of the frozen-suffix screen.

    Args:
        model: The model to be run.
        positions: Positions of the whole prompt.
        free_bytes: Memory free on the model's device.
    """
    return _fitting(SCREEN_BATCH, model, row_bytes(model, positions), free_bytes)


def _fitting(
    standard: Mapping[str, int], model: LoadedModel, bytes_per_row: int, free_bytes: int
) -> int:
    rows = standard.get(model.device.type, standard["cpu"])
    while rows > 1 and rows * bytes_per_row > free_bytes // 2:
        rows //= 2
    return rows


def row_bytes(model: LoadedModel, positions: int, *, grows: bool = False) -> int:
    """Returns an upper bound of the bytes that one row of a pass needs.

    It covers keys, values, one layer's activations and float32 logits. Attention scores are left
    out, because prompts are tens of tokens long.

    Args:
        model: The model to be run.
        positions: Prompt positions of a row.
        grows: Whether rows grow by a position per pass. The cache then exists twice while finished
            rows are taken out of it.
    """
    config = model.config.get_text_config()
    # On a CPU the fast backend widens narrow weights and computes in float32.
    stored = torch.finfo(model.compute_dtype).bits // 8
    element_bytes = 4 if model.device.type == "cpu" else stored
    hidden = model.hidden_size
    heads = _first(config, "num_attention_heads", "num_heads") or 1
    num_kv_heads = _first(config, "num_key_value_heads") or heads
    head_dim = _first(config, "head_dim") or -(-hidden // heads)
    intermediate = _first(config, "intermediate_size") or 4 * hidden
    layers = _first(config, "num_hidden_layers", "num_layers", "n_layers") or 1
    copies = 2 if grows else 1
    cache = (
        copies * layers * 2 * num_kv_heads * head_dim * element_bytes * (positions + CACHE_HEADROOM)
    )
    activations = (6 * hidden + 3 * intermediate) * positions * element_bytes
    logits = 6 * model.vocab_size * 4
    return cache + activations + logits


def _first(config: Any, *names: str) -> int:
    """The first of these sizes in a configuration: the largest if layers differ, 0 if none.

    A model without attention has no heads.
    """
    for name in names:
        found = getattr(config, name, None)
        if isinstance(found, list | tuple) and found:
            found = max(found)
        if isinstance(found, int) and found > 0:
            return found
    return 0


class Pace:
    """A number of attempts that follows the measured time of passes. It changes no result."""

    def __init__(self, passes: int) -> None:
        """`passes` is the number of passes that a token usually takes."""
        self._target = LOST_SECONDS / passes
        self._limit = float(_LEAST)

    def limit(self, most: int) -> int:
        """Attempts to run side by side, at most `most`."""
        return min(most, int(self._limit))

    def measure(self, attempts: int, seconds: float) -> None:
        """Takes a pass into account.

        Args:
            attempts: How many the pass had.
            seconds: The time it took.
        """
        if seconds > self._target:
            self._limit = max(_LEAST, min(self._limit, attempts / _CHANGE))
        elif seconds * _CHANGE < self._target and attempts >= self._limit / _CHANGE:
            self._limit *= _CHANGE
