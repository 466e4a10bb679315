"""Compares backends with the loaded model's plain forward pass over whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.states import CacheMode

TOKENS = 16
Logits = list[Tensor]
"""After each of several passes, `(B, V)` each, float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class PromptSeries:
    """Ids as in a run: a prefix, a suffix for each row, and tokens that follow one by one."""

    rows: int
    prefix: int
    suffix: int
    chosen: tuple[int, ...]
    """The rows that continue after the suffix: some left out, repeated and reordered."""
    steps: int

    def ids(self, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix `(P,)`, suffixes `(B, S)` and following tokens `(R, steps)`, spread over the
        vocabulary."""
        each = self.suffix + self.steps
        spread = torch.arange(self.prefix + self.rows * each) * 7919 % vocab
        rows = spread[self.prefix :].view(self.rows, each)
        chosen = list(self.chosen)
        return spread[: self.prefix], rows[:, : self.suffix], rows[chosen, self.suffix :]


FIRST = PromptSeries(rows=TOKENS, prefix=6, suffix=5, chosen=(TOKENS - 1, 3, 3), steps=1)
SHORT = PromptSeries(rows=3, prefix=2, suffix=2, chosen=(2, 0, 2, 2, 1), steps=2)
"""Its prompts are shorter than the windows of convolutions."""


def run(backend: Backend, series: PromptSeries) -> Logits:
    """A backend's logits for a series, in float32."""
    prefix, suffixes, following = series.ids(backend.model.vocab_size)
    cache = backend.start(prefix.tolist(), series.rows, float32=True)
    logits, cache = backend.step(suffixes, cache, float32=True)
    found = [logits.cpu()]
    cache = backend.select(cache, torch.tensor(series.chosen))
    for step in range(series.steps):
        logits, cache = backend.step(following[:, step : step + 1], cache, float32=True)
        found.append(logits.cpu())
    return found


def uncached(backend: Backend, series: PromptSeries) -> Tensor:
    """A backend's logits `(B, V)` for a series's suffixes, where nothing follows them."""
    prefix, suffixes, _ = series.ids(backend.model.vocab_size)
    return backend.last_logits(prefix.tolist(), suffixes, float32=True).cpu()


def plain(model: LoadedModel, series: PromptSeries) -> Logits:
    """The logits of the model's plain forward pass for the same whole prompts, without a cache.

    The first prompt is run alone as well: its logits may not depend on the others.
    """
    backend = Backend(model, CacheMode.NOTHING)
    found = run(backend, series)
    prefix, suffixes, _ = series.ids(model.vocab_size)
    alone = backend.logits_alone([*prefix.tolist(), *suffixes[0].tolist()], float32=True)
    found[0][0] = alone.cpu()
    return found


def largest_difference(ours: Logits, theirs: Logits) -> float:
    """The largest difference, as a share of the largest logit."""
    scale = max(float(part.abs().max()) for part in theirs)
    pairs = zip(ours, theirs, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / max(scale, 1.0)


def in_its_own_arithmetic(backend: Backend, all_series: Sequence[PromptSeries]) -> None:
    """Runs all series in the arithmetic of the weights, to provoke errors only.

    Raises:
        RunError: the model's forward pass failed.
    """
    for series in all_series:
        prefix, suffixes, following = series.ids(backend.model.vocab_size)
        cache = backend.start(prefix.tolist(), series.rows)
        _, cache = backend.step(suffixes, cache)
        cache = backend.select(cache, torch.tensor(series.chosen))
        backend.step(following[:, :1], cache)


def is_noncausal(model: LoadedModel) -> bool:
    """Whether logits at a position change with the tokens after it: then they are no prediction."""
    call, device = Backend(model)._call, model.input_embeddings.device
    first, second = (
        torch.tensor([[*range(3, 9), *tail]], device=device) % model.vocab_size
        for tail in ((11, 12), (17, 19))
    )
    with torch.no_grad():
        (one, _), (other, _) = (call(ids, every=True) for ids in (first, second))
    scale = one.abs().max().clamp(min=1.0)
    return bool((one[:, :6] - other[:, :6]).abs().max() > 1e-2 * scale)
