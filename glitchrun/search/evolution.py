"""The evolution of sequences of token ids: a population, and the next one bred from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.random import Generator

from glitchrun.fitness import Ids, shortfall, sort_key
from glitchrun.search.operators import (
    EvolutionSettings,
    crossover,
    mutate,
    mutation_rate,
    random_sequence,
    sample_pool,
    seeded_sequence,
    tournament,
)

_TRIES = 12
"""Attempts at a child that was not measured before; a small pool may have none left."""
_FROM_THE_BEST = 0.25
"""Share of the tokens drawn by mutations that come from the best single tokens."""


class _Purpose(IntEnum):
    """Purposes of random generators. A generator's key is the seed, this number and the
    generation."""

    SINGLES = 0
    START = 1
    BREED = 2


@dataclass(frozen=True, slots=True)
class Birth:
    """The origin of a sequence."""

    generation: int
    how: str
    """single, seeded, random, crossover, mutation, both (crossover and mutation) or injected."""
    parents: tuple[Ids, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """Summary of one generation."""

    number: int
    best: Ids
    """The fittest sequence so far."""
    best_fitness: float
    mean_fitness: float
    """Over the population."""
    diversity: float
    """Gini-Simpson index of the population's tokens: the probability that two of them, drawn at
    random, differ. (Simpson 1949, "Measurement of Diversity", Nature 163, 688)"""
    mutation: float | None
    """The mutation rate of the generation; None for the first population."""
    injected: int
    """Members replaced by new random sequences."""
    stagnant: int
    """Generations in a row without improvement."""


class Evolution:
    """A population of sequences over a pool of token ids.

    It knows no model: the caller measures the fitness of what `propose` returns and passes it to
    `update`, until `ending` is set. Before that it may measure `singles` and pass them to `learn`.
    Every random number comes from a generator for (seed, purpose, generation), so a search that
    is given its earlier measurements again is in the state that it had.
    """

    def __init__(self, pool: Sequence[int], settings: EvolutionSettings, seed: int) -> None:
        self.pool = tuple(pool)
        self.settings = settings
        self.fitness: dict[Ids, float] = {}
        """Fitness of every measured sequence of an allowed length."""
        self.births: dict[Ids, Birth] = {}
        self.generation = 0
        """Number of the generation that `propose` creates next."""
        self.ending: str | None = None
        """Why the search ended: fitness, patience or generations; None while it continues."""
        self._seed = seed
        self._bounds = (settings.min_tokens, settings.max_tokens)
        self._singles: tuple[int, ...] = ()
        self._population: list[Ids] = []
        self._next: list[Ids] = []
        self._stagnant = 0
        self._mutation: float | None = None
        self._injected = 0

    def singles(self, count: int) -> list[int]:
        """Token ids to measure as sequences of one token, ascending."""
        return sample_pool(self.pool, count, self._rng(_Purpose.SINGLES))

    def learn(self, impacts: Mapping[int, float]) -> None:
        """Takes the fitness of single tokens."""
        for token_id, fitness in impacts.items():
            self.births[(token_id,)] = Birth(0, "single")
            if self.settings.min_tokens == 1:
                self.fitness[(token_id,)] = fitness
        fit = {token: value for token, value in impacts.items() if value > 0}
        self._singles = tuple(sorted(fit, key=lambda token: sort_key(fit[token], (token,))))

    def propose(self) -> list[Ids]:
        """Sequences of the coming generation that have no fitness yet, each once."""
        rng = self._rng(_Purpose.BREED if self.generation else _Purpose.START)
        self._next = self._bred(rng) if self.generation else self._first(rng)
        return [ids for ids in dict.fromkeys(self._next) if ids not in self.fitness]

    def update(self, fitness: Mapping[Ids, float]) -> Generation:
        """Takes the fitness of the proposed sequences, which become the population."""
        before = self.ranked(self.fitness)[:1]
        self.fitness |= fitness
        self._population, self._next = self._next, []
        best = self.ranked(self.fitness)[0]
        better = not before or self._shortfall(best) < self._shortfall(before[0])
        self._stagnant = 0 if better or not self.generation else self._stagnant + 1
        summary = Generation(
            number=self.generation,
            best=best,
            best_fitness=self.fitness[best],
            mean_fitness=sum(map(self.fitness.__getitem__, self._population))
            / len(self._population),
            diversity=diversity(self._population),
            mutation=self._mutation,
            injected=self._injected,
            stagnant=self._stagnant,
        )
        self.ending = self._ending(best)
        self.generation += 1
        return summary

    def ranked(self, sequences: Mapping[Ids, float] | Sequence[Ids]) -> list[Ids]:
        """Measured sequences in the order of `sort_key`, the fittest first."""
        return sorted(sequences, key=lambda ids: sort_key(self.fitness[ids], ids))

    def ancestors(self, ids: Ids) -> list[Ids]:
        """A sequence and everything it descends from, children before parents."""
        line = {ids: None}
        for member in (waiting := [ids]):
            # Parents of one child differ from each other.
            new = [parent for parent in self.births[member].parents if parent not in line]
            line |= dict.fromkeys(new)
            waiting += new
        return list(line)

    def _shortfall(self, ids: Ids) -> float:
        return shortfall(self.fitness[ids])

    def _rng(self, purpose: _Purpose) -> Generator:
        return np.random.default_rng([self._seed, purpose, self.generation])

    def _ending(self, best: Ids) -> str | None:
        settings = self.settings
        if settings.early_stop is not None and self.fitness[best] >= settings.early_stop:
            return "fitness"
        if settings.patience is not None and self._stagnant >= settings.patience:
            return "patience"
        return "generations" if self.generation >= settings.generations else None

    @property
    def ended_early(self) -> str | None:
        """`fitness` or `patience` where that ended the search early; else None."""
        left = self.generation <= self.settings.generations
        return self.ending if self.ending != "generations" and left else None

    def _first(self, rng: Generator) -> list[Ids]:
        """The first population: best singles, sequences of them, and random sequences."""
        size, share = self.settings.population, self.settings.seed_ratio
        seeded = round(size * share) if self._singles else 0
        members: list[Ids] = []
        if self.settings.min_tokens == 1:
            members = [(token,) for token in self._singles[: min(self.settings.elite, seeded)]]
        while len(members) < size:
            how = "seeded" if len(members) < seeded else "random"
            members.append(self._fresh(how, members, rng))
        return members

    def _fresh(self, how: str, taken: Sequence[Ids], rng: Generator) -> Ids:
        """A sequence without parents, a new one if possible."""
        child: Ids = ()
        for _ in range(_TRIES):
            if how == "seeded":
                child = seeded_sequence(self._singles, self.settings, rng)
            else:
                child = random_sequence(self.pool, self.settings, rng)
            if child not in self.births and child not in taken:
                break
        self.births.setdefault(child, Birth(self.generation, how))
        return child

    def _bred(self, rng: Generator) -> list[Ids]:
        """The next population: the elite, children and, after stagnation, random sequences."""
        settings = self.settings
        ranked = self.ranked(self._population)
        due = self._stagnant > 0 and self._stagnant % settings.diversity_after == 0
        self._injected = round(settings.population * settings.diversity_share) if due else 0
        self._injected = min(self._injected, settings.population - settings.elite)
        self._mutation = mutation_rate(settings, self.generation, self._stagnant)
        members = list(dict.fromkeys(ranked))[: settings.elite]
        while len(members) < settings.population - self._injected:
            members.append(self._child(ranked, members, rng))
        while len(members) < settings.population:
            members.append(self._fresh("injected", members, rng))
        return members

    def _child(self, ranked: Sequence[Ids], taken: Sequence[Ids], rng: Generator) -> Ids:
        child, how, parents = self._offspring(ranked, False, rng)
        for _ in range(_TRIES):
            if child not in self.births and child not in taken:
                break
            child, how, parents = self._offspring(ranked, True, rng)
        self.births.setdefault(child, Birth(self.generation, how, parents))
        return child

    def _offspring(
        self, ranked: Sequence[Ids], must_change: bool, rng: Generator
    ) -> tuple[Ids, str, tuple[Ids, ...]]:
        """A child, how it was made, and its parents. With `must_change` it is always mutated."""
        settings = self.settings
        child = first = tournament(ranked, settings.tournament, rng)
        parents: tuple[Ids, ...] = (first,)
        how = ""
        if rng.random() < settings.crossover:
            second = tournament(ranked, settings.tournament, rng)
            crossed = crossover(first, second, self._bounds, rng)
            if crossed not in ((), first, second):
                child, parents, how = crossed, tuple(dict.fromkeys((first, second))), "crossover"
        rate = self._mutation or 0.0
        if rng.random() < rate or (must_change and rate > 0):
            child = mutate(child, self._bounds, lambda: self._token(rng), rng)
            how = "both" if how else "mutation"
        return child, how, parents

    def _token(self, rng: Generator) -> int:
        best = self._singles[: self.settings.seed_top]
        source = best if best and rng.random() < _FROM_THE_BEST else self.pool
        return source[int(rng.integers(len(source)))]


def diversity(population: Sequence[Ids]) -> float:
    """1 − Σ f², where f is the share of each token among all positions of the population."""
    counts = np.unique([token for ids in population for token in ids], return_counts=True)[1]
    return float(1 - ((counts / counts.sum()) ** 2).sum())
