"""Which backend runs a model."""

from __future__ import annotations

import logging

from glitchrun.boundary import first_line, foreign_errors
from glitchrun.errors import PreflightError, RunError
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.check import (
    FIRST,
    SHORT,
    TOKENS,
    Logits,
    in_its_own_arithmetic,
    is_noncausal,
    largest_difference,
    plain,
    run,
    uncached,
)
from glitchrun.probing.fast.backend import FastBackend
from glitchrun.probing.fast.shape import OtherShapeError, recognize
from glitchrun.probing.memory_limits import is_out_of_memory
from glitchrun.probing.states import CacheMode

log = logging.getLogger(__name__)

TOLERANCE = 2e-5
"""Share of the largest logit by which two orders of summation differ at most in float32; 2e-6 was
seen. A fifth of what verdicts allow for rounding."""

_UNLIKE = (RunError, RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What the fast path meets in a model that only looks like its shape: a module is called with other
arguments, a tensor has other sizes."""


def best_backend(model: LoadedModel) -> tuple[Backend, str]:
    """The fast backend where its logits are this model's, else the generic one; and why.

    Raises:
        PreflightError: the model is no causal language model.
        RunError: its forward pass fails on a few tokens.
    """
    wanted = plain(model, FIRST)
    fast, reason = _fast(model, wanted)
    if fast is not None:
        return fast, f"fast: {reason}"
    backend, how = _generic(model, wanted)
    return backend, f"generic: {reason}{how}"


def _fast(model: LoadedModel, wanted: Logits) -> tuple[FastBackend | None, str]:
    """The fast backend where it runs this model, and why it does or not."""
    try:
        fast = FastBackend(model, recognize(model.module))
        difference = _difference(fast, wanted)
    except OtherShapeError as other:
        return None, str(other)
    except _UNLIKE as error:
        if is_out_of_memory(error):
            raise
        return None, f"the fast path does not fit it ({type(error).__name__}: {error})"
    if difference < TOLERANCE:  # NaN is no agreement
        return fast, f"same logits as transformers on {TOKENS} tokens, within {difference:.0e}"
    return None, f"the fast path's logits differ by {difference:.1g} of the largest"


def _difference(fast: FastBackend, wanted: Logits) -> float:
    """How far its logits lie from the model's; it goes on without kernels where these fail.

    They are compiled when first called, which takes a C compiler and Python's headers.
    """
    if not fast.has_kernels:
        return _compared(fast, wanted)
    try:
        with foreign_errors(_kernels_fail):
            return _compared(fast, wanted)
    except RunError as error:
        log.warning("%s; torch's own operations are used instead, which are slower", error)
        fast.leave_out_kernels()
    return _compared(fast, wanted)


def _compared(fast: FastBackend, wanted: Logits) -> float:
    # On a GPU a batch that nothing is to follow takes kernels of its own.
    return largest_difference([*run(fast, FIRST), uncached(fast, FIRST)], [*wanted, wanted[0]])


def _kernels_fail(error: Exception) -> RunError:
    if is_out_of_memory(error):
        raise error
    return RunError(f"the kernels for this GPU cannot be used ({first_line(error)})")


def generic_backend(model: LoadedModel) -> Backend:
    """The backend that runs any causal model, with as much of its cache as works.

    Raises:
        PreflightError: the model is no causal language model.
        RunError: its forward pass fails on a few tokens.
    """
    return _generic(model, plain(model, FIRST))[0]


def _generic(model: LoadedModel, wanted: Logits) -> tuple[Backend, str]:
    """The first cache mode that gives the logits of whole prompts, and why the others do not."""
    short, why = plain(model, SHORT), ""
    for cache_mode in CacheMode:
        backend = Backend(model, cache_mode)
        failed = _failed(backend, wanted, short)
        if failed is None:
            _refuse_lookahead(backend)
            return backend, f"; it is run by {cache_mode.value}, since {why}" if why else ""
        why = why or failed
    raise RunError(
        f"{type(model.module).__name__} gives other logits for a prompt in a batch than alone "
        f"({failed}), so no number of it could be relied on; try model.quantization: float32"
    )


def _failed(backend: Backend, wanted: Logits, short: Logits) -> str | None:
    """The backend's error; None where it gives the logits of whole prompts."""
    try:
        if backend.cache_mode is not CacheMode.NOTHING and not backend.keeps:
            return "it returns no cache"
        difference = max(
            largest_difference(run(backend, FIRST), wanted),
            largest_difference(run(backend, SHORT), short),
        )
        in_its_own_arithmetic(backend, (FIRST, SHORT))
    except RunError as error:
        return f"its cache failed ({error.__cause__ or error})"
    if difference < TOLERANCE:
        return None
    return f"with its cache logits differ by {difference:.1g} of the largest"


def _refuse_lookahead(backend: Backend) -> None:
    if backend.cache_mode is not CacheMode.ROWS and is_noncausal(backend.model):
        raise PreflightError(
            f"{type(backend.model.module).__name__} attends to the tokens after a position, so "
            "its logits there do not predict the next token; with this config.json it is no "
            "causal language model (is_decoder: true makes one of an encoder trained for it)"
        )
