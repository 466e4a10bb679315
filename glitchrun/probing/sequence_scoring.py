"""Probabilities of sequences after a prompt, and of next tokens after sequences in a prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from glitchrun.plan.passes import SCORE_BATCH
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


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What a model says after a prompt."""

    top: tuple[tuple[int, float], ...]
    """The most likely next ids with their probabilities, the most likely one first."""
    argmax: int
    """The id with the largest logit."""
    entropy: float
    """Entropy of the next-token distribution, in nats."""
    sequence: ScoredSequence | None = None
    """The most likely of the sequences; None if none was given."""


def read_prompts(
    backend: Backend,
    asked: Sequence[tuple[Sequence[int], Sequence[tuple[int, ...]]]],
    top_k: int,
) -> list[PromptReading]:
    """Returns next tokens after prompts, and the most likely of several sequences after each.

    A resident model runs every text alone, so that results do not depend on the other prompts. A
    streamed model runs all of them in one pass.

    Args:
        backend: Runs the model.
        asked: The ids of each prompt, and the sequences, none of them empty.
        top_k: How many of the most likely next ids are wanted.
    """
    texts: list[tuple[Sequence[int], int]] = []
    owners: list[tuple[int, tuple[int, ...]]] = []  # the prompt, and the sequence that follows it
    for place, (prompt, sequences) in enumerate(asked):
        for ids in ((), *(one for one in sequences if len(one) > 1)):
            texts.append(((*prompt, *ids[:-1]), max(1, len(ids) - 1)))
            owners.append((place, ids))
    readings: dict[int, PromptReading] = {}
    scores: dict[tuple[int, tuple[int, ...], int], tuple[float, int]] = {}

    def read(text: int, at: int, logits: Tensor) -> None:
        place, continued = owners[text]
        log_p = log_probabilities(logits)
        if not continued:
            readings[place] = _reading(logits, log_p, top_k)
        targets = [(continued, at + 1)] if continued else [(ids, 0) for ids in asked[place][1]]
        for ids, step in targets:
            rank = 1 + int(torch.count_nonzero(logits > logits[ids[step]]))
            scores[place, ids, step] = float(log_p[ids[step]]), rank

    backend.read_texts(texts, read)
    return [
        replace(
            readings[place],
            sequence=max(
                (
                    _scored(ids, [scores[place, ids, step] for step in range(len(ids))])
                    for ids in sequences
                ),
                key=lambda one: one.log_p,
                default=None,
            ),
        )
        for place, (_, sequences) in enumerate(asked)
    ]


def _reading(logits: Tensor, log_p: Tensor, top_k: int) -> PromptReading:
    best = log_p.topk(min(top_k, len(log_p)))
    top = tuple((int(one), float(value.exp())) for value, one in zip(*best, strict=True))
    return PromptReading(top, int(logits.argmax()), float(-(log_p.exp() * log_p).sum()))


def _scored(ids: tuple[int, ...], steps: Sequence[tuple[float, int]]) -> ScoredSequence:
    return ScoredSequence(ids, tuple(log_p for log_p, _ in steps), tuple(rank for _, rank in steps))


def log_probabilities(logits: Tensor) -> Tensor:
    """Returns the next-token log-probabilities `(V,)` of logits `(V,)`, in nats and float64."""
    return logits.double().log_softmax(dim=-1)


def greedy_continuations(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    first: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> list[tuple[int, ...]]:
    """Returns the greedy continuation of each prompt, without the stop id that ended it.

    Args:
        backend: Runs the model.
        prompts: Ids of each prompt.
        first: The most likely next id after each prompt.
        max_new_tokens: Length at most; at least 1.
        stop_ids: Ids that end the continuation.
    """
    said: list[tuple[int, ...]] = [() for _ in prompts]
    latest = dict(enumerate(first))  # of each unfinished prompt
    while latest:
        latest = {place: one for place, one in latest.items() if one not in stop_ids}
        for place, one in latest.items():
            said[place] = (*said[place], one)
        unfinished = [place for place in latest if len(said[place]) < max_new_tokens]
        latest = {}

        def read(row: int, _: int, logits: Tensor) -> None:
            latest[unfinished[row]] = int(logits.argmax())  # noqa: B023 - called at once

        if unfinished:
            texts = [((*prompts[place], *said[place]), 1) for place in unfinished]
            backend.read_texts(texts, read)
    return said
