"""Verification of tokens against the thresholds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from glitchrun.events import Batch, ProbeResult, Stage, Token, Verified
from glitchrun.plan.batch_sizes import PASSES_PER_WRITE
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.render import as_sent, intact
from glitchrun.spec.probes import PROBES
from glitchrun.strategies.context import Context
from glitchrun.verdicts import is_glitch
from glitchrun.vocabulary.text import emitted_kind


class Judge:
    """Verifies tokens and applies the thresholds."""

    def __init__(
        self, context: Context, probes: str | Sequence[str], rows: int | str = "auto"
    ) -> None:
        self._context = context
        self._prompts = context.prompts(probes)
        if rows == "auto":
            longest = max(len(p.prefix_ids) + len(p.suffix_ids) + 1 for p in self._prompts.values())
            rows = context.backend.pass_rows or standard_rows(
                context.backend.model, longest, context.free_bytes
            )
        limit = context.spec.thresholds.probability
        self._verifier = Verifier(context.backend, self._prompts, int(rows), limit)

    @property
    def rows(self) -> int:
        """Tokens per batch: those of one forward pass, or of several on a GPU."""
        passes = PASSES_PER_WRITE.get(self._context.backend.device.type, 1)
        return self._verifier.rows * (1 if self._context.backend.pass_rows else passes)

    def judge(self, token_ids: Sequence[int]) -> list[Verified]:
        """Verifies tokens with every probe. Returns their verdicts, in the order of the ids."""
        results = self._verifier.verify(token_ids)
        if lacking := sum(prompt.dropped_system is not None for prompt in self._prompts.values()):
            self._verifier.counters["dropped_system"] += lacking * len(token_ids)
        kept = {
            name: intact(prompt, token_ids, self._context.backend.model.tokenizer)
            for name, prompt in self._prompts.items()
        }
        verdicts = []
        for row, (token_id, probes) in enumerate(zip(token_ids, results, strict=True)):
            flagged = {n: replace(r, intact=kept[n][row]) for n, r in probes.items()}
            verdicts.append(self._verdict(self._context.vocabulary.token(token_id), flagged))
        return verdicts

    def _verdict(self, token: Token, probes: dict[str, ProbeResult]) -> Verified:
        limit = self._context.spec.thresholds.probability
        if any(result.passed for result in probes.values()):
            return Verified(token, probes, glitch=False, emitted=None)
        glitch = is_glitch(probes, limit)
        closest = max(probes, key=lambda name: probes[name].p)
        vocabulary, said = self._context.vocabulary, probes[closest].argmax
        closing = PROBES[closest].closing
        kind = emitted_kind(vocabulary.raw(token.id), vocabulary.raw(said), closing)
        return Verified(token, probes, glitch, kind, vocabulary.text(said))

    def prompts_as_sent(self) -> dict[str, tuple[str, ...]]:
        """By probe, the text before the token and the text after it."""
        tokenizer = self._context.backend.model.tokenizer
        return {name: as_sent(prompt, tokenizer) for name, prompt in self._prompts.items()}

    def take_counters(self) -> Counter[str]:
        """Returns the counters since the last call, and resets them."""
        taken = Counter(self._verifier.counters)
        self._verifier.counters.clear()
        return taken


def judged(
    judge: Judge, token_ids: Sequence[int], done: int, stage: Stage
) -> tuple[list[Verified], Batch]:
    """The verdicts on `token_ids`, and their batch; `done` items of the stage precede them."""
    start = time.perf_counter()
    verdicts = judge.judge(token_ids)
    counters = judge.take_counters()
    counters["not_intact"] += sum(not verdict.presented_intact for verdict in verdicts)
    seconds = time.perf_counter() - start
    prompts = {} if done else judge.prompts_as_sent()
    batch = Batch(
        tuple(verdicts),
        done + len(verdicts),
        stage.total,
        seconds,
        dict(counters),
        stage=stage.name,
        prompts=prompts,
    )
    return verdicts, batch
