"""`scan`: verifies every token in scope."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from glitchrun.plan.work import probe_pass, verification
from glitchrun.spec.strategy import Expectation, Strategy, Work, Workload, read_fragment


@dataclass(frozen=True, slots=True)
class Config:
    probes: str | tuple[str, ...] = ("repeat",)
    """Prompts that a glitch token must fail. Each costs a pass of the vocabulary: one."""
    batch_size: int | str = "auto"
    """Tokens in a forward pass."""
    controls: int = 0
    """Tokens of the scan that are compared with the glitch tokens; they cost no verification."""


class Scan(Strategy):
    """Verifies every token in scope, by ascending id."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("scan.json"))
    code = "glitchrun.strategies.listed:scan"
    metrics_code = "glitchrun.strategies.metrics:of_verification"
    verdict = "probability"
    batch_size_changes_results = False

    def takes_scope(self, config: Config) -> bool:
        return True

    def spreads(self, config: Config) -> bool:
        return True

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset(["probability"] if config.controls else [])

    def uses_seed(self, config: Config) -> bool:
        return bool(config.controls)

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        return verification(vocab, config.probes)

    def likely_work(self, config: Config, bounds: Work, expected: Expectation) -> Work:
        return replace(bounds, found=round(expected.size * expected.glitch_share))

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        yield probe_pass(config, step, system)
