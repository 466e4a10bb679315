"""How many rows a forward pass may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.batch_sizes import CACHE_HEADROOM, SAMPLE_BATCH, SCREEN_BATCH, VERIFY_BATCH


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
    standard = SAMPLE_BATCH if sampling else VERIFY_BATCH
    return _fitting(standard, model, row_bytes(model, positions, grows=sampling), free_bytes)


def screening_rows(model: LoadedModel, positions: int, free_bytes: int) -> int:
    """Rows of a pass of the frozen-suffix screen; `positions` are those of the whole prompt."""
    return _fitting(SCREEN_BATCH, model, row_bytes(model, positions), free_bytes)


def _fitting(standard: Mapping[str, int], model: LoadedModel, each: int, free_bytes: int) -> int:
    rows = standard.get(model.device.type, standard["cpu"])
    while rows > 1 and rows * each > free_bytes // 2:
        rows //= 2
    return rows


def row_bytes(model: LoadedModel, positions: int, *, grows: bool = False) -> int:
    """Bytes one row of a pass needs at most: keys, values, a layer's activations, float32 logits.

    Attention scores are left out: prompts are tens of tokens long. Where rows grow by a position a
    pass (`grows`), the cache is there twice while finished rows are taken out of it.
    """
    text = model.config.get_text_config()
    # On a CPU the fast backend widens narrow weights and computes in float32.
    narrow = torch.finfo(model.compute_dtype).bits // 8
    width = 4 if model.device.type == "cpu" else narrow
    hidden = model.input_embeddings.shape[1]
    heads = _first(text, "num_attention_heads", "num_heads") or 1
    groups = _first(text, "num_key_value_heads") or heads
    inner = _first(text, "intermediate_size") or 4 * hidden
    position = 2 * groups * (_first(text, "head_dim") or -(-hidden // heads)) * width
    copies = 2 if grows else 1
    layers = _first(text, "num_hidden_layers", "num_layers", "n_layers") or 1
    cache = copies * layers * position * (positions + CACHE_HEADROOM)
    activations = (6 * hidden + 3 * inner) * positions * width
    logits = 6 * model.vocab_size * 4
    return cache + activations + logits


def _first(config: Any, *names: str) -> int:
    """The first of these sizes that a configuration has; the largest where layers differ; else 0.

    A model without attention has no heads.
    """
    for name in names:
        found = getattr(config, name, None)
        if isinstance(found, list | tuple) and found:
            found = max(found)
        if isinstance(found, int) and found > 0:
            return found
    return 0
