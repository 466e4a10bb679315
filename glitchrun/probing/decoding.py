"""The rows of a decode pass: adding them, running one position, and replacing those that ended.

`SlotDecoder` takes rows of any prompt at any time, so a batch is refilled as its rows end. It needs
the fast backend in float32, where a row's logits may differ by rounding from pass to pass, because
near-ties are re-evaluated. `CohortDecoder` runs any backend: its rows have one prompt and one
length, and new ones come when all have ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from glitchrun.probing.backend import Backend
from glitchrun.probing.batch_invariance import BatchShape
from glitchrun.probing.fast.ragged import RowPlaces, empty_slots, join_prefixes
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.prompts.render import Prompt

_KEEP_ROWS_ABOVE = 7 / 8
"""While more than this share of a cohort is unfinished, finished rows stay in it: removing them
means copying the others."""
_PREFILL_ROWS = 64
"""Rows whose prompts are run in one pass."""
_SHARED_POSITIONS = 1024
"""Positions of all prefixes above which attention to all of them costs more than full batches
gain."""
_KEPT_PROMPTS = 2
"""Prompts whose keys and values are kept, for each row of a batch: later attempts on a token begin
with the same ones. On SmolLM2 256 rows keep 350 MB."""


class Decoder(Protocol):
    """Rows that decode side by side, numbered from 0."""

    continuous: bool
    """Whether rows may be added while others run; else they are added if there are none, and have
    one prompt."""

    def add(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        """Adds a row for each token after the present rows, with nothing sampled yet. All have
        tails of one length."""

    def step(self, sampled: Sequence[Sequence[int]]) -> tuple[Tensor, Sequence[int]]:
        """Runs every row up to its newest id.

        Args:
            sampled: For each row, the ids sampled so far.

        Returns:
            Next-token logits `(B, V)`, and for each row the index of its logits.
        """

    def keep(self, parents: Sequence[int]) -> Sequence[int]:
        """Replaces the rows by copies of those at indices `parents`, which may repeat.

        Returns:
            The order of the new rows, as indices into `parents`.
        """


def decoder_of(
    backend: Backend,
    prompts: Sequence[Prompt],
    shape: BatchShape,
    new_tokens: int,
    counters: Counter[str],
) -> Decoder:
    """Returns a decoder without rows.

    Args:
        backend: Runs the model.
        prompts: All prompts that rows may have.
        shape: Limits on the rows of a pass.
        new_tokens: Most ids sampled in a row.
        counters: Incremented: sampling_forwards, rows (of passes of one position).
    """
    prefixes = {prompt.prefix_ids for prompt in prompts}
    is_short = sum(map(len, prefixes)) <= _SHARED_POSITIONS
    if isinstance(backend, FastBackend) and backend.arithmetic == torch.float32 and is_short:
        return SlotDecoder(backend, prompts, shape.max_rows, new_tokens, counters)
    return CohortDecoder(backend, shape, counters)


class CohortDecoder:
    """Rows of one prompt and one length."""

    continuous = False

    def __init__(self, backend: Backend, shape: BatchShape, counters: Counter[str]) -> None:
        self._backend = backend
        self._shape = shape
        self._counters = counters
        self._cache: Any = None
        self._first: Tensor | None = None
        """Logits after the prompts, until they are read."""
        self._places: Sequence[int] = ()
        """Of each row, its row in the cache, which may have others that ended."""
        self._size = 0
        """Rows in the cache, without padding."""

    def add(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        self._size, self._places = len(token_ids), range(len(token_ids))
        ids = self._padded([prompt.tail(token_id) for token_id in token_ids])
        cache = self._backend.start(prompt.prefix_ids, len(ids))
        self._counters["sampling_forwards"] += 1
        self._first, self._cache = self._backend.step(ids, cache)

    def step(self, sampled: Sequence[Sequence[int]]) -> tuple[Tensor, Sequence[int]]:
        if self._first is not None:
            logits, self._first = self._first, None
            return logits, self._places
        newest = [list(sampled[0][-1:])] * self._size
        for place, ids in zip(self._places, sampled, strict=True):
            newest[place] = list(ids[-1:])
        padded = self._padded(newest)  # (B, 1)
        self._counters.update(sampling_forwards=1, rows=len(padded))
        logits, self._cache = self._backend.step(padded, self._cache)
        return logits, self._places

    def keep(self, parents: Sequence[int]) -> Sequence[int]:
        places = [self._places[row] for row in parents]
        one_each = len({*places}) == len(places)
        if not places:
            self._cache = None
        elif one_each and len(places) > _KEEP_ROWS_ABOVE * self._size:
            self._places = places
        else:
            rows = self._padded(places)
            self._cache = self._backend.select(self._cache, rows, used_up=True)
            self._size, self._places = len(places), range(len(places))
        return range(len(parents))

    def _padded(self, rows: Sequence[Any]) -> Tensor:
        """Rows as a tensor, padded with the first one to the size of a pass."""
        padding = self._shape.padded(len(rows)) - len(rows)
        return torch.tensor([*rows, *[rows[0]] * padding])


class SlotDecoder:
    """Rows of any prompts and lengths; row i has slot i of the keys and values."""

    continuous = True

    def __init__(
        self,
        backend: FastBackend,
        prompts: Sequence[Prompt],
        rows: int,
        new_tokens: int,
        counters: Counter[str],
    ) -> None:
        self._backend = backend
        self._counters = counters
        self._numbers: dict[tuple[int, ...], int] = {}
        """Of each prefix, its number."""
        for prompt in prompts:
            self._numbers.setdefault(prompt.prefix_ids, len(self._numbers))
        caches = [backend.start(prefix, 1) for prefix in self._numbers]
        self._prefixes = join_prefixes(caches)
        own = max(prompt.tail_length for prompt in prompts)
        like = caches[0].keys[0]
        self._slots = empty_slots(backend.layout, rows, own + new_tokens, like, zeros=True)
        self._kept = empty_slots(backend.layout, _KEPT_PROMPTS * rows, own, like, zeros=False)
        self._kept_at: dict[tuple[int, int], int] = {}
        """Of each kept prompt (by its identity) and token, its slot in `_kept`; the oldest
        first."""
        self._rows: list[tuple[Prompt, tuple[int, ...]]] = []
        """The prompt and its tail."""
        self._end = 0
        """Positions of the longest slot."""

    def add(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        for start in range(0, len(token_ids), _PREFILL_ROWS):
            self._add(prompt, token_ids[start : start + _PREFILL_ROWS])

    def _add(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        """Adds rows that have all of their prompts but the last id, which is the first to run."""
        first = len(self._rows)
        self._rows += [(prompt, prompt.tail(token_id)) for token_id in token_ids]
        end = len(self._rows[-1][1]) - 1
        if end == 0:
            return
        for token_id in token_ids:
            if (slot := self._kept_at.pop((id(prompt), token_id), None)) is not None:
                self._kept_at[id(prompt), token_id] = slot  # now the newest
        missing = [
            one for one in dict.fromkeys(token_ids) if (id(prompt), one) not in self._kept_at
        ]
        if missing:
            self._prefill(prompt, missing)
        origins = [self._kept_at[id(prompt), token_id] for token_id in token_ids]
        self._slots.copy(self._kept, origins, range(first, len(self._rows)), end)

    def _prefill(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        """Runs and keeps a prompt with several tokens."""
        ids = torch.tensor([prompt.tail(token_id)[:-1] for token_id in token_ids])
        cache = self._backend.start(prompt.prefix_ids, len(ids))
        self._counters["sampling_forwards"] += 1
        _, cache = self._backend.step(ids, cache)
        slots = []
        for token_id in token_ids:
            slot = len(self._kept_at)
            if slot == self._kept.size:
                slot = self._kept_at.pop(next(iter(self._kept_at)))
            self._kept_at[id(prompt), token_id] = slot
            slots.append(slot)
        self._kept.fill(cache, len(prompt.prefix_ids), slots)

    def step(self, sampled: Sequence[Sequence[int]]) -> tuple[Tensor, Sequence[int]]:
        newest, prefix, start, own = [], [], [], []
        for (prompt, tail), ids in zip(self._rows, sampled, strict=True):
            newest.append(ids[-1] if ids else tail[-1])
            prefix.append(self._numbers[prompt.prefix_ids])
            start.append(len(prompt.prefix_ids))
            own.append(len(tail) - 1 + len(ids))
        self._counters.update(sampling_forwards=1, rows=len(newest))
        moved = torch.tensor([newest, prefix, start, own]).to(self._backend.device)
        places = RowPlaces(moved[1], moved[2], moved[3], max(own) + 1)
        self._end = places.length
        logits = self._backend.ragged_step(moved[0], places, self._slots, self._prefixes)
        return logits, range(len(newest))

    def keep(self, parents: Sequence[int]) -> Sequence[int]:
        """Rows stay in their slots; others are copied to those that became free."""
        count = len(parents)
        order = [-1] * count
        others = []
        for place, row in enumerate(parents):
            if row < count and order[row] < 0:
                order[row] = place
            else:
                others.append(place)
        free = [slot for slot in range(count) if order[slot] < 0]
        for slot, place in zip(free, others, strict=True):
            order[slot] = place
        self._slots.copy(self._slots, [parents[place] for place in others], free, self._end)
        self._rows = [self._rows[parents[place]] for place in order]
        return order
