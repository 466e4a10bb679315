"""Batched verification: does the model repeat the token?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from glitchrun.events import ProbeResult
from glitchrun.plan.batch_sizes import RECHECK_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.probing.logit_statistics import ROUNDING, Statistics
from glitchrun.probing.memory_limits import prepare_retry
from glitchrun.prompts.render import Prompt


class Verifier:
    """Presents tokens by id behind each probe's prefix, and measures the next-token logits.

    1. Tokens are verified in passes of one shape; the last one is padded with its first token.
    2. Near-ties are re-evaluated in float32, in passes of one fixed shape.
    3. What is still a near-tie in float32 is re-evaluated alone.

    So verdicts do not depend on the batch.
    """

    def __init__(
        self, backend: Backend, prompts: Mapping[str, Prompt], rows: int, limit: float = 1.0
    ) -> None:
        self.backend = backend
        self.prompts = prompts
        self.rows = rows
        """Rows of a pass; halved when memory runs out."""
        self.limit = limit
        """The probability threshold of verdicts."""
        self.counters: Counter[str] = Counter()
        """Work since the last clear: forwards, rechecked, batch_halvings."""

    def verify(self, token_ids: Sequence[int]) -> list[dict[str, ProbeResult]]:
        """Returns the result of each probe for each token."""
        columns = {name: self._probe(prompt, token_ids) for name, prompt in self.prompts.items()}
        return [
            {name: results[row] for name, results in columns.items()}
            for row in range(len(token_ids))
        ]

    def _probe(self, prompt: Prompt, token_ids: Sequence[int]) -> list[ProbeResult]:
        arithmetic = self.backend.arithmetic
        results = self._run(prompt, token_ids, self.rows, arithmetic)
        near_ties = [i for i, (_, tied) in enumerate(results) if tied]
        self.counters["rechecked"] += len(near_ties)
        if arithmetic != torch.float32 and near_ties:
            again = [token_ids[i] for i in near_ties]
            rows = self.backend.pass_rows or RECHECK_BATCH.get(
                self.backend.device.type, RECHECK_BATCH["cpu"]
            )
            rechecked = self._run(prompt, again, rows, torch.float32)
            for i, result in zip(near_ties, rechecked, strict=True):
                results[i] = result
            near_ties = [i for i in near_ties if results[i][1]]
        if near_ties:
            settled = self._verify_alone(prompt, [token_ids[i] for i in near_ties])
            for i, decided in zip(near_ties, settled, strict=True):
                results[i] = (decided, False)
        return [result for result, _ in results]

    def _run(
        self, prompt: Prompt, token_ids: Sequence[int], rows: int, dtype: torch.dtype
    ) -> list[tuple[ProbeResult, bool]]:
        """Results in one arithmetic, each with whether it is a near-tie there."""
        found: list[tuple[ProbeResult, bool]] = []
        running: Statistics | None = None
        start = 0
        while start < len(token_ids):
            chunk = token_ids[start : start + rows]
            try:
                statistics = self._forward(prompt, chunk, rows, dtype)
            except RuntimeError as error:
                prepare_retry(error, rows, self.counters)
                if rows == self.rows:
                    self.rows = rows // 2
                rows //= 2
                continue
            if running is not None:  # read while a GPU computes the next pass
                found += self._read(running, dtype)
            running = statistics
            start += len(chunk)
        return found if running is None else [*found, *self._read(running, dtype)]

    def _read(
        self, statistics: Statistics, dtype: torch.dtype
    ) -> Iterator[tuple[ProbeResult, bool]]:
        on_cpu = statistics.to_cpu()
        near_ties = on_cpu.near_ties(ROUNDING[dtype], self.limit).tolist()
        return zip(_results(on_cpu, dtype), near_ties, strict=True)

    def _forward(
        self, prompt: Prompt, chunk: Sequence[int], rows: int, dtype: torch.dtype
    ) -> Statistics:
        targets = torch.tensor(chunk, device=self.backend.device)
        padded = len(chunk) if self.backend.pass_rows else rows
        suffixes = _suffixes(prompt, chunk, padded)
        self.counters["forwards"] += 1
        return self.backend.statistics(
            prompt.prefix_ids, suffixes, targets, float32=dtype == torch.float32
        )

    def _verify_alone(self, prompt: Prompt, token_ids: Sequence[int]) -> list[ProbeResult]:
        self.counters["forwards"] += len(token_ids)
        prompts = torch.tensor([prompt.ids(token_id) for token_id in token_ids])  # (B, T)
        found = self.backend.statistics_alone(prompts, torch.tensor(token_ids))
        return list(_results(found, torch.float32))


def _suffixes(prompt: Prompt, chunk: Sequence[int], rows: int) -> Tensor:
    """Token and suffix ids `(rows, 1 + S)`; rows beyond the chunk repeat its first token."""
    tokens = [*chunk, *[chunk[0]] * (rows - len(chunk))]
    tail = torch.tensor(prompt.suffix_ids, dtype=torch.long).expand(rows, -1)
    return torch.cat([torch.tensor(tokens)[:, None], tail], dim=1)


def _results(statistics: Statistics, dtype: torch.dtype) -> Iterator[ProbeResult]:
    names = ("p", "rank", "entropy", "argmax", "gap", "passed")
    columns = [getattr(statistics, name).tolist() for name in names]
    decided_in = str(dtype).removeprefix("torch.")
    for p, rank, entropy, argmax, gap, passed in zip(*columns, strict=True):
        yield ProbeResult(p, rank, entropy, argmax, gap, passed, decided_in)
