"""The evolutionary search: its operators, its determinism, and that it finds what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glitchrun.fitness import increase, reduction
from glitchrun.search.evolution import Evolution, Generation, diversity
from glitchrun.search.operators import (
    EvolutionSettings,
    crossover,
    mutate,
    mutation_rate,
    sample_pool,
    seeded_sequence,
    tournament,
)

POOL = tuple(range(100, 400))
SMALL = EvolutionSettings(population=20, generations=30, elite=3, max_tokens=4, early_stop=None)
GENOMES = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple)


def toward(ids: Sequence[int]) -> float:
    """A fitness with a slope: how near the tokens lie to 111, 222, 333, 111, in order."""
    wanted = (111, 222, 333, 111)
    return sum(1 - abs(a - b) / 300 for a, b in zip(ids, wanted, strict=False)) / 4


def search(
    settings: EvolutionSettings, seed: int = 0, singles: int = 30
) -> tuple[Evolution, list[Generation], list[list[tuple[int, ...]]]]:
    """A whole search: its end, its generations and what it asked for."""
    evolution = Evolution(POOL, settings, seed)
    evolution.learn({token: toward([token]) for token in evolution.singles(singles)})
    found, asked = [], []
    while evolution.ending is None:
        asked.append(evolution.propose())
        found.append(evolution.update({ids: toward(ids) for ids in asked[-1]}))
    return evolution, found, asked


@pytest.mark.parametrize(
    ("gain", "before", "after", "expected"),
    [
        (reduction, 0.8, 0.2, 0.75),
        (reduction, 0.1, 0.2, -1.0),
        (reduction, 0.0, 0.5, 0.0),
        (increase, 0.2, 0.6, 0.5),
        (increase, 0.5, 0.25, -0.5),
        (increase, 1.0, 0.5, 0.0),
    ],
)
def test_gains_are_shares_of_the_possible_gain(
    gain: object, before: float, after: float, expected: float
) -> None:
    assert gain(before, after) == pytest.approx(expected)  # type: ignore[operator]


@given(GENOMES, GENOMES, st.integers(0, 2**32))
def test_a_child_joins_a_head_and_a_tail(
    first: tuple[int, ...], second: tuple[int, ...], seed: int
) -> None:
    child = crossover(first, second, (1, 5), np.random.default_rng(seed))
    assert 1 <= len(child) <= 5
    whole = [
        (first[:i] + second[j:])[:5] for i in range(len(first) + 1) for j in range(len(second) + 1)
    ]
    # An empty one is filled up with the last token of the longer parent.
    assert child in whole or child in ((first[-1],), (second[-1],))


@given(st.data(), st.integers(1, 5), st.integers(0, 2**32))
def test_a_fixed_length_is_kept(data: st.DataObject, length: int, seed: int) -> None:
    exactly = st.lists(st.integers(0, 9), min_size=length, max_size=length).map(tuple)
    first, second = data.draw(exactly), data.draw(exactly)
    rng = np.random.default_rng(seed)
    child = crossover(first, second, (length, length), rng)
    assert len(child) == length
    assert all(
        one in pair for one, pair in zip(child, zip(first, second, strict=True), strict=True)
    )
    assert len(mutate(child, (length, length), lambda: 7, rng)) == length


@given(GENOMES, st.integers(0, 2**32))
def test_a_mutation_is_one_change(ids: tuple[int, ...], seed: int) -> None:
    changed = mutate(ids, (1, 5), lambda: 77, np.random.default_rng(seed))
    assert 1 <= len(changed) <= 5
    if 77 not in changed:  # two exchanged, or one dropped
        assert sorted(changed) == sorted(ids) or len(changed) == len(ids) - 1
    else:
        assert changed.count(77) == 1
        rest = [token for token in changed if token != 77]
        assert len(rest) in (len(ids), len(ids) - 1)


def test_every_kind_of_mutation_occurs() -> None:
    rng = np.random.default_rng(1)
    lengths = {len(mutate((1, 2, 3), (1, 5), lambda: 9, rng)) for _ in range(200)}
    assert lengths == {2, 3, 4}


def test_a_tournament_prefers_higher_fitness() -> None:
    ranked = [(i,) for i in range(10)]
    rng = np.random.default_rng(0)
    places = [tournament(ranked, 3, rng)[0] for _ in range(500)]
    assert np.mean(places) < 2.5  # 4.5 without selection, 2.025 expected
    assert {0, 9} <= {tournament(ranked, 1, rng)[0] for _ in range(200)}


def test_mutation_schedules() -> None:
    settings = replace(SMALL, generations=11, mutation="linear")
    rates = [mutation_rate(settings, g, stagnant=5) for g in range(1, 12)]
    assert rates[0] == pytest.approx(0.8)
    assert rates[5] == pytest.approx(0.45)
    assert rates[-1] == pytest.approx(0.1)
    adaptive = replace(settings, mutation="adaptive", diversity_after=10)
    assert mutation_rate(adaptive, 11, stagnant=0) == pytest.approx(0.1)
    assert mutation_rate(adaptive, 11, stagnant=5) == pytest.approx(0.45)
    assert mutation_rate(adaptive, 11, stagnant=30) == pytest.approx(0.8)
    assert mutation_rate(replace(settings, mutation="constant"), 11, 0) == 0.8


def test_samples_are_distinct_members_of_the_pool() -> None:
    chosen = sample_pool(POOL, 50, np.random.default_rng(0))
    assert len(set(chosen)) == 50
    assert set(chosen) < set(POOL)
    assert sample_pool(POOL[:5], 50, np.random.default_rng(0)) == list(POOL[:5])


def test_seeded_sequences_favour_the_best_single_tokens() -> None:
    rng = np.random.default_rng(0)
    drawn = [token for _ in range(300) for token in seeded_sequence([9, 8, 7, 6, 5], SMALL, rng)]
    counts = [drawn.count(token) for token in (9, 8, 7)]
    assert counts == sorted(counts, reverse=True)


def test_diversity_is_the_share_of_differing_tokens() -> None:
    assert diversity([(1, 1), (1,)]) == 0
    assert diversity([(1,), (2,)]) == pytest.approx(0.5)


@pytest.mark.parametrize("mutation", ["adaptive", "linear", "constant"])
def test_the_same_seed_gives_the_same_search(mutation: str) -> None:
    settings = replace(SMALL, mutation=mutation)
    assert search(settings)[1:] == search(settings)[1:]
    assert search(settings, seed=1)[2] != search(settings)[2]


def test_replayed_evaluations_restore_the_search() -> None:
    _, found, asked = search(SMALL)
    again = Evolution(POOL, SMALL, 0)
    again.learn({token: toward([token]) for token in again.singles(30)})
    for generation, sequences in zip(found, asked, strict=True):
        assert again.propose() == sequences
        # In whatever order the numbers come back.
        assert again.update({ids: toward(ids) for ids in reversed(sequences)}) == generation


def test_proposals_are_distinct_and_within_the_lengths() -> None:
    evolution, _, asked = search(SMALL)
    everything = [ids for sequences in asked for ids in sequences]
    assert len(set(everything)) == len(everything)
    assert {len(ids) for ids in everything} == {1, 2, 3, 4}
    assert set(everything) < set(evolution.fitness)
    assert all(set(ids) <= set(POOL) for ids in everything)


def test_the_best_is_kept_and_stagnation_is_counted() -> None:
    evolution, found, _ = search(SMALL)
    best = [generation.best_fitness for generation in found]
    assert best == sorted(best)
    assert best[-1] == max(evolution.fitness.values())
    for before, after in pairwise(found):
        better = after.best_fitness > before.best_fitness
        assert after.stagnant == (0 if better else before.stagnant + 1)


def test_it_beats_random_search_at_the_same_number_of_evaluations() -> None:
    wins = 0
    for seed in range(10):
        evolution, found, _ = search(SMALL, seed=seed)
        rng = np.random.default_rng([seed, 99])
        drawn = [
            toward([int(t) for t in rng.choice(POOL, size=rng.integers(1, 5))])
            for _ in evolution.births
        ]
        wins += found[-1].best_fitness > max(drawn)
    assert wins >= 9


def test_new_random_sequences_follow_stagnation() -> None:
    settings = replace(SMALL, diversity_after=3, diversity_share=0.5, generations=12)
    evolution = Evolution(POOL, settings, 0)
    summaries = []
    while evolution.ending is None:  # nothing is ever better than anything else
        summaries.append(evolution.update(dict.fromkeys(evolution.propose(), 0.5)))
    injected = [generation.injected for generation in summaries]
    assert [number for number, count in enumerate(injected) if count] == [4, 7, 10]
    assert set(injected) == {0, 10}
    assert {birth.how for birth in evolution.births.values()} >= {"random", "injected"}


def test_a_search_ends_by_fitness_patience_or_generations() -> None:
    assert search(replace(SMALL, generations=0))[0].ending == "generations"
    assert len(search(replace(SMALL, generations=4))[1]) == 5
    evolution, found, _ = search(replace(SMALL, early_stop=0.7))
    assert evolution.ending == "fitness"
    assert found[-1].best_fitness >= 0.7
    assert all(generation.best_fitness < 0.7 for generation in found[:-1])
    evolution, found, _ = search(replace(SMALL, patience=2, generations=500))
    assert evolution.ending == "patience"
    assert found[-1].stagnant == 2


def test_ties_are_broken_by_length_then_by_ids() -> None:
    evolution = Evolution(POOL, SMALL, 0)
    evolution.fitness = {(3, 1): 0.5, (2,): 0.5, (1,): 0.5 + 1e-9, (9,): 0.6}
    assert evolution.ranked(evolution.fitness) == [(9,), (1,), (2,), (3, 1)]


def test_the_order_distinguishes_fitness_values_close_to_one() -> None:
    evolution = Evolution(POOL, SMALL, 0)
    lacking = {(1,): 9e-8, (2, 2): 3e-9, (3, 3, 3): 2e-12, (4, 4): 0.0, (5,): 1.5}
    evolution.fitness = {ids: 1 - lack for ids, lack in lacking.items()}
    found = evolution.ranked(evolution.fitness)
    assert found == [(4, 4), (3, 3, 3), (2, 2), (1,), (5,)]


def test_ancestry_ends_at_sequences_without_parents() -> None:
    evolution, found, _ = search(SMALL)
    line = evolution.ancestors(found[-1].best)
    assert line[0] == found[-1].best
    assert len(set(line)) == len(line)
    for place, ids in enumerate(line):
        birth = evolution.births[ids]
        assert set(birth.parents) <= set(line[place + 1 :]) | set(line[:place])
        assert all(evolution.births[p].generation < birth.generation for p in birth.parents)
        assert bool(birth.parents) == (birth.how in ("crossover", "mutation", "both"))


def test_a_search_of_a_one_token_pool_ends() -> None:
    evolution = Evolution([5], replace(SMALL, max_tokens=2), 0)
    while evolution.ending is None:
        evolution.update({ids: float(len(ids)) for ids in evolution.propose()})
    assert set(evolution.fitness) == {(5,), (5, 5)}
