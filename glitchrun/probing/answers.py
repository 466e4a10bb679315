"""Sampled answers to prompts with a token in them, whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from glitchrun.events import Token
from glitchrun.probing.noise import stream
from glitchrun.probing.sampler import Sampler
from glitchrun.probing.texts import Attempt, Ending, Text
from glitchrun.prompts.render import Prompt


@dataclass(frozen=True)
class _Kept(Ending):
    """Keeps each attempt's text as it grows; only an end ends it."""

    texts: dict[Attempt, str] = field(default_factory=dict)

    def of(self, text: Text) -> tuple[bool, bool]:
        ended = text.ids[-1] in self.stop_ids
        answer, stop = self.decode(text.ids[:-1] if ended else text.ids), ""
        if self.stop_text:
            answer, stop, _ = answer.partition(self.stop_text)
        self.texts.update(dict.fromkeys(text.attempts, answer))
        return ended or bool(stop), False


class Answers(Sampler):
    """A sampler whose continuations go on to their own end and are kept as text.

    An answer depends on (seed, token, prompt, attempt) alone, as the attempts of `Sampler` do.
    """

    _ends = _Kept

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
        kept = self._ending
        assert isinstance(kept, _Kept)
        kept.texts.clear()
        self._said(prompt, [attempt for some in asked for attempt in some])
        return [[kept.texts[attempt] for attempt in some] for some in asked]
