"""Probabilities of a few next tokens after many sequences put into one prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from glitchrun.plan.batch_sizes import SCORE_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.probing.memory_limits import is_out_of_memory
from glitchrun.prompts.slot import Slot


class SequenceScorer:
    """Reads off what comes after `prefix + sequence + suffix`, by id.

    Sequences of one length go through the model together, on one shared prefix, in passes of one
    fixed shape: a pass that is not full is filled up with its first sequence. So a number depends
    neither on how many sequences there are nor on which.
    """

    def __init__(self, backend: Backend, place: Slot, goals: Sequence[int]) -> None:
        self.backend = backend
        self.place = place
        self.goals = tuple(goals)
        """Token ids whose probability is wanted."""
        self.rows = SCORE_BATCH.get(backend.device.type, SCORE_BATCH["cpu"])
        self.counters: Counter[str] = Counter()
        """Work since it was last cleared: forwards, batch_halvings."""

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[tuple[float, ...]]:
        """The probability of each goal after each sequence, in the order given."""
        found: dict[tuple[int, ...], tuple[float, ...]] = {}
        ordered = sorted(dict.fromkeys(sequences), key=len)
        for _, group in groupby(ordered, key=len):
            members = list(group)
            while members:
                chunk = members[: self.rows]
                logits = self._logits(chunk)
                if logits is None:
                    continue
                p = logits.softmax(dim=-1)[:, list(self.goals)]  # (B, goals)
                found |= zip(chunk, map(tuple, p.double().tolist()), strict=True)
                members = members[len(chunk) :]
        return [found[sequence] for sequence in sequences]

    def distribution(self, sequence: tuple[int, ...]) -> Tensor:
        """Next-token probabilities `(V,)` after one sequence, from the same shape of pass."""
        while (logits := self._logits([sequence])) is None:
            pass
        return logits[0].softmax(dim=-1).cpu()

    def _logits(self, chunk: Sequence[tuple[int, ...]]) -> Tensor | None:
        """`(len(chunk), V)`; None where memory ran out, and fewer rows are to be tried."""
        filled = [*chunk, *[chunk[0]] * (self.rows - len(chunk))]
        ids = torch.tensor([(*sequence, *self.place.suffix_ids) for sequence in filled])
        try:
            logits = self.backend.last_logits(self.place.prefix_ids, ids)
        except (torch.OutOfMemoryError, RuntimeError) as exc:
            if self.rows == 1 or not is_out_of_memory(exc):
                raise
            self.rows //= 2
            self.counters["batch_halvings"] += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return None
        self.counters["forwards"] += 1
        return logits[: len(chunk)]
