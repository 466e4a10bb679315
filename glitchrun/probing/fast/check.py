"""Holds the fast path against transformers' own on the model at hand."""

from __future__ import annotations

import torch

from glitchrun.probing.backend import Backend

TOKENS = 16
_PREFIX, _SUFFIX, _NEXT = 6, 5, 1


def largest_difference(fast: Backend, generic: Backend) -> float:
    """How far the two backends' float32 logits lie apart at most, as a share of the largest logit.

    Both run the same ids, spread over the vocabulary, with rows taken out in between.
    """
    theirs, ours = _logits(generic), _logits(fast)
    scale = theirs.abs().max().clamp(min=1.0)
    return float((ours - theirs).abs().max() / scale)


def _logits(backend: Backend) -> torch.Tensor:
    """Logits (2 * TOKENS + 3, V): of a batch whose cache is kept, of three of its rows one position
    later, and of the batch again without a cache to go on with."""
    size = backend.model.vocab_size
    spread = torch.arange(_PREFIX + TOKENS * (_SUFFIX + _NEXT)) * 7919 % size
    suffixes = spread[_PREFIX:].view(TOKENS, _SUFFIX + _NEXT)
    cache = backend.start(spread[:_PREFIX].tolist(), TOKENS, float32=True)
    first, cache = backend.step(suffixes[:, :_SUFFIX], cache, float32=True)
    some = torch.tensor([TOKENS - 1, 3, 3])
    later, _ = backend.step(suffixes[some, _SUFFIX:], backend.select(cache, some), float32=True)
    again = backend.last_logits(spread[:_PREFIX].tolist(), suffixes[:, :_SUFFIX], float32=True)
    return torch.cat([first, later, again]).cpu()
