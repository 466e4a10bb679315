"""Probabilities of sequences after a prompt, and of next tokens after sequences in a prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from glitchrun.plan.batch_sizes import SCORE_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.probing.memory_limits import prepare_retry
from glitchrun.prompts.render import Slot


class SequenceScorer:
    """Reads the probabilities of next tokens after `prefix + sequence + suffix`.

    Sequences of one length run together after one shared prefix, in passes of one fixed shape; the
    last pass is padded with its first sequence. A probability therefore does not depend on the
    other sequences.
    """

    def __init__(self, backend: Backend, slot: Slot, goals: Sequence[int]) -> None:
        self.backend = backend
        self.slot = slot
        """The prompt, with a place for a sequence."""
        self.goals = tuple(goals)
        """Ids of the next tokens whose probability is wanted."""
        self.rows = SCORE_BATCH.get(backend.device.type, SCORE_BATCH["cpu"])
        """Rows of every pass."""
        self.counters: Counter[str] = Counter()
        """Work since the last clear: forwards, batch_halvings."""

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[tuple[float, ...]]:
        """Returns the probability of each goal after each sequence."""
        found: dict[tuple[int, ...], tuple[float, ...]] = {}
        ordered = sorted(dict.fromkeys(sequences), key=len)
        for _, group in groupby(ordered, key=len):
            waiting = list(group)
            while waiting:
                chunk = waiting[: self.rows]
                logits = self._logits(chunk)
                if logits is None:
                    continue
                p = logits.softmax(dim=-1)[:, list(self.goals)]  # (B, goals)
                found |= zip(chunk, map(tuple, p.double().tolist()), strict=True)
                waiting = waiting[len(chunk) :]
        return [found[sequence] for sequence in sequences]

    def distribution(self, sequence: tuple[int, ...]) -> Tensor:
        """Returns next-token probabilities `(V,)` after one sequence, from a pass of that shape."""
        while (logits := self._logits([sequence])) is None:
            pass
        return logits[0].softmax(dim=-1).cpu()

    def _logits(self, chunk: Sequence[tuple[int, ...]]) -> Tensor | None:
        """`(len(chunk), V)`; None if memory ran out and the caller should take fewer rows."""
        padded = [*chunk, *[chunk[0]] * (self.rows - len(chunk))]
        ids = torch.tensor([(*sequence, *self.slot.suffix_ids) for sequence in padded])
        try:
            logits = self.backend.last_logits(self.slot.prefix_ids, ids)
        except RuntimeError as error:
            prepare_retry(error, self.rows, self.counters)
            self.rows //= 2
            return None
        self.counters["forwards"] += 1
        return logits[: len(chunk)]


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """A sequence of ids after a prompt, each id scored after the ones before it."""

    ids: tuple[int, ...]
    log_ps: tuple[float, ...]
    """Log-probability of each id, in nats."""
    ranks: tuple[int, ...]
    """Rank of each id, from 1."""

    @property
    def log_p(self) -> float:
        """Log-probability of the whole sequence, in nats."""
        return math.fsum(self.log_ps)

    @property
    def p(self) -> float:
        """Probability of the whole sequence."""
        return math.exp(self.log_p)

    @property
    def first_p(self) -> float:
        """Probability of the first id."""
        return math.exp(self.log_ps[0])


def likeliest_sequence(
    backend: Backend, prompt: Sequence[int], sequences: Sequence[tuple[int, ...]], first: Tensor
) -> ScoredSequence:
    """Returns the most likely of several sequences after a prompt.

    Every pass runs one whole sequence alone, so that a score does not depend on the others.

    Args:
        backend: Runs the model.
        prompt: Ids of the prompt.
        sequences: The sequences, none of them empty.
        first: Logits `(V,)` after the prompt itself.
    """
    scored = (_score_alone(backend, prompt, ids, first) for ids in sequences)
    return max(scored, key=lambda one: one.log_p)


def _score_alone(
    backend: Backend, prompt: Sequence[int], ids: tuple[int, ...], first: Tensor
) -> ScoredSequence:
    log_ps, ranks = [], []
    for position, target in enumerate(ids):
        logits = backend.logits_alone((*prompt, *ids[:position])) if position else first
        log_ps.append(float(log_probabilities(logits)[target]))
        ranks.append(1 + int(torch.count_nonzero(logits > logits[target])))
    return ScoredSequence(ids, tuple(log_ps), tuple(ranks))


def log_probabilities(logits: Tensor) -> Tensor:
    """Returns the next-token log-probabilities `(V,)` of logits `(V,)`, in nats and float64."""
    return logits.double().log_softmax(dim=-1)


def greedy_continuation(
    backend: Backend,
    prompt: Sequence[int],
    first: Tensor,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> tuple[int, ...]:
    """Returns the greedy continuation of a prompt, without the stop id that ended it.

    Args:
        backend: Runs the model.
        prompt: Ids of the prompt.
        first: Logits `(V,)` after the prompt itself.
        max_new_tokens: Length at most; at least 1.
        stop_ids: Ids that end the continuation.
    """
    ids: tuple[int, ...] = ()
    while True:
        logits = backend.logits_alone((*prompt, *ids)) if ids else first
        token_id = int(logits.argmax())
        if token_id in stop_ids:
            return ids
        ids = (*ids, token_id)
        if len(ids) == max_new_tokens:
            return ids
