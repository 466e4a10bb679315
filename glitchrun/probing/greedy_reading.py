"""Greedy answers to a probe: the token at any of several positions, or a text to compare.

1. Prompts are run after their shared prefix, in passes of one shape.
2. Each position takes the most probable id; a row ends with a stop id, or when it can end.
3. A result is a near-tie if rounding could have changed an id on the way, or the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glitchrun.behaviour.text_answers import (
    expected_answer,
    first_line,
    is_complete,
    is_right,
    most_tokens,
)
from glitchrun.events import Answered, ProbeResult
from glitchrun.probing.backend import Backend
from glitchrun.probing.logit_statistics import ROUNDING, Statistics, measure
from glitchrun.prompts.render import Prompt
from glitchrun.spec.probes import Probe

Result = ProbeResult | Answered


@dataclass(slots=True)
class _Row:
    """The answer on one token while it grows."""

    token: int
    text: str
    """The token's text; empty if the answer is not compared as text."""
    limit: int
    """Positions after which the answer is cut off."""
    ids: list[int] = field(default_factory=list)
    columns: list[tuple[float, int, float, int, float, bool]] = field(default_factory=list)
    """p, rank, entropy, argmax, gap and passed at each position."""
    path_tied: bool = False
    """Whether rounding could have changed an id before the last one."""
    last_tied: bool = False
    within: float = 0.0
    """How far rounding may have moved a logit at the position with the largest p."""
    ended: bool = False


class GreedyReader:
    """Reads greedy answers to one probe.

    Args:
        backend: Runs the model.
        prompt: The probe's prompt.
        probe: Its definition.
        limit: `thresholds.probability`.
        stop_ids: Ids that end an answer.
        decode: From ids to text.
        text_of: The text of a token.
    """

    def __init__(
        self,
        backend: Backend,
        prompt: Prompt,
        probe: Probe,
        limit: float,
        stop_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        text_of: Callable[[int], str],
    ) -> None:
        self._backend = backend
        self._prompt = prompt
        self._probe = probe
        self._limit = limit
        self._stop_ids = stop_ids
        self._decode = decode
        self._text_of = text_of

    @torch.no_grad()
    def read(
        self, chunk: Sequence[int], suffixes: Tensor, dtype: torch.dtype
    ) -> list[tuple[Result, bool]]:
        """Results for the tokens of one pass, each with whether it is a near-tie.

        Args:
            chunk: Token ids, at most as many as the rows of `suffixes`.
            suffixes: Ids of the prompts after the prefix, `(B, S)`.
            dtype: Arithmetic of the pass.
        """
        float32 = dtype == torch.float32
        rows = [self._new_row(token_id) for token_id in chunk]
        cache = self._backend.start(self._prompt.prefix_ids, len(suffixes), float32=float32)
        logits, cache = self._backend.step(suffixes, cache, float32=float32)  # (B, V)
        while True:
            taken = self._take(rows, logits[: len(rows)], ROUNDING[dtype])
            if all(row.ended for row in rows):
                break
            padding = [taken[0]] * (len(suffixes) - len(taken))
            ids = torch.tensor([*taken, *padding])[:, None]
            logits, cache = self._backend.step(ids, cache, float32=float32)
        return [self._result(row, dtype) for row in rows]

    @torch.no_grad()
    def read_alone(self, token_id: int) -> Result:
        """The result for one token, each position in a pass of its own, in float32."""
        row = self._new_row(token_id)
        while not row.ended:
            ids = (*self._prompt.ids(token_id), *row.ids)
            logits = self._backend.logits_alone(ids, float32=True)
            self._take([row], logits[None], 0.0)
        return self._result(row, torch.float32)[0]

    def _new_row(self, token_id: int) -> _Row:
        if not self._probe.is_text:
            return _Row(token_id, "", self._probe.within)
        text = self._text_of(token_id)
        return _Row(token_id, text, most_tokens(self._probe.expect, text))

    def _take(self, rows: Sequence[_Row], logits: Tensor, rounding: float) -> list[int]:
        """Appends the most probable id of logits `(B, V)` to each row. Returns these ids."""
        targets = torch.tensor([row.token for row in rows], device=logits.device)
        statistics = measure(logits, targets).to_cpu()
        best = logits.topk(2).values.cpu()  # (B, 2)
        close = (best[:, 0] - best[:, 1]) < rounding * statistics.scale.clamp(min=1.0)
        columns = _columns(statistics)
        for row, numbers, tied, within in zip(
            rows, columns, close.tolist(), _within(statistics, rounding), strict=True
        ):
            if row.ended:
                continue
            if not row.columns or numbers[0] > max(one[0] for one in row.columns):
                row.within = within
            row.columns.append(numbers)
            row.path_tied |= row.last_tied
            row.last_tied = tied
            row.ids.append(numbers[3])
            row.ended = self._is_ended(row)
        return [numbers[3] for numbers in columns]

    def _is_ended(self, row: _Row) -> bool:
        if row.ids[-1] in self._stop_ids or len(row.ids) >= row.limit:
            return True
        return self._probe.is_text and is_complete(self._probe.expect, self._said(row))

    def _said(self, row: _Row) -> str:
        kept = row.ids[:-1] if row.ids[-1] in self._stop_ids else row.ids
        return self._decode(kept)

    def _result(self, row: _Row, dtype: torch.dtype) -> tuple[Result, bool]:
        decided_in = str(dtype).removeprefix("torch.")
        if self._probe.is_text:
            said, expect = self._said(row), self._probe.expect
            right = is_right(expect, said, row.text)
            wanted = expected_answer(expect, row.text)
            answer = Answered(wanted, first_line(said).rstrip(), right, decided_in)
            return answer, row.path_tied or row.last_tied
        place = max(range(len(row.columns)), key=lambda at: row.columns[at][0])
        p, rank, entropy, argmax, gap, _ = row.columns[place]
        least = self._probe.probability
        passed = any(one[5] for one in row.columns) if least is None else p >= least
        several = self._probe.within > 1
        result = ProbeResult(
            p,
            rank,
            entropy,
            argmax,
            gap,
            passed,
            decided_in,
            at_positions=tuple(one[0] for one in row.columns) if several else (),
            greedy=tuple(row.ids) if several else (),
            least=least,
        )
        return result, row.path_tied or self._is_near(row, result)

    def _is_near(self, row: _Row, result: ProbeResult) -> bool:
        """Whether rounding could change the verdict: at the probe's limit or the spec's."""
        if self._probe.probability is not None:
            limits = [self._probe.probability]
        elif row.last_tied:
            return True
        else:
            limits = [] if result.passed else [self._limit]
        log_p = torch.tensor(result.p).log()
        return any(bool((log_p - torch.tensor(limit).log()).abs() < row.within) for limit in limits)


def _within(statistics: Statistics, rounding: float) -> list[float]:
    """`(B,)` how far rounding may move a logit."""
    found: list[float] = (rounding * statistics.scale.clamp(min=1.0)).tolist()
    return found


def _columns(statistics: Statistics) -> list[Any]:
    names = ("p", "rank", "entropy", "argmax", "gap", "passed")
    return list(zip(*(getattr(statistics, name).tolist() for name in names), strict=True))


def suffixes_of(prompt: Prompt, chunk: Sequence[int], rows: int) -> Tensor:
    """Ids from the token on `(rows, 1 + S)`; rows beyond the chunk repeat its first token."""
    tokens = torch.tensor([*chunk, *[chunk[0]] * (rows - len(chunk))])
    tail = torch.tensor(prompt.suffix_ids, dtype=torch.long).expand(rows, -1)
    ids = torch.cat([tokens[:, None], tail], dim=1)
    if prompt.later:
        ids[:, [place + 1 for place in prompt.later]] = tokens[:, None]
    return ids


def results_of(statistics: Statistics, dtype: torch.dtype) -> Iterator[ProbeResult]:
    """The results of plain probes."""
    decided_in = str(dtype).removeprefix("torch.")
    for p, rank, entropy, argmax, gap, passed in _columns(statistics):
        yield ProbeResult(p, rank, entropy, argmax, gap, passed, decided_in)
