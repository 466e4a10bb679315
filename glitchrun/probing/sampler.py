"""Batched sampling of continuations: how often does the model fail to say the token?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from glitchrun.events import Token
from glitchrun.probing.backend import Backend
from glitchrun.probing.choice import Sampling, choose
from glitchrun.probing.memory import is_out_of_memory
from glitchrun.probing.noise import stream
from glitchrun.prompts.render import Prompt

# Two batch shapes gave logits at most 2e-6 of the largest apart in float32; five times that.
_FLOAT32_ROUNDING = 1e-5
_FIXED_ROWS = 32
"""Rows of every pass where arithmetic is narrower than float32 (see Sampler)."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One attempt on one token behind one probe."""

    token: Token
    attempt: int
    key: int


@dataclass(slots=True)
class _Row:
    """A continuation that is being sampled."""

    job: _Job
    ids: list[int] = field(default_factory=list)
    done: bool = False
    said_it: bool = False
    unclear: bool = False


class Sampler:
    """Samples attempts of many tokens side by side on one shared prefix.

    In float32, rows that are finished leave the batch, and a row in which another token came within
    rounding of being chosen is sampled again alone, in one fixed shape. In narrower arithmetic
    nearly every row would be such a row, so there all passes have one fixed shape instead. Either
    way an attempt does not depend on what it was batched with.
    """

    def __init__(
        self,
        backend: Backend,
        prompts: Mapping[str, Prompt],
        *,
        sampling: Sampling,
        max_new_tokens: int,
        rows: int,
        seed: int,
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        stop_text: str | None = None,
    ) -> None:
        self.backend = backend
        self.prompts = prompts
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.exact = backend.arithmetic == torch.float32
        self.rows = rows if self.exact else _FIXED_ROWS
        self.seed = seed
        self.decode = decode
        self.stop_ids = stop_ids
        self.stop_text = stop_text
        self.counters: Counter[str] = Counter()
        """Work since it was last cleared: continuations, resampled, batch_halvings."""

    def sample(self, tokens: Sequence[Token], attempts: int) -> list[tuple[bool, ...]]:
        """Whether each attempt on each token failed: no probe's continuation held the token."""
        failed = {(token.id, i): True for token in tokens for i in range(attempts)}
        by_id = {token.id: token for token in tokens}
        for name, prompt in self.prompts.items():
            open_ = [(token_id, i) for (token_id, i), still in failed.items() if still]
            jobs = [
                _Job(by_id[token_id], i, stream(self.seed, token_id, name, i))
                for token_id, i in open_
            ]
            for job, said_it in zip(jobs, self._run(prompt, jobs), strict=True):
                failed[job.token.id, job.attempt] = not said_it
        return [tuple(failed[token.id, i] for i in range(attempts)) for token in tokens]

    def _run(self, prompt: Prompt, jobs: Sequence[_Job]) -> list[bool]:
        self.counters["continuations"] += len(jobs)
        rows: list[_Row] = []
        while len(rows) < len(jobs):
            chunk = jobs[len(rows) : len(rows) + self.rows]
            try:
                rows += self._continue(prompt, chunk)
            except (torch.OutOfMemoryError, RuntimeError) as exc:
                if self.rows == 1 or not is_out_of_memory(exc):
                    raise
                self.rows //= 2
                self.counters["batch_halvings"] += 1
        for row in rows:
            if row.unclear:
                self.counters["resampled"] += 1
                row.said_it = self._continue(prompt, [row.job], alone=True)[0].said_it
        return [row.said_it for row in rows]

    def _continue(self, prompt: Prompt, jobs: Sequence[_Job], *, alone: bool = False) -> list[_Row]:
        rows = [_Row(job) for job in jobs]
        width = len(rows) if self.exact else self.rows
        tokens = [job.token.id for job in jobs] + [jobs[0].token.id] * (width - len(jobs))
        tail = torch.tensor(prompt.suffix_ids, dtype=torch.long).expand(width, -1)
        ids = torch.cat([torch.tensor(tokens)[:, None], tail], dim=1)
        cache = self.backend.start(prompt.prefix_ids, width)
        active = rows
        for position in range(self.max_new_tokens):
            logits, cache = self.backend.step(ids, cache)
            rounding = self._rounding(logits) if self.exact and not alone else 0.0
            keys = [row.job.key for row in active]
            chosen, unclear = choose(logits[: len(active)], keys, position, self.sampling, rounding)
            for row, token_id, doubt in zip(active, chosen, unclear, strict=True):
                self._extend(row, token_id, doubt)
            keep = [i for i, row in enumerate(active) if not row.done]
            if not keep:
                break
            # Taking rows out copies the whole cache: it pays once a quarter of them are finished.
            if self.exact and len(keep) <= 3 * len(active) // 4:
                cache = self.backend.select(cache, torch.tensor(keep))
                active, chosen = [active[i] for i in keep], [chosen[i] for i in keep]
            ids = torch.tensor(chosen + [chosen[0]] * (width - len(chosen)) * (not self.exact))
            ids = ids[:, None]
        return rows

    def _extend(self, row: _Row, token_id: int, doubt: bool) -> None:
        if row.done:
            return
        row.ids.append(token_id)
        row.unclear = row.done = doubt
        if doubt:
            return
        answer, stop, _ = self._answer(row)
        row.said_it = token_id == row.job.token.id or _holds(answer, row.job.token.text)
        row.done = row.said_it or bool(stop) or token_id in self.stop_ids

    def _answer(self, row: _Row) -> tuple[str, str, str]:
        """The continuation's text up to the template's closing text, and that text if it came."""
        text = self.decode(row.ids)
        return text.partition(self.stop_text) if self.stop_text else (text, "", "")

    def _rounding(self, logits: torch.Tensor) -> float:
        return _FLOAT32_ROUNDING * max(1.0, float(logits.abs().max()))


def _holds(answer: str, text: str) -> bool:
    """Whether an answer holds a token's text, white space around it aside."""
    # Half a character decodes to U+FFFD, which proves nothing. A token of nothing but white space
    # is looked for as it is.
    wanted = text.strip() or text
    return bool(wanted) and "\ufffd" not in wanted and wanted in answer
