"""Searches, scan and validate on a model whose glitch tokens are known by construction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from glitchrun.events import Batch, Event, Sampled, Verified
from glitchrun.spec.schema import fragments
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.context import Context
from glitchrun.vocabulary.character_groups import group_of
from tests.support.oracle import NOTE, PLANTED, QUANTIZATIONS, oracle
from tools.standin.recipes import RECIPES

MINE = fragments()["mine"]["properties"]
SEARCHES: Sequence[str] = MINE["search"]["enum"]
# What a search cannot do without, chosen so that it takes in the whole vocabulary.
EVERYTHING: dict[str, dict[str, Any]] = {
    "range": {"ranges": ((0, 10_000),)},
    "category": {"groups": tuple(MINE["groups"]["items"]["enum"])},
    "pattern": {"patterns": ("^",)},
}


def run(name: str, probed: Context, **params: Any) -> list[Event]:
    strategy = STRATEGIES[name]
    return list(strategy.run(strategy.configure(params), probed, []))


def verdicts(events: Sequence[Event]) -> dict[int, Verified]:
    """The verdict on each token, in the order in which they were looked at."""
    facts = [f for e in events if isinstance(e, Batch) for f in e.facts if isinstance(f, Verified)]
    found = {fact.token.id: fact for fact in facts}
    assert len(found) == len(facts)
    return found


def mined(search: str, **params: Any) -> tuple[set[int], set[int]]:
    """What a search looked at, and what it found."""
    given = {"search": search, "iterations": 1000, "batch_size": 16} | params
    found = verdicts(run("mine", oracle("float32"), **given))
    return set(found), {token_id for token_id, fact in found.items() if fact.glitch}


def test_the_oracle_is_that_of_the_recipe() -> None:
    probed = oracle("float32")
    assert NOTE["recipe"] == json.loads(json.dumps(asdict(RECIPES["oracle"])))
    assert len(PLANTED) == RECIPES["oracle"].planted
    assert probed.template.name == "nowllm"
    assert probed.backend.model.architecture == "MixtralForCausalLM"
    assert set(probed.scope()) > PLANTED


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_with_budget_for_everything_finds_all_that_is_planted_and_nothing_else(
    search: str,
) -> None:
    seen, found = mined(search, **EVERYTHING.get(search, {}))
    assert found == PLANTED
    # No token is passed over for its text. A cascade may end before the last.
    scope = set(oracle("float32").vocabulary.ids(("normal",)))
    assert seen <= scope if search == "cascade" else seen == scope


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_on_a_budget_finds_what_is_planted_among_what_it_looked_at(search: str) -> None:
    seen, found = mined(search, budget=96, **EVERYTHING.get(search, {}))
    assert len(seen) <= 96
    assert found == seen & PLANTED


def test_searches_that_select_find_the_planted_part_of_their_selection() -> None:
    vocabulary, scope = oracle("float32").vocabulary, oracle("float32").scope()
    cyrillic = {i for i in scope if group_of(vocabulary.text(i)) == "cyrillic"}
    words = {i for i in scope if vocabulary.text(i).strip().endswith("t")}
    assert cyrillic & PLANTED
    assert words & PLANTED
    assert mined("category", groups=("cyrillic",)) == (cyrillic, cyrillic & PLANTED)
    assert mined("pattern", patterns=(r"t\s*$",)) == (words, words & PLANTED)
    span = {i for i in scope if 300 <= i <= 399}
    assert mined("range", ranges=((300, 399),)) == (span, span & PLANTED)


@pytest.mark.parametrize("search", ["gradient", "low-norm"])
def test_guided_searches_find_most_of_it_where_chance_finds_a_quarter(search: str) -> None:
    _, by_chance = mined("random", budget=96)
    _, found = mined(search, budget=96)
    assert len(by_chance) <= 0.4 * len(PLANTED)
    assert len(found) >= 0.75 * len(PLANTED)


@pytest.mark.parametrize("probes", [("repeat",), "strict"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_scan_finds_what_is_planted_and_nothing_else(quantization: str, probes: Any) -> None:
    found = verdicts(run("scan", oracle(quantization), probes=probes))
    assert set(found) == set(oracle(quantization).scope())
    assert {token_id for token_id, fact in found.items() if fact.glitch} == PLANTED


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_validate_confirms_what_is_planted_and_nothing_else(quantization: str) -> None:
    probed = oracle(quantization)
    ordinary = [token_id for token_id in probed.scope() if token_id not in PLANTED][::10]
    ids = sorted(PLANTED) + ordinary
    events = run("validate", probed, tokens={"ids": ids}, attempts=5, max_new_tokens=16)
    facts = [f for e in events if isinstance(e, Batch) for f in e.facts if isinstance(f, Sampled)]
    assert [fact.token.id for fact in facts] == ids
    assert {fact.token.id for fact in facts if fact.confirmed} == PLANTED
    assert max(fact.asr for fact in facts if fact.token.id not in PLANTED) <= 0.2
