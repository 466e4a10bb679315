"""Linear regression with a Gaussian prior whose strength the data choose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float64]

NOISES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Variances of the noise to choose from, in units of the weights' prior variance."""


def fit(rows: Floats, target: Floats, stronger: float = 1.0, most: float = float("inf")) -> Floats:
    """The weights `(D,)` of a ridge regression of a centred target `(n,)` on rows `(n, D)`.

    The ridge is the one under which the target is most probable (evidence; MacKay 1992, "Bayesian
    interpolation"), the overall scale left free, times `stronger`, and no more than `most`.
    Solved in the smaller of n and D.
    """
    n, width = rows.shape
    dual = n <= width
    gram = rows @ rows.T if dual else rows.T @ rows
    inner = target if dual else rows.T @ target
    evidence = [_evidence(gram, inner, noise, target, None if dual else width) for noise in NOISES]
    likeliest = NOISES[int(np.argmax(evidence))]
    solved, _ = _solve(gram, inner, min(stronger * likeliest, most))
    return rows.T @ solved if dual else solved


def _evidence(
    gram: Floats, inner: Floats, noise: float, target: Floats, width: int | None
) -> float:
    """Log evidence up to a constant; `width` where the Gram matrix is that of the columns."""
    n = len(target)
    solved, logdet = _solve(gram, inner, noise)
    # target' (XX' + noise)^-1 target, and log |XX' + noise|, through either matrix
    misfit = float(inner @ solved)
    if width is not None:
        misfit = (float(target @ target) - misfit) / noise
        logdet += (n - width) * float(np.log(noise))
    return -0.5 * (n * float(np.log(max(misfit, 1e-300))) + logdet)


def _solve(gram: Floats, right: Floats, noise: float) -> tuple[Floats, float]:
    factor = cho_factor(gram + noise * np.eye(len(gram)), lower=True)
    return cho_solve(factor, right), 2 * float(np.log(np.diag(factor[0])).sum())
