"""`check`: integration checks of a loaded model, each of which passes, fails or is skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.plan.work import probe_positions
from glitchrun.spec.probes import STRICT
from glitchrun.spec.strategy import Strategy, TextLength, Work, Workload, read_fragment
from glitchrun.strategies.prompt_lengths import PromptLengths

CHECKS = (*("loading", "template", "prediction", "chat", "classifier", "verification", "memory"),)
"""Every check, in the order in which they run by default."""


@dataclass(frozen=True, slots=True)
class Config:
    checks: tuple[str, ...] = CHECKS
    """Which checks, in this order."""
    memory_budget: int | str | None = None
    """Largest amount of memory that the model may take, in bytes or as `25GB`; None skips the
    check."""
    expect: Mapping[str, Any] | None = None
    """Expected properties of the loaded model; those not given are only reported."""
    prompts: tuple[Mapping[str, Any], ...] = (
        {
            "text": "The quick brown",
            "chat": "Complete this phrase: The quick brown",
            "expected": "fox",
        },
    )
    """Texts whose continuation is known. By default one that every English model knows."""
    max_rank: int = 10
    """Largest rank of an expected continuation's first token where no reference is given."""
    rank_factor: float = 2.0
    """Factor by which a rank may differ from its reference, either way."""
    p_factor: float = 2.0
    """Factor by which a probability may differ from its reference, either way."""
    min_improvement: float | None = None
    """Smallest mean gain of chat over raw in log-probability (nats); None only reports it."""
    labelled: Mapping[str, tuple[int, ...]] | None = None
    """Token ids whose category is known, by category."""
    glitch: tuple[int, ...] = ()
    """Ids of known glitch tokens, which the verification must find and confirm."""
    controls: tuple[int, ...] | int = 20
    """Ids of ordinary tokens, or how many to draw."""
    max_false_alarms: float = 0.1
    """Largest share of controls that may be flagged: 2 of 20."""
    attempts: int = 3
    """Sampled attempts on each control and each known glitch token."""
    max_new_tokens: int = 20
    """Length of each continuation, in tokens."""


class Check(Strategy):
    """Checks whether a model loads, tokenizes, predicts and verifies as it should."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    prompt_code = f"{__name__}.run:prompt_ids"
    version = 2  # 1 computed in the dtype of the weights where passes compute in float32
    measures_machine = True
    test_cases = "checks"

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        return "it examines the weights in memory"

    def limited(self, config: Config, most: int) -> dict[str, Any]:
        # Known glitch tokens and controls are verified together: half of the items each.
        glitch = config.glitch[: -(-most // 2)]
        left, controls = most - len(glitch), config.controls
        fewer = min(controls, left) if isinstance(controls, int) else list(controls[:left])
        prompts = list(config.prompts[:most])
        return {"glitch": list(glitch), "controls": fewer, "prompts": prompts}

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        controls = config.controls if isinstance(config.controls, int) else len(config.controls)
        tokens = len(config.glitch) + controls
        expected = sum(1 + 2 * len(prompt["expected"].encode()) for prompt in config.prompts)
        sampled = 2 * len(config.glitch) * config.attempts
        continuations = sampled * len(STRICT)
        prompts = 1 + 4 * expected + tokens * len(STRICT)
        return Work(
            tokens,
            prompts=prompts,
            continuations=continuations,
            new_tokens=continuations * config.max_new_tokens,
            repeats=prompts + continuations,
            rows=max(1, sampled),
        )

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        positions = probe_positions("strict") + system + config.max_new_tokens
        controls = bool(config.controls)
        yield Workload(step, None, positions, kind="sample", controls=controls)

    def text_lengths(self, config: Config, prompts: PromptLengths) -> Iterator[TextLength]:
        if "verification" in config.checks:
            yield from prompts.of_probes("strict", config.max_new_tokens)
        if {"prediction", "chat"}.intersection(config.checks):
            yield from prompts.of_prompts(config.prompts, ("raw", "chat"), None)
