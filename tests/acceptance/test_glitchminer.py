"""Agreement with GlitchMiner and with Land and Bartolo on SmolLM2-135M-Instruct in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Verified
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import InlineTemplate
from glitchrun.strategies.context import Context
from tests.support.engine import context
from tests.support.real_tokenizers import SMOLLM2

DATA = Path(__file__).parent.parent / "data"
CHATML = InlineTemplate(
    user="<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def smollm2() -> Context:
    return context(SMOLLM2, quantization="float32", template=CHATML)


def reference(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return data


def batches(strategy: str, context: Context, params: dict[str, Any]) -> list[Batch]:
    module = STRATEGIES[strategy]
    events = module.run(module.configure(params), context, [])
    return [event for event in events if isinstance(event, Batch)]


def test_the_walk_is_the_same_token_for_token(smollm2: Context) -> None:
    walk = reference("glitchminer_walk")
    prompt = smollm2.prompts(("repeat",))["repeat"]
    assert list(prompt.prefix_ids) == walk["prefix_ids"]
    assert list(prompt.suffix_ids) == walk["suffix_ids"]
    settings = {"search": "gradient", "iterations": 12, "batch_size": 8, "k": 32}
    found = batches("mine", smollm2, settings)
    assert len(found) == 12
    for batch, expected in zip(found, walk["iterations"], strict=False):
        verdicts = [fact for fact in batch.facts if isinstance(fact, Verified)]
        assert [[v.token.id, v.glitch] for v in verdicts] == [row[:2] for row in expected]
        for verdict, (_, _, entropy) in zip(verdicts, expected, strict=True):
            assert verdict.probes["repeat"].entropy == pytest.approx(entropy, abs=2e-4)
        assert batch.counters.get("walk_ties", 0) == 0


def test_verdicts_are_the_same_and_so_are_their_numbers(smollm2: Context) -> None:
    table = reference("glitchminer_verdicts")
    expected = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    ids = [row["token_id"] for row in expected]
    facts = [f for b in batches("test", smollm2, {"tokens": {"ids": ids}}) for f in b.facts]
    assert len(facts) == len(expected) == 128
    assert {row["glitch"] for row in expected} == {True, False}
    for fact, row in zip(facts, expected, strict=True):
        assert isinstance(fact, Verified)
        assert fact.glitch == row["glitch"]
        found = fact.probes["repeat"]
        assert (found.argmax, found.rank) == (row["argmax"], row["rank"])
        assert found.p == pytest.approx(row["p"], abs=1e-5)
        assert found.entropy == pytest.approx(row["entropy"], abs=2e-4)
        assert found.gap == pytest.approx(row["gap"], abs=1e-3)


def test_magikarp_agrees_with_an_independent_implementation(smollm2: Context) -> None:
    expected = reference("magikarp_verdicts")["tokens"]
    params = {"tokens": {"ids": [one["token_id"] for one in expected]}, "probes": "magikarp"}
    facts = [f for b in batches("test", smollm2, params) for f in b.token_facts]
    for fact, row in zip(facts, expected, strict=True):
        assert isinstance(fact, Verified)
        assert fact.p == pytest.approx(row["max_prob"], abs=1e-4)
        for name, found in fact.probes.items():
            length = len(found.greedy)  # shorter where the answer ends with a stop token
            assert list(found.greedy) == row["greedy"][name][:length]
            assert found.at_positions == pytest.approx(row["prompts"][name][:length], abs=1e-4)
