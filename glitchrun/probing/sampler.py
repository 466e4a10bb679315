"""Batched sampling of continuations: how often does the model fail to say the token?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch

from glitchrun.events import Token
from glitchrun.probing.alike import Shape, shape
from glitchrun.probing.backend import Backend
from glitchrun.probing.choice import Sampling
from glitchrun.probing.growth import Growth
from glitchrun.probing.memory import is_out_of_memory
from glitchrun.probing.noise import stream
from glitchrun.probing.texts import Attempt, Ending, beginnings
from glitchrun.prompts.render import Prompt


class Sampler:
    """Samples attempts of many tokens side by side on one shared prefix.

    A token's prompt is computed once for all its attempts, attempts that have drawn the same tokens
    so far are one row, and rows that are finished leave the batch. No attempt depends on what it
    was batched with: `alike.shape` and `Growth` see to that.
    """

    _ends: ClassVar[type[Ending]] = Ending

    def __init__(
        self,
        backend: Backend,
        prompts: Mapping[str, Prompt] | None = None,
        *,
        sampling: Sampling,
        max_new_tokens: int,
        rows: int,
        seed: int,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        stop_text: str | None = None,
        match: str = "either",
    ) -> None:
        self.backend = backend
        self.prompts = prompts or {}
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.rows = rows
        """Attempts that are sampled side by side at most."""
        self.seed = seed
        self.counters: Counter[str] = Counter()
        """Work since it was last cleared: continuations, distinct (of one token and
        prompt, in one call), drawn, rows, resampled, batch_halvings."""
        self.ends: set[tuple[int, tuple[int, ...]]] = set()
        """Token and ids of each different continuation of the prompt sampled last."""
        self._ending = self._ends(decode, stop_ids, stop_text, match)
        self._shape: Shape | None = None

    def sample(
        self, tokens: Sequence[Token], attempts: int | Sequence[range]
    ) -> list[tuple[bool, ...]]:
        """Whether each attempt on each token failed: no probe's continuation held the token.

        Args:
            tokens: What to sample attempts on, each once.
            attempts: How many on each; or, for each token, the numbers of its attempts.
        """
        numbers = [range(attempts)] * len(tokens) if isinstance(attempts, int) else attempts
        asked = [(token, i) for token, some in zip(tokens, numbers, strict=True) for i in some]
        failed = {(token.id, i): True for token, i in asked}
        for name, prompt in self.prompts.items():
            open_ = (
                Attempt(token, i, stream(self.seed, token.id, name, i))
                for token, i in asked
                if failed[token.id, i]
            )
            for attempt in self._said(prompt, open_):
                failed[attempt.token.id, attempt.number] = False
        return [
            tuple(failed[token.id, i] for i in some)
            for token, some in zip(tokens, numbers, strict=True)
        ]

    def _said(self, prompt: Prompt, attempts: Iterable[Attempt]) -> list[Attempt]:
        """The attempts whose continuation of this prompt says the token."""
        texts = beginnings(attempts)
        self.counters["continuations"] += sum(len(text.attempts) for text in texts)
        said: list[Attempt] = []
        self.ends = set()
        start = 0
        while start < len(texts):
            now = self._shape = self._shape or shape(self.backend, prompt, self.rows)
            chunk = texts[start : start + now.most]
            try:
                said += self._growth(prompt, now).grow(chunk)
            except (torch.OutOfMemoryError, RuntimeError) as exc:
                if now.most == 1 or not is_out_of_memory(exc):
                    raise
                self._halve(now)
                continue
            start += len(chunk)
        self.counters["distinct"] += len(self.ends)
        return said

    def _growth(self, prompt: Prompt, now: Shape) -> Growth:
        return Growth(
            self.backend,
            prompt,
            self.sampling,
            self.max_new_tokens,
            self._ending,
            now,
            self.counters,
            self.ends,
        )

    def _halve(self, now: Shape) -> None:
        self._shape = now.halved()
        self.rows = self._shape.most
        self.counters["batch_halvings"] += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
