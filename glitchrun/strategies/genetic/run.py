"""Runs `genetic`: the baseline, the impact of single tokens, the generations, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial

from glitchrun.events import Batch, Entry, Event, Stage
from glitchrun.search.evolution import Evolution
from glitchrun.search.operators import EvolutionSettings
from glitchrun.strategies.context import Context
from glitchrun.strategies.genetic import Config
from glitchrun.strategies.genetic import evolution_tables as tables
from glitchrun.strategies.genetic.task import Scores, Task, Timer, place

_SINGLES_AT_ONCE = 64
"""Single tokens per batch. A killed run loses at most this many."""
_WORK = "evaluations"
"""The counter whose rate is shown."""
_BASELINE, _RESULT = Stage("baseline", 1, "sequences"), Stage("result", 1, "sequences")


def prompt_ids(config: Config, context: Context) -> Iterator[tuple[str, Sequence[int]]]:
    """The prompt without a sequence."""
    yield f"base_text in the {config.format} format", place(config, context).ids(())


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields the baseline, the impact of single tokens, one batch a generation, and the result."""
    course = _Course(config, context)
    past = iter(history)
    batches = []
    for part in course.parts():
        recorded = next(past, None)
        batch = part(recorded)
        batches.append(batch)
        if recorded is None:
            yield batch
    yield from tables.metrics(batches, course.evolution.ended_early)


def _settings(config: Config) -> EvolutionSettings:
    """The parameters of the evolution itself."""
    names = [field.name for field in fields(EvolutionSettings)]
    return EvolutionSettings(**{name: getattr(config, name) for name in names})


Part = Callable[[Batch | None], Batch]
"""One batch of work. Given a recorded batch, it restores the state of the search from it and
returns it."""


class _Course:
    """The parts of one search."""

    def __init__(self, config: Config, context: Context) -> None:
        self.config = config
        self.announce = context.announce
        self.task = Task(config, context)
        self.evolution = Evolution(self.task.pool, _settings(config), context.spec.seed)
        count = config.impact_tokens
        count = len(self.task.pool) if isinstance(count, str) else count
        self.singles = self.evolution.singles(count) if count else []
        self.scores: dict[tuple[int, ...], tuple[float, ...]] = {}
        self.generations = 0

    def parts(self) -> Iterator[Part]:
        yield self.baseline
        yield from self.impacts()
        while self.evolution.ending is None:
            yield self.generation
        yield self.result

    def baseline(self, recorded: Batch | None) -> Batch:
        timer = self._begin(_BASELINE, recorded)
        row = recorded.entries[0].cells if recorded else tables.baseline(self.task)
        self.task.start(*tables.goals(row))
        return recorded or self._batch([Entry("baseline", row)], timer, _BASELINE, 1)

    def impacts(self) -> Iterator[Part]:
        found: dict[int, float] = {}
        for start in range(0, len(self.singles), _SINGLES_AT_ONCE):
            chunk = self.singles[start : start + _SINGLES_AT_ONCE]
            yield partial(self._impact, chunk, found)
        self.evolution.learn(found)

    def _impact(self, chunk: list[int], found: dict[int, float], recorded: Batch | None) -> Batch:
        stage = Stage("single tokens", len(self.singles))
        timer = self._begin(stage, recorded)
        scores = self._scored([(token,) for token in chunk], recorded, "impacts")
        found |= {ids[0]: self.task.fitness(p) for ids, p in scores.items()}
        return recorded or self._batch(tables.impacts(self.task, scores), timer, stage, len(found))

    def generation(self, recorded: Batch | None) -> Batch:
        first = 1  # generation 0
        stage = Stage("generations", first + self.config.generations, "generations", work=_WORK)
        timer = self._begin(stage, recorded)
        scores = self._scored(self.evolution.propose(), recorded, "sequences")
        summary = self.evolution.update({ids: self.task.fitness(p) for ids, p in scores.items()})
        self.generations += 1
        if self.evolution.ending:
            stage = replace(stage, total=self.generations)  # it may end early
        if recorded:
            return recorded
        rows = tables.sequences(self.task, scores, self.evolution.births)
        rows = [*rows, tables.generation(self.task, summary, len(scores))]
        return self._batch(rows, timer, stage, self.generations)

    def result(self, recorded: Batch | None) -> Batch:
        timer = self._begin(_RESULT, recorded)
        if recorded:
            return recorded
        rows = tables.result(self.task, self.evolution, self.scores)
        return self._batch(rows, timer, _RESULT, 1)

    def _begin(self, stage: Stage, recorded: Batch | None) -> Timer:
        """Announces the stage of a batch that is not recorded yet; starts its time."""
        if recorded is None:
            self.announce(stage)
        return Timer()

    def _scored(
        self, sequences: list[tuple[int, ...]], recorded: Batch | None, table: str
    ) -> Scores:
        """Probabilities of the goals after each sequence: as recorded, or from the model."""
        if recorded:
            scores = tables.recorded_scores(recorded, table)
        else:
            scores = dict(zip(sequences, self.task.scorer.score(sequences), strict=True))
        self.scores |= scores
        return scores

    def _batch(self, rows: list[Entry], timer: Timer, stage: Stage, done: int) -> Batch:
        counters = dict(self.task.scorer.counters)
        self.task.scorer.counters.clear()
        kept = [row.cells["presented_intact"] for row in rows if row.table in tables.EVALUATED]
        counters |= {"evaluations": len(kept), "not_intact": kept.count(False)}
        seconds = timer.seconds
        return Batch(tuple(rows), done, stage.total, seconds, counters, stage=stage.name)
