"""Searches: their order, their end, and resuming by being told again what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from glitchrun.events import ProbeResult, Token, Verified
from glitchrun.search import Search, Space, build_search
from glitchrun.search.base import Scores
from glitchrun.spec.searches import SEARCHES
from glitchrun.strategies.mine import Config

WORDS = ["cat", "dog", " the", "42", "...", "你好", "мир", " ", "A", "foo", "bar", "x1"]


class Words:
    """A vocabulary of known words with known norms."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.norms = torch.tensor(rng.permutation(len(WORDS)) + 1.0)
        self.frequency_ranks = tuple(range(len(WORDS)))
        self.pieces = tuple(WORDS)

    def ids(self, categories: Sequence[str]) -> list[int]:
        return [0] if "unused" in categories else []

    def text(self, token_id: int) -> str:
        return WORDS[token_id]


def space(**changes: Any) -> Space:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(WORDS), 8, generator=generator)
    values: dict[str, Any] = {
        "ids": torch.arange(1, len(WORDS)),
        "embeddings": embeddings,
        "input_embeddings": changes.get("embeddings", embeddings),
        "vocabulary": Words(),
        "seed": 3,
        "gradient": lambda token_id: (1.0, torch.ones(8)),
        "scores": Scores(np.linspace(-4, -9, len(WORDS) - 1), np.zeros(len(WORDS) - 1)),
        "limit": 0.5,
    }
    return Space(**values | changes)


def verdicts(ids: Sequence[int], entropy: Callable[[int], float] = float) -> list[Verified]:
    return [
        Verified(
            Token(i, WORDS[i], WORDS[i], "normal", 1.0),
            {"repeat": ProbeResult(0.1, 2, entropy(i), 0, 1.0, False, "float32")},
            True,
            "other",
        )
        for i in ids
    ]


def everything(search: Search, n: int) -> list[int]:
    found: list[int] = []
    while batch := search.propose(n):
        assert len(batch) <= n
        search.update(verdicts(batch))
        found += batch
    return found


CONFIGS = {
    "gradient": Config(search="gradient", k=4),
    "low-norm": Config(search="low-norm"),
    "indicator": Config(search="indicator"),
    "random": Config(search="random"),
    "stratified": Config(search="stratified"),
    "surrogate": Config(search="surrogate"),
    "screen": Config(search="screen"),
    "cascade": Config(search="cascade"),
    "range": Config(search="range", ranges=((3, 5), (4, 8), (100, 200))),
    "category": Config(search="category", groups=("cyrillic", "cjk")),
    "pattern": Config(search="pattern", patterns=("^[a-z]{3}$", "[0-9]")),
}


def test_every_search_is_tried() -> None:
    assert set(CONFIGS) == set(SEARCHES.built_in)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_proposed_token_is_new_and_in_scope(name: str) -> None:
    found = everything(build_search(name, space(), CONFIGS[name]), 3)
    assert len(found) == len(set(found)) > 0
    assert 0 not in found  # id 0 is not in scope


@pytest.mark.parametrize(
    "name",
    ["gradient", "low-norm", "indicator", "random", "stratified", "surrogate", "screen", "cascade"],
)
def test_a_search_reaches_the_whole_vocabulary(name: str) -> None:
    assert sorted(everything(build_search(name, space(), CONFIGS[name]), 3)) == list(range(1, 12))


@pytest.mark.parametrize("name", CONFIGS)
def test_replayed_verdicts_restore_the_search(name: str) -> None:
    whole = build_search(name, space(), CONFIGS[name])
    batches: list[list[int]] = []
    while batch := whole.propose(2):
        whole.update(verdicts(batch))
        batches.append(batch)
    resumed = build_search(name, space(), CONFIGS[name])
    for batch in batches[: len(batches) // 2]:
        resumed.update(verdicts(batch))
    assert everything(resumed, 2) == [i for batch in batches[len(batches) // 2 :] for i in batch]


def test_low_norm_proposes_ascending_norms() -> None:
    search = build_search("low-norm", space(), CONFIGS["low-norm"])
    norms = Words().norms[search.propose(11)].tolist()
    assert norms == sorted(norms)


def test_indicator_proposes_the_nearest_to_the_reference_rows_first() -> None:
    made = space()
    search = build_search("indicator", made, Config(search="indicator", own={"indicator": "auto"}))
    rows = made.embeddings / made.embeddings.norm(dim=1, keepdim=True)
    near = (rows[1:] @ rows[0]).argsort(descending=True) + 1  # row 0 is the unused one
    assert search.propose(11) == near.tolist()
    untied = space(input_embeddings=made.embeddings.clone())
    order = build_search("indicator", untied, CONFIGS["indicator"]).propose(11)
    assert order == sorted(order, key=lambda i: float(untied.vocabulary.norms[i]))


def test_screen_and_cascade_start_with_the_worst_score() -> None:
    for name in ("screen", "cascade"):
        assert build_search(name, space(), CONFIGS[name]).propose(3) == [11, 10, 9]


def test_random_depends_on_the_seed_alone() -> None:
    orders = [build_search("random", space(seed=seed), Config()).propose(11) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_range_category_and_pattern_select_the_named_tokens() -> None:
    found = {name: build_search(name, space(), CONFIGS[name]).propose(99) for name in CONFIGS}
    assert found["range"] == [3, 4, 5, 6, 7, 8]
    assert found["category"] == [5, 6]
    assert found["pattern"] == [1, 3, 9, 10, 11]


PARTS = {
    "range": {"ranges": ((0, 299), (300, 599))},
    "category": {"groups": ("latin", "cyrillic")},
    "pattern": {"patterns": ("a", "б")},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_sampled_independently(name: str) -> None:
    """A tenth, and no more than 20, of each of two parts of 300."""
    words = [("a" if i < 300 else "б") * (1 + i % 3) for i in range(600)]

    class Many(Words):
        def text(self, token_id: int) -> str:
            return words[token_id]

    def order(seed: int = 3, **sample: Any) -> list[int]:
        made = space(ids=torch.arange(600), vocabulary=Many(), seed=seed)
        return build_search(name, made, Config(search=name, **PARTS[name], **sample)).propose(600)

    tenth = order(sample_rate=0.1)
    assert np.bincount(np.array(tenth) // 300).tolist() == [30, 30]
    assert tenth == sorted(set(tenth)) == order(sample_rate=0.1) != order(4, sample_rate=0.1)
    assert np.bincount(np.array(order(sample_rate=0.1, sample_size=20)) // 300).tolist() == [20, 20]
    assert np.mean(tenth[:30]) == pytest.approx(150, abs=50)  # not the lowest ids of the part
    assert len(order(sample_rate=0.07)) == 42  # not one more for what 0.07 * 300 is in binary
    assert order(sample_rate=1.0, sample_size=300) == order() == list(range(600))


def test_every_prefix_of_stratified_contains_each_large_stratum() -> None:
    words = [("a" if i % 2 else "б") * (1 + i % 3) for i in range(600)]

    class Many(Words):
        def __init__(self) -> None:
            self.norms = torch.arange(600.0)

        def text(self, token_id: int) -> str:
            return words[token_id]

    made = space(ids=torch.arange(600), vocabulary=Many())
    first = build_search("stratified", made, Config()).propose(120)
    quintiles = np.bincount(np.array(first) // 120, minlength=5)
    assert quintiles.min() >= 20
    assert quintiles.max() <= 28
    assert 50 <= sum(i % 2 for i in first) <= 70


def test_gradient_walk_starts_at_the_least_norm_and_follows_entropy() -> None:
    asked: list[int] = []

    def gradient(token_id: int) -> tuple[float, torch.Tensor]:
        asked.append(token_id)
        return 1.0, torch.zeros(8)

    made = space(gradient=gradient)
    search = build_search("gradient", made, CONFIGS["gradient"])
    first = search.propose(3)
    norms = made.vocabulary.norms[made.ids]
    assert asked == [int(made.ids[norms.argmin()])]
    search.update(verdicts(first, entropy=lambda i: 5.0 if i == first[1] else 1.0))
    search.propose(3)
    assert asked[1] == first[1]


def test_gradient_walk_ranks_neighbours_by_first_order_entropy() -> None:
    pull = torch.zeros(8)
    pull[2] = 1.0
    made = space(gradient=lambda token_id: (1.0, pull))
    search = build_search("gradient", made, Config(search="gradient", k=11))
    table = made.embeddings
    found = search.propose(11)
    along = [float(table[i, 2]) for i in found]
    assert along == sorted(along, reverse=True)


def test_gradient_walk_counts_ties_within_rounding() -> None:
    search = build_search("gradient", space(), CONFIGS["gradient"])
    batch = search.propose(3)
    search.update(verdicts(batch, entropy=lambda i: 2.0))
    assert search.counters["walk_ties"] >= 1


def test_gradient_walk_measures_distances_to_a_row_of_zeros() -> None:
    """A row that is no direction lies at distance 1 from every unit row: at a cosine of 1/2."""
    embeddings = torch.zeros(len(WORDS), 8)
    embeddings[:, 0] = 1.0
    embeddings[:, 1] = torch.linspace(0.0, 6.0, len(WORDS))  # cosines with row 0: 1 down to 0.16
    embeddings[7] = 0.0
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    distance = (unit - unit[0]).norm(dim=1)
    nearest = distance.sort(stable=True).indices[1:].tolist()
    for k in (3, 4, 8):
        search = build_search("gradient", space(embeddings=embeddings), Config(k=k, start=0))
        assert sorted(search.propose(k)) == sorted(nearest[:k])
