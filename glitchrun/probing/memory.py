"""How many rows a forward pass may have."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from glitchrun.model.loaded import LoadedModel

_STANDARD_ROWS = {"cpu": 64, "cuda": 512}
"""Rows beyond which a pass gains no speed: on two CPU cores 128 was no faster than 64."""
_SAMPLING_ROWS = {"cpu": 256, "cuda": 512}
"""The same where a row is one position: products of 256 rows were up to twice as fast as of 64."""

_SCREENING_ROWS = {"cpu": 256, "cuda": 2048}
"""The same where a row is the two positions of the frozen-suffix screen."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def standard_rows(
    model: LoadedModel, positions: int, free_bytes: int, *, sampling: bool = False
) -> int:
    """The largest power of two of rows that fits in half of `free_bytes`.

    Args:
        model: What will run.
        positions: Prompt positions of a row, prefix and suffix.
        free_bytes: Memory free on the model's device.
        sampling: Continuations grow by one position a pass.
    """
    standard = _SAMPLING_ROWS if sampling else _STANDARD_ROWS
    return _fitting(standard, model, positions, free_bytes)


def screening_rows(model: LoadedModel, positions: int, free_bytes: int) -> int:
    """Rows of a pass of the frozen-suffix screen; `positions` are those of the whole prompt."""
    return _fitting(_SCREENING_ROWS, model, positions, free_bytes)


def _fitting(
    standard: Mapping[str, int], model: LoadedModel, positions: int, free_bytes: int
) -> int:
    rows = standard.get(model.device.type, standard["cpu"])
    while rows > 1 and rows * row_bytes(model, positions) > free_bytes // 2:
        rows //= 2
    return rows


def row_bytes(model: LoadedModel, positions: int) -> int:
    """Bytes one row of a pass needs at most: keys, values, a layer's activations, float32 logits.

    Attention scores are left out: prompts are tens of tokens long.
    """
    text = model.config.get_text_config()
    width = torch.finfo(model.compute_dtype).bits // 8
    layers, hidden = text.num_hidden_layers, text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    cache = 2 * layers * hidden * positions * width
    activations = (6 * hidden + 3 * inner) * positions * width
    logits = 6 * model.vocab_size * 4
    return cache + activations + logits
