"""Batch shapes in which a row's logits do not depend on the other rows of its batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glitchrun.plan.passes import INVARIANT_BATCH, LOW_PRECISION_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.prompts.render import Prompt

_MIN_ROWS = 16
"""On a CPU with AVX512_BF16 and torch 2.13, bfloat16 passes of 2 to 128 rows gave each row the same
bits; a row alone got others. In float32, passes of 16 to 128 rows did so on one thread but not on
two."""
_TRIED = (_MIN_ROWS, 17, 41, INVARIANT_BATCH)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The limits on the rows of one forward pass."""

    max_rows: int
    """Attempts sampled side by side at most."""
    min_rows: int = 1
    """Smaller passes are padded to this many rows."""

    def padded(self, rows: int) -> int:
        """Returns the rows of a pass that runs `rows` rows, padding included."""
        return max(rows, self.min_rows)

    def halved(self) -> BatchShape:
        """Returns the shape to continue with after memory ran out."""
        half = self.max_rows // 2
        return replace(self, max_rows=half, min_rows=min(self.min_rows, half))


def batch_shape(backend: Backend, prompt: Prompt, rows: int) -> BatchShape:
    """Returns the shape of passes in which attempts do not depend on their batch.

    Any shape will do in float32, because near-ties are re-evaluated alone. Narrower arithmetic has
    too many of them. There the shape covers the sizes that give each row the same bits, as tried on
    this model. If they do not, every pass has one fixed size, so that the same kernels run.

    Args:
        backend: Runs the model.
        prompt: Any prompt of the step.
        rows: Attempts sampled side by side at most.
    """
    if backend.arithmetic == torch.float32:
        return BatchShape(rows)
    if backend.device.type == "cpu" and is_batch_invariant(backend, prompt):
        return BatchShape(min(rows, INVARIANT_BATCH), _MIN_ROWS)
    fixed = LOW_PRECISION_BATCH.get(backend.device.type, LOW_PRECISION_BATCH["cpu"])
    return BatchShape(fixed, fixed)


@torch.no_grad()
def is_batch_invariant(backend: Backend, prompt: Prompt) -> bool:
    """Returns whether batches of 16 to 128 rows give each row the same logits, bit for bit.

    This is an empirical test, not a proof. It runs two single tokens in turn, and then the first
    tokens of a suffix, after the prefix. The batches have several sizes, so that the compared rows
    are at different indices. The sizes do not depend on the spec, and neither does the result.
    """
    ids = torch.arange(INVARIANT_BATCH) * 7919 % backend.model.vocab_size
    singles = [_single_token_logits(backend, prompt, ids[:n]) for n in _TRIED]
    several = [_suffix_logits(backend, prompt, ids[:n]) for n in _TRIED[:2]]
    return all(torch.equal(found[0], other) for found in (singles, several) for other in found[1:])


def _single_token_logits(backend: Backend, prompt: Prompt, ids: Tensor) -> Tensor:
    """Logits `(2, 16, V)` of the first rows, which the batch contains last, in reverse."""
    reverse = ids.flip(0)[:, None]
    first, cache = backend.step(reverse, backend.start(prompt.prefix_ids, len(ids)))
    second, _ = backend.step((reverse + 1) % backend.model.vocab_size, cache)
    return torch.stack([first[-_MIN_ROWS:], second[-_MIN_ROWS:]])


def _suffix_logits(backend: Backend, prompt: Prompt, ids: Tensor) -> Tensor:
    """Logits `(16, V)` of the same rows after a few tokens in one pass."""
    tail = torch.tensor(prompt.suffix_ids[:3], dtype=torch.long).expand(len(ids), -1)
    reverse = torch.cat([ids.flip(0)[:, None], tail], dim=1)
    return backend.last_logits(prompt.prefix_ids, reverse)[-_MIN_ROWS:]
