"""Searches where there is little to search, and what is said where there is nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Verified
from glitchrun.plan.build import Plan, build
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import TokenScope
from glitchrun.strategies.context import Context
from tests.support.oracle import FOLDER, oracle

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: small}
model: {path: ORACLE, device: cpu}
tokens: {categories: [normal]}
steps:
  - {id: step, STEP}
"""
NARROWED: Mapping[str, Mapping[str, Any]] = {
    "range": {"ranges": [[0, 639]]},
    "category": {"groups": ["latin", "cjk", "digits", "punctuation", "symbols", "other"]},
    "pattern": {"patterns": ["."]},
}


def reaching(count: int) -> Context:
    """The oracle with only `count` tokens in scope."""
    context = oracle("float32")
    normal = context.vocabulary.ids(("normal",))
    left_out = {context.vocabulary.text(row) for row in normal[40 + count :] + normal[:40]}
    kept = normal[40 : 40 + count]
    patterns = tuple(f"^{re.escape(text)}$" for text in sorted(left_out))
    scope = TokenScope(exclude=patterns)
    reached = replace(context, spec=replace(context.spec, tokens=scope))
    assert reached.scope() == kept
    return reached


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_verifies_the_whole_of_a_small_scope(search: str, count: int) -> None:
    context = reaching(count)
    given = {"search": search, "controls": 2, **NARROWED.get(search, {})}
    mine = STRATEGIES["mine"]
    events = mine.run(mine.configure(given), context, [])
    batches = [event for event in events if isinstance(event, Batch)]
    facts = [fact for batch in batches for fact in batch.token_facts]
    assert all(isinstance(fact, Verified) for fact in facts)
    assert sorted(fact.token.id for fact in facts) == context.scope()


def test_a_scan_of_an_empty_scope_ends() -> None:
    scan = STRATEGIES["scan"]
    events = list(scan.run(scan.configure({"controls": 2}), reaching(0), []))
    assert not [event for event in events if isinstance(event, Batch)]


def planned(tmp_path: Path, step: str, *sets: str) -> Plan:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("ORACLE", str(FOLDER)).replace("STEP", step))
    resolver = Resolver()
    return build(load_experiment(path, sets), lambda key: None, fetch=False, resolve=resolver)


@pytest.mark.parametrize(
    ("step", "sets", "place", "said"),
    [
        ("strategy: scan", ["tokens.categories=[unused]"], 5, "the categories unused"),
        ("strategy: mine", ["tokens.categories=[unused, unreachable]"], 5, "unused, unreachable"),
        ("strategy: mine", ["tokens.exclude=['(?s).']"], 5, "none of the 459 tokens"),
        (
            "strategy: genetic, base_text: a",
            ["tokens.exclude=['(?s).']"],
            5,
            "none of the 459 tokens",
        ),
        ("strategy: mine, search: range, ranges: [[700, 900]]", [], 7, "ranges [[700, 900]]"),
        ("strategy: mine, search: category, groups: [hangul]", [], 7, "groups ['hangul']"),
        ("strategy: mine, search: pattern, patterns: [zzzz]", [], 7, "patterns ['zzzz']"),
    ],
)
def test_an_empty_scope_is_reported_before_the_weights_are_loaded(
    tmp_path: Path, step: str, sets: list[str], place: int, said: str
) -> None:
    (run,) = planned(tmp_path, step, *sets).runs
    assert run.action == "blocked"
    assert f"spec.yaml:{place}:" in run.reason
    assert said in run.reason
    if place == 5:
        assert "459 normal, 178 byte, 3 special" in run.reason


@pytest.mark.parametrize(
    "step",
    [
        "strategy: test, tokens: {ids: [300]}",
        "strategy: genetic, base_text: a, pool: {ids: [300, 301]}",
        'strategy: predict, prompts: [{text: "a"}]',
        "strategy: profile",
    ],
)
def test_a_step_that_names_its_tokens_needs_no_scope(tmp_path: Path, step: str) -> None:
    (run,) = planned(tmp_path, step, "tokens.categories=[unused]").runs
    assert run.action == "start"
