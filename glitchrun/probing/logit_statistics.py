"""From logits to the numbers on which a verdict rests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from glitchrun.errors import RunError

ROUNDING = {torch.float32: 1e-4, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}
"""How far logits of one prompt computed in two batch shapes may differ, as a share of the largest.
On SmolLM2 they differed by up to 4e-5 of 20 in float32 and 0.12 of 16 in bfloat16; the margins are
50 and 2.5 times that. int8 and int4 weights are multiplied in bfloat16."""
_CPU_ROWS = 16
"""Rows measured at a time on a CPU: some megabytes, which stay in the cache and on the heap."""
_GPU_LOGITS = 1 << 26
"""Logits measured at a time on a GPU: each intermediate result then takes 256 MB."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Columns over B prompts, each with one target token."""

    p: Tensor
    """`(B,)` probability of the target."""
    rank: Tensor
    """`(B,)` rank of the target, from 1."""
    entropy: Tensor
    """`(B,)` entropy of the next-token distribution, in nats."""
    argmax: Tensor
    """`(B,)` most likely token; the lowest id if several are equally likely."""
    passed: Tensor
    """`(B,)` whether the target is the most likely token."""
    gap: Tensor
    """`(B,)` largest logit minus the target's."""
    margin: Tensor
    """`(B,)` distance in logits between the target and the best other token."""
    scale: Tensor
    """`(B,)` absolute value of the largest logit, to which rounding is relative."""

    def near_ties(self, rounding: float, limit: float = 1.0) -> Tensor:
        """Returns `(B,)` whether rounding could change the verdict.

        A verdict is whether the target passed and, if it failed, whether its probability lies below
        `limit`.

        Args:
            rounding: How far rounding may move a logit, as a share of the largest.
            limit: Probability threshold.
        """
        within = rounding * self.scale.clamp(min=1.0)
        at_limit = (self.p.log() - torch.tensor(limit).log()).abs() < within
        return (self.margin < within) | (at_limit & ~self.passed)

    def to_cpu(self) -> Statistics:
        """Returns the same columns on the CPU, in one transfer, since each one waits for the GPU.

        Raises:
            RunError: A largest logit is not finite.
        """
        columns = [getattr(self, field.name) for field in fields(self)]
        # float64 represents every float32 and every id and rank exactly.
        block = torch.stack([column.double() for column in columns]).cpu()
        moved = Statistics(
            *(part.to(column.dtype) for part, column in zip(block, columns, strict=True))
        )
        _refuse_infinite(moved.scale + moved.p)  # a NaN anywhere in the row reaches one of them
        return moved


def check_finite(logits: Tensor) -> Tensor:
    """Returns logits `(..., V)` unchanged if the largest of each row is finite.

    Raises:
        RunError: A number overflowed; says what to set instead.
    """
    _refuse_infinite(logits.amax(dim=-1))
    return logits


def _refuse_infinite(largest: Tensor) -> None:
    if not bool(largest.isfinite().all()):
        raise RunError(
            "the model's logits are not finite: its numbers overflow in this arithmetic, or its "
            "weights are damaged; set model.quantization to bfloat16 or float32"
        )


def from_columns(columns: Mapping[str, Tensor], targets: Tensor) -> Statistics:
    """Returns statistics from the output of the kernel `triton_kernels.row_statistics`.

    Args:
        columns: `(B,)` each: p, rank, entropy, argmax, best, own, other.
        targets: Target ids, `(B,)`.
    """
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
    """Returns the entropy of next-token distributions in nats: `(..., V)` to `(...)`.

    It is −Σ p ln(p + 1e-6), as in GlitchMiner (arXiv 2410.15052), so that walks and values agree
    with it. It lies below the plain entropy by at most 1e-6 nats per vocabulary entry.
    """
    return _entropy(logits.softmax(dim=-1))


def _entropy(p: Tensor) -> Tensor:
    return -(p + 1e-6).log_().mul_(p).sum(dim=-1)


def scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each target's log-probability in nats and its gap (largest logit minus its own).

    Args:
        logits: `(B, V)`, of any dtype.
        targets: Target ids, `(B,)`.

    Returns:
        `(B,)` each, in float32.

    Raises:
        RunError: A largest logit is not finite.
    """
    own = logits.gather(1, targets[:, None].to(logits.device))[:, 0].float()
    parts = logits.split(_CPU_ROWS if logits.device.type == "cpu" else len(logits))
    found = [(wide.logsumexp(dim=1), wide.amax(dim=1)) for wide in (part.float() for part in parts)]
    total, best = (torch.cat(column) for column in zip(*found, strict=True))
    _refuse_infinite(best)
    return own - total, best - own


def measure(logits: Tensor, targets: Tensor) -> Statistics:
    """Returns the statistics of logits `(B, V)` for target ids `(B,)`."""
    on_cpu = logits.device.type == "cpu"
    rows = _CPU_ROWS if on_cpu else max(1, _GPU_LOGITS // logits.shape[1])
    blocks = zip(logits.split(rows), targets.split(rows), strict=True)
    parts = [_measure(*block) for block in blocks]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Statistics))
    return Statistics(*(torch.cat(column) for column in columns))


def _measure(logits: Tensor, targets: Tensor) -> Statistics:
    rows = torch.arange(len(logits), device=logits.device)
    own = logits[rows, targets]
    # Not exp(own - logsumexp): that subtraction of large numbers costs p its fifth digit.
    probabilities = logits.softmax(dim=-1)
    best = logits.amax(dim=-1)
    # max() may return any of several equal entries.
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
