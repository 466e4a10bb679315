"""Batched verification: does the model repeat the token?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from glitchrun.events import ProbeResult
from glitchrun.plan.batch_sizes import RECHECK_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.probing.memory_limits import is_out_of_memory
from glitchrun.probing.statistics import ROUNDING, Statistics, measure
from glitchrun.prompts.render import Prompt


class Verifier:
    """Presents tokens by id behind each probe's prefix and reads off what the model makes of them.

    Every forward pass has the same shape: a batch that is not full is filled up with its first
    token. A verdict within rounding is settled again in float32, and one within float32's own
    rounding in a pass of its own, so that verdicts do not depend on the batch.
    """

    def __init__(
        self, backend: Backend, prompts: Mapping[str, Prompt], rows: int, limit: float = 1.0
    ) -> None:
        self.backend = backend
        self.prompts = prompts
        self.rows = rows
        self.limit = limit
        """The probability that verdicts are measured against."""
        self.counters: Counter[str] = Counter()
        """Work since it was last cleared: forwards, rechecked, batch_halvings."""

    def verify(self, token_ids: Sequence[int]) -> list[dict[str, ProbeResult]]:
        """One result for each token and probe, in the order of `token_ids`."""
        columns = {name: self._probe(prompt, token_ids) for name, prompt in self.prompts.items()}
        return [
            {name: results[row] for name, results in columns.items()}
            for row in range(len(token_ids))
        ]

    def _probe(self, prompt: Prompt, token_ids: Sequence[int]) -> list[ProbeResult]:
        first = self.backend.arithmetic
        results = self._pass(prompt, token_ids, self.rows, first)
        unclear = [i for i, (_, doubt) in enumerate(results) if doubt]
        self.counters["rechecked"] += len(unclear)
        if first != torch.float32 and unclear:
            again = [token_ids[i] for i in unclear]
            rows = RECHECK_BATCH.get(self.backend.device.type, RECHECK_BATCH["cpu"])
            settled = self._pass(prompt, again, rows, torch.float32)
            for i, result in zip(unclear, settled, strict=True):
                results[i] = result
            unclear = [i for i in unclear if results[i][1]]
        for i in unclear:
            results[i] = (self._alone(prompt, token_ids[i]), False)
        return [result for result, _ in results]

    def _pass(
        self, prompt: Prompt, token_ids: Sequence[int], rows: int, dtype: torch.dtype
    ) -> list[tuple[ProbeResult, bool]]:
        """Results in one arithmetic, each with whether it lies within the rounding of that."""
        found: list[tuple[ProbeResult, bool]] = []
        running: Statistics | None = None
        start = 0
        while start < len(token_ids):
            chunk = token_ids[start : start + rows]
            try:
                statistics = self._forward(prompt, chunk, rows, dtype)
            except (torch.OutOfMemoryError, RuntimeError) as exc:
                if rows == 1 or not is_out_of_memory(exc):
                    raise
                rows = self._halve(rows)
                continue
            if running is not None:  # read while a GPU computes the next pass
                found += self._read(running, dtype)
            running = statistics
            start += len(chunk)
        return found if running is None else [*found, *self._read(running, dtype)]

    def _read(
        self, statistics: Statistics, dtype: torch.dtype
    ) -> Iterator[tuple[ProbeResult, bool]]:
        here = statistics.fetched()
        doubt = here.unclear(ROUNDING[dtype], self.limit).tolist()
        return zip(_results(here, dtype), doubt, strict=True)

    def _forward(
        self, prompt: Prompt, chunk: Sequence[int], rows: int, dtype: torch.dtype
    ) -> Statistics:
        targets = torch.tensor(chunk, device=self.backend.device)
        suffixes = _suffixes(prompt, chunk, rows)
        self.counters["forwards"] += 1
        return self.backend.statistics(
            prompt.prefix_ids, suffixes, targets, float32=dtype == torch.float32
        )

    def _alone(self, prompt: Prompt, token_id: int) -> ProbeResult:
        self.counters["forwards"] += 1
        logits = self.backend.logits_alone(prompt.ids(token_id), float32=True)
        target = torch.tensor([token_id], device=logits.device)
        return next(_results(measure(logits[None], target), torch.float32))

    def _halve(self, rows: int) -> int:
        if rows == self.rows:
            self.rows = rows // 2
        self.counters["batch_halvings"] += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return rows // 2


def _suffixes(prompt: Prompt, chunk: Sequence[int], rows: int) -> Tensor:
    """Token and suffix ids, `(rows, 1 + S)`; rows beyond the chunk repeat its first token."""
    tokens = [*chunk, *[chunk[0]] * (rows - len(chunk))]
    tail = torch.tensor(prompt.suffix_ids, dtype=torch.long).expand(rows, -1)
    return torch.cat([torch.tensor(tokens)[:, None], tail], dim=1)


def _results(statistics: Statistics, dtype: torch.dtype) -> Iterator[ProbeResult]:
    names = ("p", "rank", "entropy", "argmax", "gap", "passed")
    columns = [getattr(statistics, name).tolist() for name in names]
    decided_in = str(dtype).removeprefix("torch.")
    for p, rank, entropy, argmax, gap, passed in zip(*columns, strict=True):
        yield ProbeResult(p, rank, entropy, argmax, gap, passed, decided_in)
