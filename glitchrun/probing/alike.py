"""Batch sizes in which a row gets the same bits whatever it is batched with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glitchrun.plan.batch_sizes import INVARIANT_BATCH, LOW_PRECISION_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.prompts.render import Prompt

_LEAST = 16
"""On a CPU with AVX512_BF16 and torch 2.13, bfloat16 passes of 2 to 128 rows gave each row the same
bits, and one row alone others. In float32 those of 16 to 128 rows did on one thread, not on two."""
_TRIED = (_LEAST, 17, 41, INVARIANT_BATCH)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many rows a pass has."""

    most: int
    """Attempts that are sampled side by side at most."""
    least: int = 1
    """Rows of a pass at least: filled up with rows that nobody looks at."""

    def width(self, rows: int) -> int:
        """Rows of the pass that is to hold so many."""
        return max(rows, self.least)

    def halved(self) -> Shape:
        """The shape to go on with when memory ran out."""
        return replace(self, most=self.most // 2, least=min(self.least, self.most // 2))


def shape(backend: Backend, prompt: Prompt, rows: int) -> Shape:
    """The shape of passes in which attempts do not depend on what they are batched with.

    In float32 any: what rounding could change is settled alone. Narrower arithmetic has too much of
    that. There it is the sizes that give each row the same bits, as tried on this model; where they
    do not, every pass has one size, so that at least the same kernels run.
    """
    if backend.arithmetic == torch.float32:
        return Shape(rows)
    if backend.device.type == "cpu" and rows_alike(backend, prompt):
        return Shape(min(rows, INVARIANT_BATCH), _LEAST)
    fixed = LOW_PRECISION_BATCH.get(backend.device.type, LOW_PRECISION_BATCH["cpu"])
    return Shape(fixed, fixed)


@torch.no_grad()
def rows_alike(backend: Backend, prompt: Prompt) -> bool:
    """Whether batches of 16 to 128 rows give each row the same logits, bit for bit.

    Tried, not proven: behind the prefix, two single tokens one after the other, and the beginning
    of a suffix, in batches of several sizes, in which the rows that are compared stand elsewhere.
    Which sizes does not depend on what the spec asks for, so that the answer does not either.
    """
    ids = torch.arange(INVARIANT_BATCH) * 7919 % backend.model.vocab_size
    singles = [_singles(backend, prompt, ids[:n]) for n in _TRIED]
    several = [_several(backend, prompt, ids[:n]) for n in _TRIED[:2]]
    return all(torch.equal(found[0], other) for found in (singles, several) for other in found[1:])


def _singles(backend: Backend, prompt: Prompt, ids: Tensor) -> Tensor:
    """Logits `(2, 16, V)` of the first rows, which the batch holds last and backwards."""
    turned = ids.flip(0)[:, None]
    first, cache = backend.step(turned, backend.start(prompt.prefix_ids, len(ids)))
    second, _ = backend.step((turned + 1) % backend.model.vocab_size, cache)
    return torch.stack([first[-_LEAST:], second[-_LEAST:]])


def _several(backend: Backend, prompt: Prompt, ids: Tensor) -> Tensor:
    """The same after a few tokens in one pass, `(16, V)`."""
    tail = torch.tensor(prompt.suffix_ids[:3], dtype=torch.long).expand(len(ids), -1)
    turned = torch.cat([ids.flip(0)[:, None], tail], dim=1)
    return backend.last_logits(prompt.prefix_ids, turned)[-_LEAST:]
