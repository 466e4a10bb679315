"""Prompts around phrases: texts of several tokens in the place of one token."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch

from glitchrun.events import Token
from glitchrun.plan.passes import SCORE_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.prompts.render import Prompt


@dataclass(frozen=True, slots=True)
class PhrasePrompt(Prompt):
    """A prompt in which phrases take the place of the token. They are named by their keys."""

    sequences: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The ids of each phrase by its key, see `stand_in`."""

    @property
    def tail_length(self) -> int:
        """Ids of the longest `tail`."""
        return max(len(self.tail(key)) for key in self.sequences)

    def tail(self, token_id: int) -> tuple[int, ...]:
        """The prompt for one phrase from its first place on."""
        ids = self.sequences[token_id]
        found = [*ids]
        for place, one in enumerate(self.suffix_ids):
            found += ids if place in self.later else (one,)
        return tuple(found)


def stand_in(ids: Sequence[int], text: str) -> Token:
    """A placeholder token that represents a phrase in a sampler.

    Its id is a negative hash of the phrase's ids. It decides the random numbers of an attempt, and
    no sampled id equals it.
    """
    named = ",".join(map(str, ids)).encode()
    key = int.from_bytes(hashlib.sha256(named).digest()[:7], "little")
    return Token(id=-1 - key, text=text, piece="", category="phrase", norm=math.nan)


def with_phrases(prompt: Prompt, phrases: Sequence[tuple[int, ...]]) -> PhrasePrompt:
    """The prompt, with a place for each of the phrases."""
    given = {one.name: getattr(prompt, one.name) for one in fields(Prompt)}
    return PhrasePrompt(**given, sequences={stand_in(ids, "").id: ids for ids in phrases})


@torch.no_grad()
def sequence_ps(
    backend: Backend,
    prefix: Sequence[int],
    asked: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> list[float]:
    """The probability of each prompt's answer: the product of its ids' probabilities.

    Passes have one fixed number of rows, so a probability does not depend on the other prompts.

    Args:
        backend: Runs the model.
        prefix: Ids shared by all prompts.
        asked: The ids of each prompt after the prefix, and those of its answer; none empty.
    """
    rows = SCORE_BATCH.get(backend.device.type, SCORE_BATCH["cpu"])
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for place, (tail, answer) in enumerate(asked):
        groups[len(tail), len(answer)].append(place)
    found = [0.0] * len(asked)
    for places in groups.values():
        for start in range(0, len(places), rows):
            chunk = places[start : start + rows]
            padded = [asked[place] for place in [*chunk, *[chunk[0]] * (rows - len(chunk))]]
            for place, log_p in zip(chunk, _log_ps(backend, prefix, padded), strict=False):
                found[place] = math.exp(log_p)
    return found


def _log_ps(
    backend: Backend,
    prefix: Sequence[int],
    asked: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> list[float]:
    """Log-probabilities, in nats, of answers of one length in prompts of one length."""
    answers = torch.tensor([answer for _, answer in asked])  # (B, A)
    cache = backend.start(prefix, len(asked))
    logits, cache = backend.step(torch.tensor([tail for tail, _ in asked]), cache)  # (B, V)
    total = torch.zeros(len(asked), dtype=torch.float64)
    for position in range(answers.shape[1]):
        if position:
            logits, cache = backend.step(answers[:, position - 1 : position], cache)
        log_p = logits.double().log_softmax(dim=-1).cpu()
        total += log_p.gather(1, answers[:, position : position + 1])[:, 0]
    return [float(one) for one in total]
