"""From logits to the numbers a verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from glitchrun.errors import RunError

# Logits of one prompt computed in two batch shapes differ by this share of the largest logit at
# most: 4e-5 of 20 in float32 and 0.12 of 16 in bfloat16 were seen on SmolLM2; the margins here are
# 50 and 2.5 times that. int8 and int4 weights are multiplied in bfloat16.
ROUNDING = {torch.float32: 1e-4, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}


_CPU_ROWS = 16
"""Rows measured at a time: some megabytes, which stay in the cache and in the heap."""
_GPU_LOGITS = 1 << 26
"""Logits measured at a time on a GPU: each intermediate result is then 256 MB."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Columns over B prompts, each asked for one target token."""

    p: Tensor
    """(B,) probability of the target."""
    rank: Tensor
    """(B,) rank of the target, from 1."""
    entropy: Tensor
    """(B,) in nats."""
    argmax: Tensor
    """(B,) most likely token; the lowest id where several are exactly as likely."""
    passed: Tensor
    """(B,) whether the target is the most likely token."""
    gap: Tensor
    """(B,) largest logit minus the target's."""
    margin: Tensor
    """(B,) distance in logits of the target from the best other token: how clear the verdict is."""
    scale: Tensor
    """(B,) size of the largest logit, against which rounding is measured."""

    def unclear(self, rounding: float, limit: float = 1.0) -> Tensor:
        """(B,) whether the verdict lies within rounding, as a share of the largest logit.

        A verdict is whether the target passed and, where it failed, whether its probability lies
        below `limit`.
        """
        within = rounding * self.scale.clamp(min=1.0)
        at_limit = (self.p.log() - torch.tensor(limit).log()).abs() < within
        return (self.margin < within) | (at_limit & ~self.passed)

    def fetched(self) -> Statistics:
        """The same on the CPU, in one transfer: each one waits for the GPU to finish.

        Raises:
            RunError: a largest logit is not finite.
        """
        columns = [getattr(self, field.name) for field in fields(self)]
        # float64 holds every float32 and every id and rank exactly.
        block = torch.stack([column.double() for column in columns]).cpu()
        here = Statistics(
            *(part.to(column.dtype) for part, column in zip(block, columns, strict=True))
        )
        check_finite(here.scale + here.p)  # a NaN anywhere in the row reaches one of them
        return here


def check_finite(largest: Tensor) -> None:
    """Refuses logits whose largest `(B,)` is not finite: any verdict on them would be made up.

    Raises:
        RunError: with what to set instead.
    """
    if not bool(largest.isfinite().all()):
        raise RunError(
            "the model's logits are not finite: its numbers overflow in this arithmetic, or its "
            "weights are damaged; set model.quantization to bfloat16 or float32"
        )


def from_columns(columns: Mapping[str, Tensor], targets: Tensor) -> Statistics:
    """Statistics from the columns of `fast.kernels.row_statistics`."""
    return Statistics(
        p=columns["p"],
        rank=columns["rank"],
        entropy=columns["entropy"],
        argmax=columns["argmax"],
        passed=columns["argmax"] == targets,
        gap=columns["best"] - columns["own"],
        margin=(columns["own"] - columns["other"]).abs(),
        scale=columns["best"].abs(),
    )


def entropy(logits: Tensor) -> Tensor:
    """Entropy of next-token distributions, `(..., V)` to `(...)`, in nats.

    −Σ p ln(p + 1e-6), as GlitchMiner (arXiv 2410.15052) computes it, so that walks and values agree
    with it. It lies below the plain entropy by at most 1e-6 nats for each vocabulary entry.
    """
    return _entropy(logits.softmax(dim=-1))


def _entropy(p: Tensor) -> Tensor:
    return -(p + 1e-6).log_().mul_(p).sum(dim=-1)


def measure(logits: Tensor, targets: Tensor) -> Statistics:
    """The statistics of logits `(B, V)` against target ids `(B,)`."""
    on_cpu = logits.device.type == "cpu"
    at_once = _CPU_ROWS if on_cpu else max(1, _GPU_LOGITS // logits.shape[1])
    blocks = zip(logits.split(at_once), targets.split(at_once), strict=True)
    parts = [_measure(*block) for block in blocks]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Statistics))
    return Statistics(*(torch.cat(column) for column in columns))


def _measure(logits: Tensor, targets: Tensor) -> Statistics:
    rows = torch.arange(len(logits), device=logits.device)
    own = logits[rows, targets]
    # Not exp(own - logsumexp): that subtraction of large numbers costs p its fifth digit.
    probabilities = logits.softmax(dim=-1)
    best = logits.amax(dim=-1)
    # max() may return any of equal entries.
    argmax = (logits == best[:, None]).to(torch.uint8).argmax(dim=-1)
    others = logits.clone()
    others[rows, targets] = -torch.inf
    return Statistics(
        p=probabilities[rows, targets],
        rank=(logits > own[:, None]).sum(dim=-1) + 1,
        entropy=_entropy(probabilities),
        argmax=argmax,
        passed=argmax == targets,
        gap=best - own,
        margin=(own - others.amax(dim=-1)).abs(),
        scale=best.abs(),
    )
