"""Sampled answers to prompts with a token in them, whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glitchrun.events import Token
from glitchrun.probing.backend import Backend
from glitchrun.probing.choice import Sampling
from glitchrun.probing.noise import stream
from glitchrun.probing.sampler import Sampler
from glitchrun.probing.texts import Attempt, Ending, Text
from glitchrun.prompts.render import Prompt


class Answers(Sampler):
    """A sampler whose continuations go on to their own end and are kept as text.

    An answer depends on (seed, token, prompt, attempt) alone, as the attempts of `Sampler` do.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        sampling: Sampling,
        max_new_tokens: int,
        rows: int,
        seed: int,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        stop_text: str | None = None,
    ) -> None:
        super().__init__(
            backend,
            {},
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            rows=rows,
            seed=seed,
            decode=decode,
            stop_ids=stop_ids,
            stop_text=stop_text,
        )
        self._ending = self._kept = _Kept(decode, stop_ids, stop_text)

    def answers(self, prompt: Prompt, tokens: Sequence[Token], attempts: int) -> list[list[str]]:
        """For each token the answers of its attempts: the sampled ids as text, without what ends
        them. `tokens` holds each token once."""
        asked = [
            [
                Attempt(token, i, stream(self.seed, token.id, prompt.probe, i))
                for i in range(attempts)
            ]
            for token in tokens
        ]
        self._kept.texts.clear()
        self._said(prompt, [attempt for some in asked for attempt in some])
        return [[self._kept.texts[attempt] for attempt in some] for some in asked]


class _Kept(Ending):
    """Keeps each attempt's text as it grows; only an end ends it."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        stop_text: str | None,
    ) -> None:
        super().__init__(decode, stop_ids, stop_text)
        self.texts: dict[Attempt, str] = {}

    def of(self, text: Text) -> tuple[bool, bool]:
        ended = text.ids[-1] in self._stop_ids
        answer, stop = self._decode(text.ids[:-1] if ended else text.ids), ""
        if self._stop_text:
            answer, stop, _ = answer.partition(self._stop_text)
        self.texts |= dict.fromkeys(text.attempts, answer)
        return ended or bool(stop), False
