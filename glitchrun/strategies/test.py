"""`test`: verifies the tokens given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.plan.work import CONTROLS_EACH, named_tokens, probe_pass, verification
from glitchrun.spec.strategy import Strategy, Work, Workload, read_fragment


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    """Which tokens: `ids`, `texts`, `file`, or `from` an earlier step."""
    probes: str | tuple[str, ...] = ("repeat",)
    """Prompts that a glitch token must fail."""
    batch_size: int | str = "auto"
    """Tokens in a forward pass."""
    controls: int = 0
    """Ordinary tokens verified after the given ones, to measure the false-alarm rate."""


class Test(Strategy):
    """Verifies the tokens given, in the order named, whatever their category."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("test.json"))
    code = "glitchrun.strategies.listed:test"
    example = "  - {id: test, strategy: test, tokens: {ids: [0, 1, 2]}, probes: strict}"
    batch_size_changes_results = False

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        tokens = named_tokens(config.tokens, earlier, vocab) + CONTROLS_EACH * config.controls
        return verification(min(tokens, vocab), config.probes)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        yield probe_pass(config, step, system)
