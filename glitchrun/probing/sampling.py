"""Batched sampling of continuations: how often does the model fail to produce the token?

One call of `Sampler.sample` does the following for each probe:

1. Give each token one empty continuation that all of its attempts share.
2. Take as many continuations as a batch may have rows, and prefill their suffixes after the prefix
   that all of them share.
3. Choose the next token of every attempt. Re-evaluate near-ties in a pass of their own.
4. Fork: attempts that chose the same token still share one continuation, the others part.
5. Split the forks into micro-batches, so that there is a row for each attempt however they part.
6. Per micro-batch, run one position, choose and fork again, and drop finished continuations, until
   none is unfinished or `max_new_tokens` is reached.

An attempt is a function of (seed, token, probe, attempt): `token_choice`, `batch_invariance` and
the re-evaluated near-ties of step 3 keep batch composition out of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glitchrun.events import Attempt, Token
from glitchrun.probing.backend import Backend
from glitchrun.probing.batch_invariance import BatchShape, batch_shape
from glitchrun.probing.memory_limits import prepare_retry
from glitchrun.probing.token_choice import SamplingParams, choose_tokens, rng_key
from glitchrun.prompts.render import Prompt

_FLOAT32_ROUNDING = 1e-5
"""Share of the largest logit. Two batch shapes gave float32 logits that differed by at most 2.5e-6
of it; this is four times that."""
_KEEP_ROWS_ABOVE = 7 / 8
"""While more than this share of the rows is unfinished, finished rows stay in the batch: removing
them means copying the others."""


# Continuations --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """One attempt on one token with one probe."""

    token: Token
    number: int
    rng_key: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """The ids sampled so far, and the attempts that have sampled exactly these."""

    token: Token
    """The token that the prompt asks for."""
    ids: tuple[int, ...]
    attempts: tuple[PlannedAttempt, ...]
    matched: bool = False
    """Whether it has produced the token."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A continuation, and the row of the last pass that it continues."""

    row: int
    continuation: Continuation


def group_by_token(attempts: Iterable[PlannedAttempt]) -> list[Continuation]:
    """Returns one empty continuation per token, in the order of its first attempt."""
    by_token: dict[Token, list[PlannedAttempt]] = {}
    for attempt in attempts:
        by_token.setdefault(attempt.token, []).append(attempt)
    return [Continuation(token, (), tuple(some)) for token, some in by_token.items()]


def fork(
    continuations: Sequence[Continuation],
    draws: Iterable[tuple[int, PlannedAttempt]],
    chosen: Iterable[int],
) -> list[Fork]:
    """Returns one fork for each row and token that was chosen there, ordered by row.

    Args:
        continuations: `(B,)` the continuation of each row.
        draws: `(A,)` each attempt, with its row.
        chosen: `(A,)` the token id that each attempt chose.
    """
    groups: dict[tuple[int, int], list[PlannedAttempt]] = {}
    for (row, attempt), token_id in zip(draws, chosen, strict=True):
        groups.setdefault((row, token_id), []).append(attempt)
    return [
        Fork(
            row,
            Continuation(
                continuations[row].token, (*continuations[row].ids, token_id), tuple(some)
            ),
        )
        for (row, token_id), some in groups.items()
    ]


def micro_batches(forks: Sequence[Fork], max_rows: int) -> Iterator[list[Fork]]:
    """Yields forks in groups of at most `max_rows` attempts; one fork may be split over several."""
    batch: list[Fork] = []
    room = max_rows
    for one in forks:
        rest = one.continuation.attempts
        while rest:
            some, rest = rest[:room], rest[room:]
            batch.append(Fork(one.row, replace(one.continuation, attempts=some)))
            room -= len(some)
            if room == 0:
                yield batch
                batch, room = [], max_rows
    if batch:
        yield batch


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


# The decode loop ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecodeLoop:
    """Samples the continuations of one prompt: steps 2 to 6 of the module's docstring."""

    backend: Backend
    prompt: Prompt
    params: SamplingParams
    max_new_tokens: int
    stop_rule: StopRule
    shape: BatchShape
    counters: Counter[str]
    """Incremented: drawn (tokens of all attempts), rows (of all decode passes), resampled."""

    def run(self, continuations: Sequence[Continuation]) -> list[Continuation]:
        """Samples at most `shape.max_rows` empty continuations to their ends; returns those."""
        ids = [self.prompt.tail(one.token.id) for one in continuations]
        cache = self.backend.start(self.prompt.prefix_ids, self.shape.padded(len(ids)))
        self.counters["sampling_forwards"] += 1
        logits, cache = self.backend.step(self._padded(ids), cache)  # (B, V)
        forks, finished = self._advance(logits, continuations)
        batches = list(micro_batches(forks, self.shape.max_rows))
        for number, batch in enumerate(batches, 1):
            rows = self._select(cache, batch, used_up=number == len(batches))
            finished += self._decode(rows, [one.continuation for one in batch])
        return finished

    def _decode(self, cache: Any, rows: Sequence[Continuation]) -> list[Continuation]:
        """Step 6: continues one micro-batch to the ends of its continuations."""
        finished: list[Continuation] = []
        unfinished = list(rows)
        for _ in range(1, self.max_new_tokens):
            ids = self._padded([one.ids[-1:] for one in rows])  # (B, 1)
            self.counters.update(sampling_forwards=1, rows=len(ids))
            logits, cache = self.backend.step(ids, cache)
            forks, ended = self._advance(logits, rows)
            finished += ended
            unfinished = [one.continuation for one in forks]
            if not forks:
                break
            if _can_keep_rows(forks, len(rows)):
                rows = _update_rows(rows, forks)
            else:
                cache, rows = self._select(cache, forks, used_up=True), unfinished
        return finished + unfinished

    def _advance(
        self, logits: Tensor, rows: Sequence[Continuation]
    ) -> tuple[list[Fork], list[Continuation]]:
        """Steps 3 and 4 for logits `(B, V)`: unfinished forks, and finished continuations."""
        draws = [(row, attempt) for row, one in enumerate(rows) for attempt in one.attempts]
        self.counters["drawn"] += len(draws)
        unfinished: list[Fork] = []
        finished: list[Continuation] = []
        for one in fork(rows, draws, self._choose(logits, rows, draws)):
            stops, matched = self.stop_rule.check(one.continuation)
            if stops:
                finished.append(replace(one.continuation, matched=matched))
            else:
                unfinished.append(one)
        return unfinished, finished

    def _choose(
        self,
        logits: Tensor,
        rows: Sequence[Continuation],
        draws: Sequence[tuple[int, PlannedAttempt]],
    ) -> list[int]:
        """Step 3: the token id of each draw. In float32, near-ties are drawn again alone."""
        re_evaluates = self.backend.arithmetic == torch.float32
        row_of, keys = [row for row, _ in draws], [attempt.rng_key for _, attempt in draws]
        position = len(rows[row_of[0]].ids)
        rounding = _FLOAT32_ROUNDING if re_evaluates else 0.0
        chosen, near_ties = choose_tokens(logits, row_of, keys, position, self.params, rounding)
        again = [i for i, tied in enumerate(near_ties) if tied and re_evaluates]
        alone = self._logits_alone(rows, sorted({row_of[i] for i in again}))
        for i in again:
            (chosen[i],), _ = choose_tokens(
                alone[row_of[i]], [0], [keys[i]], position, self.params, 0.0
            )
        self.counters["resampled"] += len(again)
        return chosen

    def _logits_alone(
        self, rows: Sequence[Continuation], wanted: Sequence[int]
    ) -> dict[int, Tensor]:
        """Logits `(1, V)` after the wanted rows, from a separate pass over each, after the
        prefix."""
        if not wanted:
            return {}
        ids = [[*self.prompt.tail(rows[row].token.id), *rows[row].ids] for row in wanted]
        logits = self.backend.logits_each(self.prompt.prefix_ids, torch.tensor(ids))
        return dict(zip(wanted, logits.split(1), strict=True))

    def _select(self, cache: Any, forks: Sequence[Fork], *, used_up: bool) -> Any:
        rows = self._padded([one.row for one in forks])
        return self.backend.select(cache, rows, used_up=used_up)

    def _padded(self, rows: Sequence[Any]) -> Tensor:
        """Rows as a tensor, padded with the first one to the size of a pass."""
        padding = self.shape.padded(len(rows)) - len(rows)
        return torch.tensor([*rows, *[rows[0]] * padding])


def _can_keep_rows(forks: Sequence[Fork], rows: int) -> bool:
    """Whether the forks can continue in their rows, next to those that are finished."""
    one_each = len({one.row for one in forks}) == len(forks)
    return one_each and len(forks) > _KEEP_ROWS_ABOVE * rows


def _update_rows(rows: Sequence[Continuation], forks: Sequence[Fork]) -> list[Continuation]:
    """The continuation of every row; finished ones have no attempts any more."""
    updated = [replace(one, attempts=()) for one in rows]
    for one in forks:
        updated[one.row] = one.continuation
    return updated


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
    ) -> None:
        self.backend = backend
        self.prompts = prompts or {}
        self.params = params
        self.max_new_tokens = max_new_tokens
        self.rows = rows
        """Attempts sampled side by side at most."""
        self.seed = seed
        self.counters: Counter[str] = Counter()
        """Work since the last clear: continuations, distinct (per token and prompt, in one call),
        drawn, sampling_forwards, rows, resampled, batch_halvings."""
        self.distinct: set[tuple[int, tuple[int, ...]]] = set()
        """Token id and sampled ids of each distinct continuation of the prompt sampled last."""
        self._stop_rule = StopRule(decode, stop_ids, stop_text, match)
        self._shape: BatchShape | None = None

    def sample(
        self, tokens: Sequence[Token], attempts: int | Sequence[range]
    ) -> list[tuple[bool, ...]]:
        """Returns whether each attempt on each token failed; see `attempt`."""
        return [outcomes for outcomes, _ in self.attempt(tokens, attempts)]

    def attempt(
        self, tokens: Sequence[Token], attempts: int | Sequence[range]
    ) -> list[tuple[tuple[bool, ...], tuple[Attempt, ...]]]:
        """Returns, for each token, whether each attempt failed, and all that was said.

        An attempt fails if no probe makes the model say the token. Once one has, the attempt does
        not try the probes after it. What was said is ordered by probe, then by attempt.

        Args:
            tokens: The tokens, each once.
            attempts: The number of attempts on each, or the attempt numbers of each token.
        """
        numbers = [range(attempts)] * len(tokens) if isinstance(attempts, int) else attempts
        asked = [(token, i) for token, some in zip(tokens, numbers, strict=True) for i in some]
        failed = {(token.id, i): True for token, i in asked}
        made: dict[int, list[Attempt]] = {token.id: [] for token in tokens}
        for name, prompt in self.prompts.items():
            still_failed = [
                PlannedAttempt(token, i, rng_key(self.seed, token.id, name, i))
                for token, i in asked
                if failed[token.id, i]
            ]
            found = self._continuations(prompt, still_failed)
            for token, attempt in self._attempts(name, found):
                made[token.id].append(attempt)
                failed[token.id, attempt.number] = not attempt.said
        return [
            (tuple(failed[token.id, i] for i in some), tuple(made[token.id]))
            for token, some in zip(tokens, numbers, strict=True)
        ]

    def _attempts(
        self, probe: str, continuations: Iterable[Continuation]
    ) -> list[tuple[Token, Attempt]]:
        """The continuations of a probe, one for each of their attempts, by attempt."""
        texts = [(one, self._stop_rule.answer(one)) for one in continuations]
        made = [
            (one.token, Attempt(probe, planned.number, one.matched, text, one.ids))
            for one, text in texts
            for planned in one.attempts
        ]
        return sorted(made, key=lambda item: item[1].number)

    def answers(self, prompt: Prompt, tokens: Sequence[Token], attempts: int) -> list[list[str]]:
        """Returns each token's sampled continuations as text, without what ended them.

        An answer goes on to its own end if the sampler was made with `match="never"`.

        Args:
            prompt: The prompt to put each token into.
            tokens: The tokens, each once.
            attempts: The number of answers per token.
        """
        asked = [
            PlannedAttempt(token, i, rng_key(self.seed, token.id, prompt.probe, i))
            for token in tokens
            for i in range(attempts)
        ]
        texts: dict[PlannedAttempt, str] = {}
        for one in self._continuations(prompt, asked):
            texts.update(dict.fromkeys(one.attempts, self._stop_rule.answer(one)))
        found = [texts[attempt] for attempt in asked]
        return [found[start : start + attempts] for start in range(0, len(found), attempts)]

    def _continuations(
        self, prompt: Prompt, attempts: Iterable[PlannedAttempt]
    ) -> list[Continuation]:
        """Samples all attempts with one prompt. Halves the batch when memory runs out."""
        waiting = group_by_token(attempts)
        self.counters["continuations"] += sum(len(one.attempts) for one in waiting)
        finished: list[Continuation] = []
        while waiting:
            shape = self._shape = self._shape or batch_shape(self.backend, prompt, self.rows)
            chunk = waiting[: shape.max_rows]
            try:
                finished += self._decode_loop(prompt, shape).run(chunk)
            except RuntimeError as error:
                prepare_retry(error, shape.max_rows, self.counters)
                self._shape = shape.halved()
                self.rows = self._shape.max_rows
                continue
            waiting = waiting[len(chunk) :]
        self.distinct = {(one.token.id, one.ids) for one in finished}
        self.counters["distinct"] += len(self.distinct)
        return finished

    def _decode_loop(self, prompt: Prompt, shape: BatchShape) -> DecodeLoop:
        return DecodeLoop(
            self.backend,
            prompt,
            self.params,
            self.max_new_tokens,
            self._stop_rule,
            shape,
            self.counters,
        )
