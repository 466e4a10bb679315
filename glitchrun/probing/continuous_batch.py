"""The batch that sampling keeps full: new continuations take the rows of those that have ended.

A task is a generator that asks for attempts on one token with one prompt, receives their
continuations, and asks on or returns. A batch drives many of them side by side:

1. Begin tasks until their attempts fill the batch. A request has one empty continuation that all of
   its attempts share.
2. Add waiting continuations to the decoder's rows while there is a row for each attempt.
3. Run one position of every row, and choose the next token of every attempt. Re-evaluate near-ties
   in a pass of their own.
4. Fork: attempts that chose the same token still share one continuation, the others part.
5. Drop finished continuations, and resume the tasks whose requests are complete.

An attempt is a function of (seed, token, probe, attempt): `token_choice`, `batch_invariance` and
the re-evaluated near-ties of step 3 keep batch composition out of it.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor

from glitchrun.events import Token
from glitchrun.probing.backend import Backend
from glitchrun.probing.batch_invariance import BatchShape
from glitchrun.probing.decoding import Decoder, decoder_of
from glitchrun.probing.memory_limits import Pace, prepare_retry
from glitchrun.probing.token_choice import SamplingParams, choose_tokens
from glitchrun.prompts.render import Prompt

_FLOAT32_ROUNDING = 1e-5
"""Share of the largest logit. Two batch shapes gave float32 logits that differed by at most 2.5e-6
of it; this is four times that."""
_SHARED = 12
"""Attempts of a request that are never parted while rows run: apart they no longer share rows."""
_REFILL = 1 / 8
"""Share of the batch that must be free before new prompts are run: a pass of few is expensive."""

T = TypeVar("T")


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


@dataclass(eq=False, slots=True)
class Request:
    """Attempts on one token with one prompt that begin together."""

    prompt: Prompt
    attempts: tuple[PlannedAttempt, ...]
    finished: list[Continuation] = field(default_factory=list)
    task: int = 0
    """The number of the task that waits for them."""
    resampled: int = 0
    """Draws that were near-ties."""

    @property
    def is_complete(self) -> bool:
        """Whether all of its attempts have finished."""
        return sum(len(one.attempts) for one in self.finished) == len(self.attempts)

    @property
    def work(self) -> dict[str, int]:
        """What a complete request took: continuations, distinct, drawn (tokens of all attempts)
        and resampled. `resampled` may vary with rounding, nothing else with the batch."""
        return {
            "continuations": len(self.attempts),
            "distinct": len({one.ids for one in self.finished}),
            "drawn": sum(len(one.ids) * len(one.attempts) for one in self.finished),
            "resampled": self.resampled,
        }


Task = Generator[Request, Sequence[Continuation], T]
"""Yields requests, receives the continuations of each, and returns its result."""


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """A task that has ended."""

    number: int
    value: T
    """What it returned."""
    work: Counter[str]
    """The sum of the `work` of its requests."""


@dataclass(frozen=True, slots=True)
class Row:
    """A continuation that is decoded, and the request that it belongs to."""

    request: Request
    continuation: Continuation

    @property
    def size(self) -> int:
        """Its attempts, each of which may need a row of its own."""
        return len(self.continuation.attempts)

    def split(self, size: int) -> list[Row]:
        """Returns one row with the first attempts, and one with the others."""
        attempts = self.continuation.attempts
        parts = (attempts[:size], attempts[size:])
        return [Row(self.request, replace(self.continuation, attempts=part)) for part in parts]


def _size(rows: Iterable[Row]) -> int:
    return sum(row.size for row in rows)


def fork(
    continuations: Sequence[Continuation],
    draws: Iterable[tuple[int, PlannedAttempt]],
    chosen: Iterable[int],
) -> list[tuple[int, Continuation]]:
    """Returns one continuation for each row and token chosen there, with its row.

    Args:
        continuations: `(B,)` the continuation of each row.
        draws: `(A,)` each attempt, with its row.
        chosen: `(A,)` the token id that each attempt chose.
    """
    groups: dict[tuple[int, int], list[PlannedAttempt]] = {}
    for (row, attempt), token_id in zip(draws, chosen, strict=True):
        groups.setdefault((row, token_id), []).append(attempt)
    return [
        (row, Continuation(one.token, (*one.ids, token_id), tuple(some)))
        for (row, token_id), some in groups.items()
        for one in continuations[row : row + 1]
    ]


# The batch ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """How continuations are sampled."""

    backend: Backend
    params: SamplingParams
    max_new_tokens: int
    check: Callable[[Continuation], tuple[bool, bool]]
    """Called after every new id: whether a continuation is finished, and whether it has matched its
    token by then."""
    pace: Pace | None
    """Limits the attempts that run side by side; None for as many as there are rows."""
    counters: Counter[str]
    """Incremented: sampling_forwards, rows (of all decode passes), batch_halvings."""


class ContinuousBatch(Generic[T]):
    """Some tasks, and the rows of their requests; see the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        prompts: Sequence[Prompt],
        shape: BatchShape,
        tasks: Iterable[Task[T]],
    ) -> None:
        """`prompts` are all those of the requests."""
        self.shape = shape
        """Limits on the rows of a pass; halved when memory runs out."""
        self.begun = 0
        """Number of tasks that were begun."""
        self._settings = settings
        self._prompts = prompts
        self._unstarted = enumerate(tasks)
        self._tasks: dict[int, Task[T]] = {}
        self._work: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._waiting: list[Row] = []
        """In the order of their tasks."""
        self._rows: list[Row] = []
        self._decoder: Decoder | None = None

    def run(self) -> Iterator[Ended[T]]:
        """Yields the tasks as they end."""
        while True:
            yield from self._begin_tasks()
            if not self._waiting and not self._rows:
                return
            try:
                self._admit()
                complete = self._step()
            except RuntimeError as error:
                self._restart(error)
                continue
            for request in complete:
                self._work[request.task].update(request.work)
                yield from self._resume(request.task, request.finished)

    @property
    def _window(self) -> int:
        """Attempts that run side by side at present."""
        pace = self._settings.pace
        return pace.limit(self.shape.max_rows) if pace else self.shape.max_rows

    def _begin_tasks(self) -> Iterator[Ended[T]]:
        """Step 1."""
        while _size(self._waiting) + _size(self._rows) < self._window:
            number, task = next(self._unstarted, (-1, None))
            if task is None:
                return
            self._tasks[number] = task
            self.begun = number + 1
            yield from self._resume(number, None)

    def _resume(self, number: int, found: Sequence[Continuation] | None) -> Iterator[Ended[T]]:
        try:
            request = self._tasks[number].send(found)  # type: ignore[arg-type]
        except StopIteration as end:
            del self._tasks[number]
            yield Ended(number, end.value, self._work.pop(number, Counter()))
            return
        request.task = number
        self._wait(request)

    def _wait(self, request: Request) -> None:
        row = Row(request, Continuation(request.attempts[0].token, (), request.attempts))
        insort(self._waiting, row, key=lambda one: one.request.task)

    def _admit(self) -> None:
        """Step 2."""
        if self._decoder is None:
            self._decoder = decoder_of(
                self._settings.backend,
                self._prompts,
                self.shape,
                self._settings.max_new_tokens,
                self._settings.counters,
            )
        decoder, running = self._decoder, _size(self._rows)
        if not self._waiting or (self._rows and not decoder.continuous):
            return
        chosen, left = self._chosen(self._window - running, decoder.continuous)
        if _size(chosen) < min(_REFILL * self.shape.max_rows, running / 2):
            return
        chosen.sort(key=lambda row: self._prompts.index(row.request.prompt))
        self._waiting = left
        self._rows += chosen
        for prompt, some in groupby(chosen, lambda row: row.request.prompt):
            decoder.add(prompt, [row.continuation.token.id for row in some])

    def _chosen(self, room: int, continuous: bool) -> tuple[list[Row], list[Row]]:
        """The waiting rows to add, of at most `room` attempts, and the others."""
        wanted = self._prompts
        if not continuous:
            sizes: Counter[int] = Counter()  # prompts may not be hashable
            for row in self._waiting:
                sizes[self._prompts.index(row.request.prompt)] += row.size
            wanted = [self._prompts[sizes.most_common(1)[0][0]]]
        chosen: list[Row] = []
        left: list[Row] = []
        for row in self._waiting:
            if row.request.prompt in wanted and row.size <= room:
                chosen.append(row)
                room -= row.size
            elif row.request.prompt in wanted and room > 0 and self._may_part(row, chosen):
                first, rest = row.split(room)
                chosen, left, room = [*chosen, first], [*left, rest], 0
            else:
                left.append(row)
        return chosen, left

    def _may_part(self, row: Row, chosen: Sequence[Row]) -> bool:
        """Whether some attempts of a row that is too large may begin before the others."""
        return row.size > _SHARED or not (self._rows or chosen)

    def _step(self) -> list[Request]:
        """Steps 3 to 5. Returns the requests that are complete."""
        start = time.perf_counter()
        assert self._decoder is not None
        rows = [row.continuation for row in self._rows]
        logits, places = self._decoder.step([one.ids for one in rows])  # (B, V)
        draws = [(row, attempt) for row, one in enumerate(rows) for attempt in one.attempts]
        parents: list[int] = []
        unfinished: list[Row] = []
        touched: dict[Request, None] = {}
        for row, continuation in fork(rows, draws, self._choose(logits, places, draws)):
            request = self._rows[row].request
            finished, matched = self._check(continuation)
            if finished:
                request.finished.append(replace(continuation, matched=matched))
                touched[request] = None
            else:
                parents.append(row)
                unfinished.append(Row(request, continuation))
        self._rows = [unfinished[place] for place in self._decoder.keep(parents)]
        if self._settings.pace:
            self._settings.pace.measure(len(draws), time.perf_counter() - start)
        return [request for request in touched if request.is_complete]

    def _check(self, continuation: Continuation) -> tuple[bool, bool]:
        stops, matched = self._settings.check(continuation)
        return stops or len(continuation.ids) >= self._settings.max_new_tokens, matched

    def _choose(
        self, logits: Tensor, places: Sequence[int], draws: Sequence[tuple[int, PlannedAttempt]]
    ) -> list[int]:
        """Step 3: the token id of each draw. In float32, near-ties are drawn again alone."""
        settings = self._settings
        re_evaluates = settings.backend.arithmetic == torch.float32
        keys = [attempt.rng_key for _, attempt in draws]
        positions = [len(self._rows[row].continuation.ids) for row, _ in draws]
        rounding = _FLOAT32_ROUNDING if re_evaluates else 0.0
        chosen, near_ties = choose_tokens(
            logits, [places[row] for row, _ in draws], keys, positions, settings.params, rounding
        )
        again = [i for i, tied in enumerate(near_ties) if tied and re_evaluates]
        alone = self._logits_alone({draws[i][0] for i in again})
        for i in again:
            (chosen[i],), _ = choose_tokens(
                alone[draws[i][0]], [0], [keys[i]], [positions[i]], settings.params, 0.0
            )
            self._rows[draws[i][0]].request.resampled += 1
        return chosen

    def _logits_alone(self, rows: Iterable[int]) -> dict[int, Tensor]:
        """Logits `(1, V)` after some rows, from a separate pass over each, after the prefix."""
        found: dict[int, Tensor] = {}
        alike: dict[tuple[int, int], list[int]] = {}
        for row in sorted(rows):
            one = self._rows[row]
            place = self._prompts.index(one.request.prompt)
            alike.setdefault((place, len(one.continuation.ids)), []).append(row)
        for (place, _), some in alike.items():
            prompt = self._prompts[place]
            texts = [self._rows[row].continuation for row in some]
            ids = torch.tensor([[*prompt.tail(one.token.id), *one.ids] for one in texts])
            logits = self._settings.backend.logits_each(prompt.prefix_ids, ids)
            found.update(zip(some, logits.split(1), strict=True))
        return found

    def _restart(self, error: RuntimeError) -> None:
        """Begins the running requests again with half of the rows, if memory ran out."""
        prepare_retry(error, self.shape.max_rows, self._settings.counters)
        self.shape = self.shape.halved()
        self._decoder = None
        requests = dict.fromkeys(row.request for row in self._rows)
        self._rows = []
        self._waiting = [row for row in self._waiting if row.request not in requests]
        for request in requests:
            request.finished.clear()
            request.resampled = 0
            self._wait(request)
