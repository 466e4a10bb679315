"""Grows sampled continuations of one prompt, many tokens and attempts side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glitchrun.probing.alike import Shape
from glitchrun.probing.backend import Backend
from glitchrun.probing.choice import Sampling, choose
from glitchrun.probing.texts import Attempt, Branch, Ending, Text, branches, packs
from glitchrun.prompts.render import Prompt

# Two batch shapes gave logits at most 2.5e-6 of the largest apart in float32; four times that.
_FLOAT32_ROUNDING = 1e-5
_MOST_OF_THEM = 7 / 8
"""While more of the rows than this go on, the others stay: taking them out copies the rest."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How the continuations of one prompt grow."""

    backend: Backend
    prompt: Prompt
    sampling: Sampling
    max_new_tokens: int
    ending: Ending
    shape: Shape
    counters: Counter[str]
    """Added to: drawn (tokens of all attempts), rows (of all passes of one token), resampled."""
    ends: set[tuple[int, tuple[int, ...]]]
    """Added to: the token and the ids of each continuation that came to its end."""

    def grow(self, texts: Sequence[Text]) -> list[Attempt]:
        """Continues texts that are empty yet to their ends; the attempts that say their token."""
        ids = [[text.token.id, *self.prompt.suffix_ids] for text in texts]
        cache = self.backend.start(self.prompt.prefix_ids, self.shape.width(len(texts)))
        logits, cache = self.backend.step(self._filled(ids), cache)
        found, said = self._next(logits, texts)
        for pack in packs(found, self.shape.most):
            said += self._finish(self._follow(cache, pack), [branch.text for branch in pack])
        return said

    def _finish(self, cache: Any, texts: Sequence[Text]) -> list[Attempt]:
        said: list[Attempt] = []
        going = list(texts)
        for _ in range(1, self.max_new_tokens):
            ids = self._filled([text.ids[-1:] for text in texts])
            self.counters["rows"] += len(ids)
            logits, cache = self.backend.step(ids, cache)
            found, newly = self._next(logits, texts)
            said += newly
            going = [branch.text for branch in found]
            if not found:
                break
            if _stay(found, len(texts)):
                texts = _in_place(texts, found)
            else:
                cache, texts = self._follow(cache, found), going
        self.ends.update((text.token.id, text.ids) for text in going)
        return said

    def _next(self, logits: Tensor, texts: Sequence[Text]) -> tuple[list[Branch], list[Attempt]]:
        """The texts one token on, without those that end there, and the attempts that said it."""
        draws = [(row, attempt) for row, text in enumerate(texts) for attempt in text.attempts]
        self.counters["drawn"] += len(draws)
        chosen = self._choose(logits, texts, draws)
        going: list[Branch] = []
        said: list[Attempt] = []
        for branch in branches(texts, draws, chosen):
            ended, said_it = self.ending.of(branch.text)
            if said_it:
                said += branch.text.attempts
            elif not ended:
                going.append(branch)
                continue
            self.ends.add((branch.text.token.id, branch.text.ids))
        return going, said

    def _choose(
        self, logits: Tensor, texts: Sequence[Text], draws: Sequence[tuple[int, Attempt]]
    ) -> list[int]:
        """The token of each draw; in float32, what lies within rounding is drawn again alone."""
        settles = self.backend.arithmetic == torch.float32
        rows, keys = [row for row, _ in draws], [attempt.key for _, attempt in draws]
        position = len(texts[rows[0]].ids)
        rounding = _FLOAT32_ROUNDING if settles else 0.0
        chosen, unclear = choose(logits, rows, keys, position, self.sampling, rounding)
        again = [i for i, doubt in enumerate(unclear) if doubt and settles]
        alone = {row: self._alone(texts[row]) for row in {rows[i] for i in again}}
        for i in again:
            settled, _ = choose(alone[rows[i]], [0], [keys[i]], position, self.sampling, 0.0)
            chosen[i] = settled[0]
        self.counters["resampled"] += len(again)
        return chosen

    def _alone(self, text: Text) -> Tensor:
        """Logits `(1, V)` after a text, from one pass over it behind the prefix."""
        ids = torch.tensor([[text.token.id, *self.prompt.suffix_ids, *text.ids]])
        return self.backend.last_logits(self.prompt.prefix_ids, ids)

    def _follow(self, cache: Any, found: Sequence[Branch]) -> Any:
        rows = self._filled([branch.row for branch in found])
        return self.backend.select(cache, rows)

    def _filled(self, rows: Sequence[Any]) -> Tensor:
        """Rows as a tensor, filled up to the width of a pass with the first."""
        return torch.tensor([*rows, *[rows[0]] * (self.shape.width(len(rows)) - len(rows))])


def _stay(found: Sequence[Branch], rows: int) -> bool:
    """Whether texts go on in the rows they are in, beside those that are finished."""
    one_each = len({branch.row for branch in found}) == len(found)
    return one_each and len(found) > _MOST_OF_THEM * rows


def _in_place(texts: Sequence[Text], found: Sequence[Branch]) -> list[Text]:
    """Every row's text; those that are finished have no attempts any more."""
    now = [Text(text.token, text.ids, ()) for text in texts]
    for branch in found:
        now[branch.row] = branch.text
    return now
