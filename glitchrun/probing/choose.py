"""Which backend runs a model."""

from __future__ import annotations

from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.fast.backend import FastBackend
from glitchrun.probing.fast.check import TOKENS, largest_difference
from glitchrun.probing.fast.shape import OtherShapeError, recognize

TOLERANCE = 2e-5
"""Share of the largest logit by which two orders of summation differ at most in float32; 2e-6 was
seen. A fifth of what verdicts allow for rounding."""


def best_backend(model: LoadedModel) -> tuple[Backend, str]:
    """The fast backend where its logits are this model's, else the generic one; and why."""
    generic = Backend(model)
    try:
        fast = FastBackend(model, recognize(model.module))
    except OtherShapeError as other:
        return generic, f"generic: {other}"
    apart = largest_difference(fast, generic)
    if not apart < TOLERANCE:  # NaN is no agreement
        return generic, f"generic: the fast path's logits differ by {apart:.1g} of the largest"
    return fast, f"fast: same logits as transformers on {TOKENS} tokens, within {apart:.0e}"
