"""L2 norms of embedding rows, an old indicator of tokens that training never touched."""

from __future__ import annotations

import torch
from torch import Tensor


def row_norms(weight: Tensor, chunk: int = 8192) -> Tensor:
    """L2 norm of each row of an embedding `(V, H)`: `(V,)`, float32, on the CPU.

    Rows are converted `chunk` at a time, so that a half-precision embedding is never held twice.
    """
    parts = [rows.detach().float().norm(dim=1).cpu() for rows in weight.split(chunk)]
    return torch.cat(parts)
