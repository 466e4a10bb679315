"""`validate`: samples continuations and estimates each token's attack success rate (ASR)."""

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
    probe_positions,
    sampling,
    usual_length,
)
from glitchrun.spec.probes import probe_names
from glitchrun.spec.strategy import Expectation, Strategy, Work, Workload, read_fragment

_ANSWER = 20
"""Mean tokens of an answer that is not cut off. Answers of SmolLM2 to the strict probes, cut off at
20 tokens, had 12.3 on average."""
_ATTEMPTS_MADE = 0.75
"""Share of the attempts that `sequential` usually makes: 77 % in the quickstart."""
_CONFIRMED = 0.8
"""Share of the glitch tokens of a search that are usually confirmed: 242 of 311 in the
quickstart."""


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    """Which tokens: `ids`, `texts`, `file`, `from` an earlier step, or `phrases`."""
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
    """Largest probability that `sequential` stops a token on the wrong side of the threshold."""
    match: str = "either"
    """What counts as saying the token: its `id`, its `text`, or `either`."""

    @property
    def repeats(self) -> int:
        """Largest number of attempts: greedy attempts are all the same, so one is enough."""
        return self.attempts if self.temperature else 1


class Validate(Strategy):
    """Samples continuations and estimates each token's attack success rate (ASR)."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    example = (
        "  - {id: mine, strategy: mine, search: gradient, iterations: 50, batch_size: 8, k: 32}\n"
        "  - {id: asr, strategy: validate, tokens: {from: mine}, attempts: 5}\n"
        "  # Which of these tokens does the model fail to copy even when shown?\n"
        "  - {id: shown, strategy: test, tokens: {from: mine}, probes: magikarp, sequential: true}"
    )
    metrics_code = "glitchrun.strategies.metrics:of_sampling"
    verdict = "asr"
    batch_size_changes_results = False
    known_code = "glitchrun.strategies.validate.attempts:known_batches"
    asks = frozenset(("tokens", "attempts", "controls", "sequential", "error_rate"))
    samples_attempts = True
    takes_phrases = True

    def spreads(self, config: Config) -> bool:
        return "phrases" not in config.tokens

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset(["asr"] if config.sequential else [])

    def uses_seed(self, config: Config) -> bool:
        pairs = "pairs" in config.tokens.get("phrases", {})
        return bool(config.temperature or config.controls or pairs)

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        return phrases_refusal(params)

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        if "phrases" in config.tokens:
            return phrase_work(config.tokens, config.probes, config.repeats, config.max_new_tokens)
        named = named_tokens(config.tokens, earlier, vocab)
        tokens = min(named + CONTROLS_EACH * config.controls, vocab)
        prompts = len(probe_names(config.probes))
        most = sampling(tokens, tokens * config.repeats, prompts, config.max_new_tokens)
        return replace(most, caveat=only_if_found(config.tokens, named))

    def likely_work(self, config: Config, bounds: Work, expected: Expectation) -> Work:
        if "phrases" in config.tokens:
            length = usual_length(config.max_new_tokens, _ANSWER)
            return phrase_work(config.tokens, config.probes, config.repeats, length)
        named = expected_tokens(config.tokens, expected)
        tokens = min(named + config.controls, bounds.tokens or 0)
        attempts = config.repeats
        if config.sequential:
            attempts = max(1, round(_ATTEMPTS_MADE * attempts))
        length = usual_length(config.max_new_tokens, _ANSWER)
        usual = sampling(tokens, tokens * attempts, len(probe_names(config.probes)), length)
        return replace(usual, found=round(_CONFIRMED * named))

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        positions = probe_positions(config.probes) + phrase_positions(config.tokens, config.probes)
        yield Workload(
            step,
            batch=config.batch_size if isinstance(config.batch_size, int) else None,
            positions=positions + system + config.max_new_tokens,
            kind="sample",
            together=1 if config.sequential else config.attempts,
            controls=bool(config.controls),
        )
