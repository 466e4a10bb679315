"""`profile` measures a model's loading time, bytes, peak memory and speed, and compares them with
the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.spec.strategy import Strategy, TextLength, Work, Workload, read_fragment
from glitchrun.strategies.prompt_lengths import PromptLengths


@dataclass(frozen=True, slots=True)
class TimedWork:
    """The timed work: a pass over prompts, and their continuation token by token."""

    prompt_tokens: int = 128
    """Tokens of each prompt: as long as the longest probe."""
    batch_size: int = 1
    """Prompts in a pass: one, so that a pass shows the latency."""
    new_tokens: int = 32
    """Tokens generated after each prompt."""
    repeats: int = 3
    """Timings of each pass, of which the median is reported."""


@dataclass(frozen=True, slots=True)
class Config:
    workload: Mapping[str, int] | None = None
    """Fields of `TimedWork` that differ from its defaults."""

    @property
    def timed(self) -> TimedWork:
        """The workload with its defaults."""
        return TimedWork(**(self.workload or {}))


class Profile(Strategy):
    """Measures load time, bytes by dtype, peak memory on every device, and speed."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    measures_machine = True

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        return "it measures the weights in memory"

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset()

    def limited(self, config: Config, most: int) -> dict[str, Any]:
        asked = {"batch_size": config.timed.batch_size, "repeats": config.timed.repeats}
        fewer = {name: most for name, number in asked.items() if number > most}
        return {"workload": {**(config.workload or {}), **fewer}} if fewer else {}

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        # Each pass runs once more to warm up; generating starts from a pass over the prompts.
        passes = config.timed.batch_size * (config.timed.repeats + 1)
        return Work(tokens=0, prompts=2 * passes, new_tokens=passes * config.timed.new_tokens)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        timed = config.timed
        positions = timed.prompt_tokens + timed.new_tokens
        yield Workload(step, batch=timed.batch_size, positions=positions)

    def text_lengths(self, config: Config, prompts: PromptLengths) -> Iterator[TextLength]:
        yield TextLength("workload", config.timed.prompt_tokens, config.timed.new_tokens)
