"""`test`: verifies the tokens given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glitchrun.plan.work import (
    CONTROLS_EACH,
    expected_tokens,
    named_tokens,
    only_if_found,
    phrase_positions,
    phrase_work,
    phrases_refusal,
    probe_pass,
    verification,
)
from glitchrun.spec.strategy import Expectation, Strategy, Work, Workload, read_fragment

_SEQUENTIAL = 0.4
"""Share of the positions that `sequential` usually runs: by `magikarp`, 33 of 64 tokens of SmolLM2
passed the shortest prompt, which takes 3 % of the positions, and 31 the second."""


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    """Which tokens: `ids`, `texts`, `file`, `from` an earlier step, or `phrases`."""
    probes: str | tuple[str, ...] = ("repeat",)
    """Prompts that a glitch token must fail."""
    batch_size: int | str = "auto"
    """Tokens in a forward pass."""
    controls: int = 0
    """Ordinary tokens verified after the given ones, to measure the false-alarm rate."""
    sequential: bool = False
    """Whether a token's probes, the shortest first, stop once its verdict is certain."""


class Test(Strategy):
    """Verifies the tokens given, in the order named, whatever their category."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("test.json"))
    code = "glitchrun.strategies.listed:test"
    example = "  - {id: test, strategy: test, tokens: {ids: [0, 1, 2]}, probes: strict}"
    metrics_code = "glitchrun.strategies.metrics:of_verification"
    verdict = "probability"
    batch_size_changes_results = False

    takes_phrases = True

    def spreads(self, config: Config) -> bool:
        return "phrases" not in config.tokens

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset(["probability"] if config.controls else [])

    def uses_seed(self, config: Config) -> bool:
        return bool(config.controls) or "pairs" in config.tokens.get("phrases", {})

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        return phrases_refusal(params)

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        if "phrases" in config.tokens:
            return phrase_work(config.tokens, config.probes)
        named = named_tokens(config.tokens, earlier, vocab)
        most = verification(min(named + CONTROLS_EACH * config.controls, vocab), config.probes)
        return replace(most, caveat=only_if_found(config.tokens, named))

    def likely_work(self, config: Config, bounds: Work, expected: Expectation) -> Work:
        if "phrases" in config.tokens:
            return bounds
        named = expected_tokens(config.tokens, expected)
        tokens = min(named + config.controls, bounds.tokens or 0)
        usual = verification(tokens, config.probes)
        positions = round(_SEQUENTIAL * usual.positions) if config.sequential else usual.positions
        return replace(usual, found=named, positions=positions)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        extra = phrase_positions(config.tokens, config.probes)
        yield probe_pass(config, step, system + extra)
