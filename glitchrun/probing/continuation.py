"""How likely a model finds a given continuation, token by token."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glitchrun.probing.backend import Backend


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sequence of ids after a prompt, each measured after those before it."""

    ids: tuple[int, ...]
    log_ps: tuple[float, ...]
    """Of each id, in nats."""
    ranks: tuple[int, ...]
    """Of each id, from 1."""

    @property
    def log_p(self) -> float:
        """Of the whole sequence, in nats."""
        return math.fsum(self.log_ps)

    @property
    def p(self) -> float:
        """Probability of the whole sequence."""
        return math.exp(self.log_p)

    @property
    def first_p(self) -> float:
        """Probability of the first id."""
        return math.exp(self.log_ps[0])


def log_probabilities(logits: Tensor) -> Tensor:
    """Natural logarithms of the next-token distribution, `(V,)` in float64."""
    return logits.double().log_softmax(dim=-1)


def best_continuation(
    backend: Backend, prompt: Sequence[int], forms: Sequence[tuple[int, ...]], first: Tensor
) -> Continuation:
    """The likeliest of several sequences after a prompt, none of them empty.

    `first` are the logits `(V,)` after the prompt itself. Every pass is one whole sequence alone,
    so that a number does not depend on what else is measured.
    """
    return max((_measure(backend, prompt, ids, first) for ids in forms), key=lambda one: one.log_p)


def greedy(
    backend: Backend, prompt: Sequence[int], first: Tensor, most: int, ends: Collection[int]
) -> tuple[int, ...]:
    """The likeliest token after a prompt, again and again, `most` times or until one of `ends`.

    `first` are the logits `(V,)` after the prompt itself.
    """
    said: tuple[int, ...] = ()
    while True:
        logits = backend.logits_alone((*prompt, *said)) if said else first
        token_id = int(logits.argmax())
        if token_id in ends:
            return said
        said = (*said, token_id)
        if len(said) == most:
            return said


def _measure(
    backend: Backend, prompt: Sequence[int], ids: tuple[int, ...], first: Tensor
) -> Continuation:
    log_ps, ranks = [], []
    for place, target in enumerate(ids):
        logits = backend.logits_alone((*prompt, *ids[:place])) if place else first
        log_ps.append(float(log_probabilities(logits)[target]))
        ranks.append(1 + int(torch.count_nonzero(logits > logits[target])))
    return Continuation(ids, tuple(log_ps), tuple(ranks))
