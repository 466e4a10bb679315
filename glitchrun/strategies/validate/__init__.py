"""`validate`: samples continuations and estimates each token's attack success rate (ASR)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.plan.work import CONTROLS_EACH, named_tokens, probe_positions, sampling
from glitchrun.spec.probes import probe_names
from glitchrun.spec.strategy import Strategy, Work, Workload, read_fragment


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    """Which tokens: `ids`, `texts`, `file`, or `from` an earlier step."""
    attempts: int = 5
    """Sampled attempts on each token; at most, with `sequential`."""
    max_new_tokens: int = 50
    """Length of each continuation, in tokens: room for an answer around the token."""
    temperature: float = 0.7
    """Sampling temperature; 0 for greedy."""
    top_p: float = 0.9
    """Nucleus: the smallest set of tokens with this share of probability."""
    probes: str | tuple[str, ...] = "strict"
    """Prompts of an attempt, which fails where the continuation of every one lacks the token."""
    batch_size: int | str = "auto"
    """Continuations sampled side by side."""
    controls: int = 0
    """Ordinary tokens sampled after the given ones, to measure the false-alarm rate."""
    sequential: bool = False
    """Whether a token's attempts stop once its verdict is settled."""
    error_rate: float = 0.05
    """Probability, at most, that `sequential` stops a token on the wrong side of the threshold."""
    match: str = "either"
    """What counts as saying the token: its `id`, its `text`, or `either`."""

    @property
    def repeats(self) -> int:
        """Attempts made at most: greedy ones are all the same, and prove no more than one."""
        return self.attempts if self.temperature else 1


class Validate(Strategy):
    """Samples continuations and estimates each token's attack success rate (ASR)."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    example = (
        "  - {id: mine, strategy: mine, search: gradient, iterations: 50, batch_size: 8, k: 32}\n"
        "  - {id: asr, strategy: validate, tokens: {from: mine}, attempts: 5}"
    )
    batch_size_changes_results = False
    samples_attempts = True

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        named = named_tokens(config.tokens, earlier, vocab)
        tokens = min(named + CONTROLS_EACH * config.controls, vocab)
        continuations = tokens * config.repeats * len(probe_names(config.probes))
        return sampling(tokens, continuations, config.max_new_tokens)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        yield Workload(
            step,
            batch=config.batch_size if isinstance(config.batch_size, int) else None,
            positions=probe_positions(config.probes) + system + config.max_new_tokens,
            kind="sample",
            together=1 if config.sequential else config.attempts,
            controls=bool(config.controls),
        )
