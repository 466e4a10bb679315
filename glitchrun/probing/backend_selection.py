"""Selects the backend that runs a model, by comparing logits with its plain forward pass.

1. The plain forward pass over whole prompts, without a cache, gives the reference logits.
2. The fast backend is used if the model has a Llama layout and the logits agree.
3. Otherwise the generic backend is used, with the first `CacheMode` whose logits agree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from glitchrun.boundary import first_line, foreign_errors
from glitchrun.errors import PreflightError, RunError
from glitchrun.model.loaded import LoadedModel
from glitchrun.model.streamed import StreamedModel
from glitchrun.probing.arithmetic import choose
from glitchrun.probing.backend import Backend
from glitchrun.probing.fast.llama_layout import OtherLayoutError, recognize
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.probing.memory_limits import is_out_of_memory
from glitchrun.probing.model_call import CacheMode
from glitchrun.probing.streamed_backend import streamed_backend

log = logging.getLogger(__name__)

TOLERANCE = 2e-5
"""How far float32 logits summed in two orders may differ, as a share of the largest; 2e-6 was seen.
It is a fifth of the rounding that verdicts allow for."""
_ROWS = 16
_MISFIT = (RunError, RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""Errors of the fast backend on a model that only resembles a Llama: modules take other arguments,
or tensors have other sizes."""

Logits = list[Tensor]
"""After each of several passes, `(B, V)`, float32 on the CPU."""


def best_backend(model: LoadedModel, arithmetic: str = "auto") -> tuple[Backend, str]:
    """Returns the fast backend if its logits are the model's, else the generic one; and why.

    Args:
        model: The model to be run.
        arithmetic: `execution.arithmetic` of the spec.

    Raises:
        PreflightError: The model is not a causal language model.
        RunError: Its forward pass fails on a few tokens.
    """
    if isinstance(model, StreamedModel):
        trial, reason = _try_fast(model.trial, _plain_logits(model.trial, _TYPICAL), arithmetic)
        streamed = streamed_backend(model, trial, reason, arithmetic)
        why = f"a small model of its kind has the {reason}; {streamed.chosen.why}"
        return streamed, f"streamed: {why}"
    reference = _plain_logits(model, _TYPICAL)
    fast, reason = _try_fast(model, reference, arithmetic)
    if fast is not None:
        return fast, f"fast: {reason}; {fast.chosen.why}"
    generic, note = _select_cache_mode(model, reference)
    return generic, f"generic: {reason}{note}"


def generic_backend(model: LoadedModel) -> Backend:
    """Returns the backend that runs any causal model, with as much of its cache as works.

    Raises:
        PreflightError: The model is not a causal language model.
        RunError: Its forward pass fails on a few tokens.
    """
    return _select_cache_mode(model, _plain_logits(model, _TYPICAL))[0]


# The fast backend -----------------------------------------------------------------------------


def _try_fast(
    model: LoadedModel, reference: Logits, arithmetic: str
) -> tuple[FastBackend | None, str]:
    """The fast backend if it runs this model, and why it does or does not."""
    try:
        layout = recognize(model.module)
        chosen = choose(layout, model.compute_dtype, model.device, arithmetic)
        fast = FastBackend(model, layout, chosen)
        difference = _fast_difference(fast, reference)
    except OtherLayoutError as error:
        return None, str(error)
    except _MISFIT as error:
        if is_out_of_memory(error):
            raise
        return None, f"the fast path does not fit it ({type(error).__name__}: {error})"
    if difference < TOLERANCE:  # False for NaN
        return fast, f"same logits as transformers on {_ROWS} tokens, within {difference:.0e}"
    return None, f"the fast path's logits differ by {difference:.1g} of the largest"


def _fast_difference(fast: FastBackend, reference: Logits) -> float:
    """The largest difference between its logits and the reference. If its kernels fail, it
    continues without them. Kernels are compiled at their first call, which needs a C compiler and
    Python's headers.
    """
    if not fast.has_kernels:
        return _compare_fast(fast, reference)
    try:
        with foreign_errors(_kernel_error):
            return _compare_fast(fast, reference)
    except RunError as error:
        log.warning("%s; torch's own operations are used instead, which are slower", error)
        fast.disable_kernels()
    return _compare_fast(fast, reference)


def _compare_fast(fast: FastBackend, reference: Logits) -> float:
    # On a GPU, a batch to which nothing is appended runs through kernels of its own.
    prefix, suffixes, _ = _TYPICAL.ids(fast.model.vocab_size)
    uncached = fast.last_logits(prefix.tolist(), suffixes, float32=True).cpu()
    return _largest_difference(
        [*_cached_logits(fast, _TYPICAL), uncached], [*reference, reference[0]]
    )


def _kernel_error(error: Exception) -> RunError:
    if is_out_of_memory(error):
        raise error
    return RunError(f"the kernels for this GPU cannot be used ({first_line(error)})")


# The generic backend --------------------------------------------------------------------------


def _select_cache_mode(model: LoadedModel, reference: Logits) -> tuple[Backend, str]:
    """The first cache mode that gives the reference logits, and why the ones before it do not."""
    short_reference, why = _plain_logits(model, _SHORT), ""
    for cache_mode in CacheMode:
        backend = Backend(model, cache_mode)
        fault = _cache_fault(backend, reference, short_reference)
        if fault is None:
            _refuse_noncausal(backend)
            return backend, f"; it runs with {cache_mode.value}, because {why}" if why else ""
        why = why or fault
    raise RunError(
        f"{type(model.module).__name__} gives a prompt other logits in a batch than alone "
        f"({fault}), so its results would depend on the batch; try model.quantization: float32"
    )


def _cache_fault(backend: Backend, reference: Logits, short_reference: Logits) -> str | None:
    """Why the backend's cache mode is wrong; None if it gives the reference logits."""
    try:
        if backend.cache_mode is not CacheMode.NONE and not backend.returns_cache():
            return "it returns no cache"
        difference = max(
            _largest_difference(_cached_logits(backend, _TYPICAL), reference),
            _largest_difference(_cached_logits(backend, _SHORT), short_reference),
        )
        _run_in_own_arithmetic(backend)
    except RunError as error:
        return f"its cache failed ({error.__cause__ or error})"
    if difference < TOLERANCE:
        return None
    return f"with its cache logits differ by {difference:.1g} of the largest"


def _refuse_noncausal(backend: Backend) -> None:
    if backend.cache_mode is not CacheMode.FULL and _is_noncausal(backend):
        raise PreflightError(
            f"{type(backend.model.module).__name__} attends to the tokens after a position, so "
            "its logits there do not predict the next token; with this config.json it is no "
            "causal language model (is_decoder: true makes one of an encoder trained for it)"
        )


def _is_noncausal(backend: Backend) -> bool:
    """Whether logits at a position change with the tokens after it."""
    first, second = (
        torch.tensor([[*range(3, 9), *tail]], device=backend.device) % backend.model.vocab_size
        for tail in ((11, 12), (17, 19))
    )
    with torch.no_grad():
        (one, _), (other, _) = (backend._call(ids, all_positions=True) for ids in (first, second))
    scale = one.abs().max().clamp(min=1.0)
    return bool((one[:, :6] - other[:, :6]).abs().max() > 1e-2 * scale)


# Logits to compare ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PromptSeries:
    """Ids as in a run: a prefix, a suffix for each row, and tokens that follow one by one."""

    rows: int
    prefix: int
    suffix: int
    selected: tuple[int, ...]
    """The rows that continue after the suffix: some left out, repeated and reordered."""
    steps: int

    def ids(self, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix `(P,)`, suffixes `(B, S)` and following tokens `(R, steps)`, spread over the
        vocabulary."""
        per_row = self.suffix + self.steps
        spread = torch.arange(self.prefix + self.rows * per_row) * 7919 % vocab
        rows = spread[self.prefix :].view(self.rows, per_row)
        following = rows[list(self.selected), self.suffix :]
        return spread[: self.prefix], rows[:, : self.suffix], following


_TYPICAL = _PromptSeries(rows=_ROWS, prefix=6, suffix=5, selected=(_ROWS - 1, 3, 3), steps=1)
_SHORT = _PromptSeries(rows=3, prefix=2, suffix=2, selected=(2, 0, 2, 2, 1), steps=2)
"""Its prompts are shorter than the windows of convolutions."""


def _cached_logits(backend: Backend, series: _PromptSeries) -> Logits:
    """A backend's logits for a series, in float32."""
    prefix, suffixes, following = series.ids(backend.model.vocab_size)
    cache = backend.start(prefix.tolist(), series.rows, float32=True)
    logits, cache = backend.step(suffixes, cache, float32=True)
    found = [logits.cpu()]
    cache = backend.select(cache, torch.tensor(series.selected))
    for step in range(series.steps):
        logits, cache = backend.step(following[:, step : step + 1], cache, float32=True)
        found.append(logits.cpu())
    return found


def _plain_logits(model: LoadedModel, series: _PromptSeries) -> Logits:
    """The logits of the model's plain forward pass over the same whole prompts, without a cache.

    The first prompt is run alone, because its logits must not depend on the others.
    """
    backend = Backend(model, CacheMode.NONE)
    found = _cached_logits(backend, series)
    prefix, suffixes, _ = series.ids(model.vocab_size)
    alone = backend.logits_alone([*prefix.tolist(), *suffixes[0].tolist()], float32=True)
    found[0][0] = alone.cpu()
    return found


def _largest_difference(logits: Logits, reference: Logits) -> float:
    """The largest difference, as a share of the largest logit."""
    scale = max(float(part.abs().max()) for part in reference)
    pairs = zip(logits, reference, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / max(scale, 1.0)


def _run_in_own_arithmetic(backend: Backend) -> None:
    """Runs both series in the arithmetic of the weights, only to provoke errors."""
    for series in (_TYPICAL, _SHORT):
        prefix, suffixes, following = series.ids(backend.model.vocab_size)
        cache = backend.start(prefix.tolist(), series.rows)
        _, cache = backend.step(suffixes, cache)
        cache = backend.select(cache, torch.tensor(series.selected))
        backend.step(following[:, :1], cache)
