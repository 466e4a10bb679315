"""The ids of a conversation, and the keys and values of those that were run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glitchrun.probing.backend import Backend


class Transcript:
    """Grows by ids; the model is run over each of them once."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.ids: list[int] = []
        self._cache: Any = None
        self._ran = 0
        self._logits: Tensor | None = None

    def extend(self, ids: Sequence[int]) -> None:
        """Appends ids; they are run when logits are next asked for."""
        self.ids += ids

    def logits(self) -> Tensor:
        """Next-token logits `(1, V)` after everything said so far."""
        if self._logits is None or self._ran < len(self.ids):
            pending = torch.tensor([self.ids[self._ran :]])
            # Not kept while the pass goes on: one that is cut off leaves a cache that fits nothing,
            # and the whole transcript is run again.
            cache, self._cache, self._ran = self._cache, None, 0
            self._logits, self._cache = self.backend.step(pending, cache)
            self._ran = len(self.ids)
        return self._logits

    def logits_after(self, ids: Sequence[int]) -> Tensor:
        """Next-token logits `(1, V)` after the transcript and `ids`, which are not kept."""
        if not self.ids:
            return self.backend.step(torch.tensor([list(ids)]), None)[0]
        self.logits()
        copied = self.backend.select(self._cache, torch.tensor([0]))
        return self.backend.step(torch.tensor([list(ids)]), copied)[0]

    def clear(self) -> None:
        """Forgets everything, and frees what was kept of it."""
        self.ids = []
        self._cache, self._ran, self._logits = None, 0, None
