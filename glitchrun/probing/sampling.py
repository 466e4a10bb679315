"""Sampled attempts: how often does the model fail to produce the token?

`Sampler` makes attempts on tokens, and answers to prompts, as tasks of a `ContinuousBatch`. An
attempt is a function of (seed, token, probe, attempt), whatever else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from glitchrun.events import Attempt, Token
from glitchrun.probing.backend import Backend
from glitchrun.probing.batch_invariance import BatchShape, batch_shape
from glitchrun.probing.continuous_batch import (
    Continuation,
    ContinuousBatch,
    Ended,
    PlannedAttempt,
    Request,
    Settings,
    Task,
)
from glitchrun.probing.memory_limits import Pace
from glitchrun.probing.token_choice import SamplingParams, rng_key
from glitchrun.prompts.render import Prompt

T = TypeVar("T")
Made = tuple[tuple[bool, ...], tuple[Attempt, ...]]
"""Whether each attempt on a token failed, and all that was said."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a continuation is finished, and whether it has matched its token by then."""

    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    stop_text: str | None = None
    match: str = "either"
    """What matches a token: its `id`, its `text`, `either`, or `never` anything."""

    def check(self, continuation: Continuation) -> tuple[bool, bool]:
        """Returns whether a continuation is finished and whether it matched its token.

        Must be called after every new id.
        """
        newest, token = continuation.ids[-1], continuation.token
        answer, stopped = self._before_stop(continuation.ids)
        matched = (self.match in ("id", "either") and newest == token.id) or (
            self.match in ("text", "either") and _contains(answer, token.text)
        )
        return matched or stopped or newest in self.stop_ids, matched

    def answer(self, continuation: Continuation) -> str:
        """Returns a continuation as text, without the stop id or stop text that ended it."""
        ids = continuation.ids
        stopped = ids[-1] in self.stop_ids and not continuation.matched
        return self._before_stop(ids[:-1] if stopped else ids)[0]

    def _before_stop(self, ids: Sequence[int]) -> tuple[str, bool]:
        text = self.decode(ids)
        if not self.stop_text:
            return text, False
        answer, stop, _ = text.partition(self.stop_text)
        return answer, bool(stop)


def _contains(answer: str, text: str) -> bool:
    # Part of a character decodes to U+FFFD, which proves nothing. Surrounding white space is
    # ignored, except for a token of nothing but white space.
    wanted = text.strip() or text
    return bool(wanted) and "\ufffd" not in wanted and wanted in answer


# The sampler ----------------------------------------------------------------------------------


class Sampler:
    """Samples attempts on many tokens side by side; see the module's docstring."""

    def __init__(
        self,
        backend: Backend,
        prompts: Mapping[str, Prompt] | None = None,
        *,
        params: SamplingParams,
        max_new_tokens: int,
        rows: int,
        seed: int,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        stop_text: str | None = None,
        match: str = "either",
        pace: Pace | None = None,
    ) -> None:
        self.backend = backend
        self.prompts = prompts or {}
        self.params = params
        self.max_new_tokens = max_new_tokens
        self.rows = rows
        """Attempts sampled side by side at most."""
        self.seed = seed
        self.pace = pace
        """Limits the attempts further; None for no limit."""
        self.counters: Counter[str] = Counter()
        """Since the last clear, the passes that were run: sampling_forwards, rows, batch_halvings.
        `attempt` and `answers` add their work: continuations, distinct (per token and prompt),
        drawn, resampled."""
        self.begun: Callable[[], int] = lambda: 0
        """Returns the number of tasks that the last `run` has begun."""
        self._stop_rule = StopRule(decode, stop_ids, stop_text, match)
        self._shape: BatchShape | None = None

    def sample(
        self, tokens: Sequence[Token], attempts: int | Sequence[range]
    ) -> list[tuple[bool, ...]]:
        """Returns whether each attempt on each token failed; see `attempt`."""
        return [outcomes for outcomes, _ in self.attempt(tokens, attempts)]

    def attempt(self, tokens: Sequence[Token], attempts: int | Sequence[range]) -> list[Made]:
        """Returns, for each token, whether each attempt failed, and all that was said.

        Args:
            tokens: The tokens, each once.
            attempts: The number of attempts on each, or the attempt numbers of each token.
        """
        numbers = [range(attempts)] * len(tokens) if isinstance(attempts, int) else attempts
        asked = zip(tokens, numbers, strict=True)
        return self._in_order([self.attempts_on(token, some) for token, some in asked])

    def attempts_on(self, token: Token, numbers: Sequence[int]) -> Task[Made]:
        """A task of attempts on a token. What was said is ordered by probe, then by attempt.

        An attempt fails if no probe makes the model say the token. Once one has, the attempt does
        not try the probes after it.
        """
        failed = dict.fromkeys(numbers, True)
        made: list[Attempt] = []
        for name, prompt in self.prompts.items():
            left = tuple(self._planned(token, name, i) for i in numbers if failed[i])
            if not left:
                break
            found = [(one, self._stop_rule.answer(one)) for one in (yield Request(prompt, left))]
            said = [
                Attempt(name, planned.number, one.matched, text, one.ids)
                for one, text in found
                for planned in one.attempts
            ]
            made += sorted(said, key=lambda attempt: attempt.number)
            failed.update((attempt.number, not attempt.said) for attempt in said)
        return tuple(failed[i] for i in numbers), tuple(made)

    def attempts_asked(self, token: Token, asking: Generator[range, Made, T]) -> Task[T]:
        """A task of the attempts on a token whose numbers `asking` yields; it returns the same.

        Args:
            token: The token.
            asking: Receives what was made of each range of numbers.
        """
        try:
            numbers = next(asking)
            while True:
                numbers = asking.send((yield from self.attempts_on(token, numbers)))
        except StopIteration as end:
            return cast("T", end.value)

    def answers(
        self,
        prompt: Prompt,
        tokens: Sequence[Token],
        attempts: int,
        most: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """Returns each token's sampled continuations as text, without what ended them.

        An answer continues to its own end if the sampler was made with `match="never"`.

        Args:
            prompt: The prompt to put each token into.
            tokens: The tokens, each once.
            attempts: The number of answers per token.
            most: Of each token, the ids of an answer that are kept; None for all.
        """
        limits = most or [self.max_new_tokens] * len(tokens)

        def answered(token: Token, limit: int) -> Task[list[str]]:
            planned = tuple(self._planned(token, prompt.probe, i) for i in range(attempts))
            texts: dict[PlannedAttempt, str] = {}
            for one in (yield Request(prompt, planned)):
                kept = replace(one, ids=one.ids[:limit])
                texts.update(dict.fromkeys(one.attempts, self._stop_rule.answer(kept)))
            return [texts[attempt] for attempt in planned]

        return self._in_order([*map(answered, tokens, limits)], (prompt,))

    def _planned(self, token: Token, probe: str, number: int) -> PlannedAttempt:
        return PlannedAttempt(token, number, rng_key(self.seed, token.id, probe, number))

    def _in_order(
        self, tasks: Sequence[Task[T]], prompts: Sequence[Prompt] | None = None
    ) -> list[T]:
        """What each task returns; their work is added to the counters."""
        ended = sorted(self.run(tasks, prompts), key=lambda one: one.number)
        for one in ended:
            self.counters.update(one.work)
        return [one.value for one in ended]

    def run(
        self, tasks: Iterable[Task[T]], prompts: Sequence[Prompt] | None = None
    ) -> Iterator[Ended[T]]:
        """Runs tasks side by side; yields each as it ends, with its work.

        Args:
            tasks: Begun one after the other, as there is room for their attempts.
            prompts: The prompts of their requests; None for those of the sampler.
        """
        asked = tuple(self.prompts.values()) if prompts is None else prompts
        self._shape = self._shape or batch_shape(self.backend, asked[0], self.rows)
        settings = Settings(
            self.backend,
            self.params,
            self.max_new_tokens,
            self._stop_rule.check,
            self.pace,
            self.counters,
        )
        batch = ContinuousBatch(settings, asked, self._shape, tasks)
        self.begun = lambda: batch.begun
        try:
            yield from batch.run()
        finally:
            if batch.shape != self._shape:
                self._shape, self.rows = batch.shape, batch.shape.max_rows
