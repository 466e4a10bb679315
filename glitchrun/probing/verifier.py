"""Batched verification: does the model repeat the token?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from glitchrun.plan.passes import RECHECK_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.probing.greedy_reading import GreedyReader, Result, results_of, suffixes_of
from glitchrun.probing.logit_statistics import ROUNDING, Statistics
from glitchrun.probing.memory_limits import prepare_retry
from glitchrun.prompts.render import Prompt

_LONG_SUFFIX, _LEAST_ROWS = 64, 4
"""Positions from which a suffix is long, and the fewest rows of its passes."""


class Verifier:
    """Presents tokens by id after each probe's prefix, and measures the next-token logits.

    1. Tokens are verified in passes of one shape; the last one is padded with its first token.
    2. Near-ties are re-evaluated in float32, in passes of one fixed shape.
    3. What is still a near-tie in float32 is re-evaluated alone.

    So verdicts do not depend on the batch.
    """

    def __init__(
        self,
        backend: Backend,
        prompts: Mapping[str, Prompt],
        rows: int,
        limit: float = 1.0,
        readers: Mapping[str, GreedyReader] | None = None,
    ) -> None:
        self.backend = backend
        self.prompts = prompts
        self.readers = readers or {}
        """Readers of the probes that more than one next-token distribution decides."""
        self.rows = rows
        """Rows of a pass; halved when memory runs out."""
        self.limit = limit
        """The probability threshold of verdicts."""
        self.counters: Counter[str] = Counter()
        """Work since the last clear: forwards, rechecked, batch_halvings."""

    def verify(
        self, token_ids: Sequence[int], probes: Sequence[str] | None = None
    ) -> list[dict[str, Result]]:
        """Returns the result of each of `probes` for each token; None for all of its probes."""
        named = self.prompts if probes is None else probes
        columns = {name: self._probe(self.prompts[name], token_ids) for name in named}
        return [
            {name: results[row] for name, results in columns.items()}
            for row in range(len(token_ids))
        ]

    def _probe(self, prompt: Prompt, token_ids: Sequence[int]) -> list[Result]:
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
    ) -> list[tuple[Result, bool]]:
        """Results in one arithmetic, each with whether it is a near-tie there."""
        found: list[tuple[Result, bool]] = []
        running: Statistics | None = None
        start = 0
        reader = self.readers.get(prompt.probe)
        if reader is not None and (most := self.backend.answer_rows):
            rows = min(rows, most)
        while start < len(token_ids):
            chunk = token_ids[start : start + rows]
            try:
                if reader is not None:
                    self.counters["forwards"] += 1
                    padded = self._padded(prompt, len(chunk), rows)
                    found += reader.read(chunk, suffixes_of(prompt, chunk, padded), dtype)
                    start += len(chunk)
                    continue
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

    def _read(self, statistics: Statistics, dtype: torch.dtype) -> Iterator[tuple[Result, bool]]:
        on_cpu = statistics.to_cpu()
        near_ties = on_cpu.near_ties(ROUNDING[dtype], self.limit).tolist()
        return zip(results_of(on_cpu, dtype), near_ties, strict=True)

    def _forward(
        self, prompt: Prompt, chunk: Sequence[int], rows: int, dtype: torch.dtype
    ) -> Statistics:
        targets = torch.tensor(chunk, device=self.backend.device)
        padded = self._padded(prompt, len(chunk), rows)
        suffixes = suffixes_of(prompt, chunk, padded)
        self.counters["forwards"] += 1
        return self.backend.statistics(
            prompt.prefix_ids, suffixes, targets, float32=dtype == torch.float32
        )

    def _verify_alone(self, prompt: Prompt, token_ids: Sequence[int]) -> list[Result]:
        self.counters["forwards"] += len(token_ids)
        if reader := self.readers.get(prompt.probe):
            return [reader.read_alone(token_id) for token_id in token_ids]
        prompts = torch.tensor([prompt.ids(token_id) for token_id in token_ids])  # (B, T)
        found = self.backend.statistics_alone(prompts, torch.tensor(token_ids))
        return list(results_of(found, torch.float32))

    def _padded(self, prompt: Prompt, tokens: int, rows: int) -> int:
        """The rows of a pass of `tokens` tokens: always `rows`, except for a long suffix, where
        padding would take most of the time: then the next power of two."""
        if self.backend.pass_rows:
            return tokens
        if len(prompt.suffix_ids) < _LONG_SUFFIX and prompt.probe not in self.readers:
            return rows
        return min(rows, max(_LEAST_ROWS, 1 << (tokens - 1).bit_length()))
