"""Verification of tokens against the thresholds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from glitchrun.events import Answered, Batch, ProbeResult, Stage, Token, Verified
from glitchrun.plan.passes import PASSES_PER_WRITE
from glitchrun.probing.greedy_reading import GreedyReader, Result
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.render import as_sent, encodable, intact
from glitchrun.spec.probes import USUAL_POSITIONS, Probe, Probes, any_of, probes_of
from glitchrun.strategies.context import Context
from glitchrun.vocabulary.text import emitted_kind

Recipe = tuple[Probes, int, bool]
"""What another worker makes the same `Judge` of: probes, rows of a pass, and `sequential`."""


class Judge:
    """Verifies tokens and applies the thresholds."""

    def __init__(
        self,
        context: Context,
        probes: Probes,
        rows: int | str = "auto",
        *,
        sequential: bool = False,
    ) -> None:
        self._context = context
        self._sequential = sequential
        self._probes = {probe.name: probe for probe in probes_of(probes)}
        self._any_of = any_of(probes)
        self._prompts = context.prompts(probes)
        if rows == "auto":
            longest = max(len(p.prefix_ids) + len(p.suffix_ids) + 1 for p in self._prompts.values())
            rows = context.backend.pass_rows or standard_rows(
                context.backend.model, longest, context.free_bytes
            )
        limit = context.spec.thresholds.probability
        readers = {
            name: self._reader(probe, limit)
            for name, probe in self._probes.items()
            if not probe.is_plain
        }
        self._ahead: dict[int, Verified] = {}
        self._verifier = Verifier(context.backend, self._prompts, int(rows), limit, readers)
        self.recipe: Recipe = (probes, int(rows), sequential)
        context.tools[self.recipe] = self

    def _positions(self, name: str) -> int:
        """About how many positions a probe runs for each token."""
        probe = self._probes[name]
        if probe.is_usual:
            return USUAL_POSITIONS
        return probe.generated + 1 + len(self._prompts[name].suffix_ids)

    def _reader(self, probe: Probe, limit: float) -> GreedyReader:
        context = self._context
        return GreedyReader(
            context.backend,
            self._prompts[probe.name],
            probe,
            limit,
            context.stop_ids,
            context.backend.model.tokenizer.decode,
            context.vocabulary.text,
        )

    @property
    def rows(self) -> int:
        """Tokens per batch: those of one forward pass, or of several on a GPU or over a streamed
        model."""
        backend = self._context.backend
        passes = PASSES_PER_WRITE.get(backend.device.type, 1)
        return self._verifier.rows * (backend.batch_passes if backend.pass_rows else passes)

    def verify_ahead(self, token_ids: Sequence[int]) -> None:
        """Verifies tokens that are likely to be asked for, and keeps the verdicts until they are.

        A pass over a streamed model reads all weights, for few tokens as for many.
        """
        new = [token_id for token_id in token_ids if token_id not in self._ahead]
        self._ahead |= {verdict.token.id: verdict for verdict in self._judged(new)}

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Whether all of these tokens were verified ahead."""
        return all(token_id in self._ahead for token_id in token_ids)

    def judge(self, token_ids: Sequence[int]) -> list[Verified]:
        """Verifies tokens with every probe. Returns their verdicts, in the order of the ids."""
        known = {i: self._ahead.pop(i) for i in token_ids if i in self._ahead}
        new = [token_id for token_id in token_ids if token_id not in known]
        known |= {verdict.token.id: verdict for verdict in self._judged(new)}
        return [known[token_id] for token_id in token_ids]

    def _judged(self, token_ids: Sequence[int]) -> list[Verified]:
        if not token_ids:
            return []
        results = self._results(token_ids)
        if lacking := sum(prompt.dropped_system is not None for prompt in self._prompts.values()):
            self._verifier.counters["dropped_system"] += lacking * len(token_ids)
        if not all(probe.is_usual for probe in self._probes.values()):
            run = sum(self._positions(name) for found in results for name in found)
            self._verifier.counters["positions"] += run
        presented = {name: self._presented(name, token_ids) for name in self._prompts}
        return [
            self._verdict(
                self._context.vocabulary.token(token_id),
                {name: _flagged(one, *presented[name][row]) for name, one in found.items()},
            )
            for row, (token_id, found) in enumerate(zip(token_ids, results, strict=True))
        ]

    def _results(self, token_ids: Sequence[int]) -> list[dict[str, Result]]:
        """The results of all probes, or of as many as make the verdict certain."""
        if not self._sequential:
            return self._verifier.verify(token_ids)
        results: list[dict[str, Result]] = [{} for _ in token_ids]
        left = list(range(len(token_ids)))
        for name in sorted(self._probes, key=self._positions):
            found = self._verifier.verify([token_ids[row] for row in left], (name,))
            for row, result in zip(left, found, strict=True):
                results[row] |= result
            left = [row for row in left if not self._is_certain(results[row])]
            if not left:
                break
        return [{name: one[name] for name in self._probes if name in one} for one in results]

    def _is_certain(self, found: Mapping[str, Result]) -> bool:
        """Whether no further probe can change the verdict: a token passed a probe that every
        glitch token fails, or a whole group; or it is known to fail all."""
        passed = {name for name, result in found.items() if result.passed}
        grouped = {name for group in self._any_of for name in group}
        if passed - grouped or any(passed.issuperset(group) for group in self._any_of):
            return True
        others = set(self._probes) - grouped
        return others <= set(found) and all(
            any(name in found and name not in passed for name in group) for group in self._any_of
        )

    def _presented(self, name: str, token_ids: Sequence[int]) -> list[tuple[bool, bool]]:
        """For each token, whether the prompt, encoded as text, is the same, and has its id."""
        prompt, tokenizer = self._prompts[name], self._context.backend.model.tokenizer
        kept = intact(prompt, token_ids, tokenizer)
        if self._probes[name].within == 1:
            return [(one, True) for one in kept]
        return list(zip(kept, encodable(prompt, token_ids, tokenizer), strict=True))

    def _verdict(self, token: Token, found: Mapping[str, Result]) -> Verified:
        probes = {name: one for name, one in found.items() if isinstance(one, ProbeResult)}
        answers = {name: one for name, one in found.items() if isinstance(one, Answered)}
        fact = Verified(token, probes, False, None, answers=answers, any_of=self._any_of)
        if not fact.failed:
            return fact
        kind, text = self._emitted(token, probes, answers)
        limit = self._context.spec.thresholds.probability
        return replace(fact, glitch=fact.fails(limit), emitted=kind, emitted_text=text)

    def _emitted(
        self, token: Token, probes: Mapping[str, ProbeResult], answers: Mapping[str, Answered]
    ) -> tuple[str, str]:
        """The kind and the text of what the model preferred to the token, in the probe in which the
        token was most probable; those of a wrong answer if no probe that asks for the token
        failed."""
        failed = [name for name, result in probes.items() if not result.passed]
        if not failed:
            return "other", next(one.text for one in answers.values() if not one.passed)
        closest = max(failed, key=lambda name: probes[name].p)
        vocabulary, said = self._context.vocabulary, probes[closest].argmax
        closing = self._probes[closest].closing
        kind = emitted_kind(vocabulary.raw(token.id), vocabulary.raw(said), closing)
        return kind, vocabulary.text(said)

    def prompts_as_sent(self) -> dict[str, tuple[str, ...]]:
        """By probe, the text before the token and the text after it."""
        tokenizer = self._context.backend.model.tokenizer
        return {name: as_sent(prompt, tokenizer) for name, prompt in self._prompts.items()}

    def take_counters(self) -> Counter[str]:
        """Returns the counters since the last call, and resets them."""
        taken = Counter(self._verifier.counters)
        self._verifier.counters.clear()
        return taken


def _flagged(result: Result, kept: bool, anywhere: bool) -> Result:
    if isinstance(result, Answered):
        return replace(result, intact=kept)
    return replace(result, intact=kept, encodable=anywhere)


def judged(
    context: Context, judge: Judge, chunks: Iterable[Sequence[int]], done: int, stage: Stage
) -> Iterator[tuple[list[Verified], Batch]]:
    """Yields the verdicts on each chunk of token ids, and their batch, in order.

    Args:
        context: The step's context; its workers verify the chunks.
        judge: How to verify tokens.
        chunks: Token ids, at most `judge.rows` each.
        done: Items of the stage before the first chunk.
        stage: The stage.
    """
    start = time.perf_counter()
    for verdicts, counters in context.spread(verified, ((judge.recipe, ids) for ids in chunks)):
        prompts = {} if done else judge.prompts_as_sent()
        done += len(verdicts)
        yield (
            verdicts,
            batch_of(verdicts, counters, time.perf_counter() - start, done, stage, prompts),
        )
        start = time.perf_counter()


def chunked(token_ids: Sequence[int], judge: Judge) -> Iterator[Sequence[int]]:
    """Token ids in parts of at most `judge.rows`, which falls when memory runs out."""
    start = 0
    while start < len(token_ids):
        end = start + judge.rows
        yield token_ids[start:end]
        start = end


def batch_of(
    verdicts: Sequence[Verified],
    counters: Counter[str],
    seconds: float,
    done: int,
    stage: Stage,
    prompts: Mapping[str, tuple[str, ...]],
) -> Batch:
    """The batch of some verdicts, after which `done` items of the stage are finished."""
    counters["not_intact"] += sum(not verdict.presented_intact for verdict in verdicts)
    facts, total = tuple(verdicts), stage.total
    return Batch(facts, done, total, seconds, dict(counters), stage=stage.name, prompts=prompts)


def verified(
    context: Context, asked: tuple[Recipe, Sequence[int]]
) -> tuple[list[Verified], Counter[str]]:
    """The verdicts on some token ids, and what they took. Any worker can compute them."""
    recipe, token_ids = asked
    judge = context.tool(recipe, lambda: Judge(context, recipe[0], recipe[1], sequential=recipe[2]))
    verdicts = judge.judge(token_ids)
    return verdicts, judge.take_counters()
