"""Whether a model is fit to be worked with: checks that pass, fail or are skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Batch, Event, Measured
from glitchrun.strategies import checks_model, checks_prompts, checks_tokens, checks_verdicts
from glitchrun.strategies.context import Context
from glitchrun.strategies.findings import Checked
from glitchrun.strategies.predict import rendered_prompt_ids
from glitchrun.strategies.prompt_ids import probed

CHECKS: Mapping[str, Callable[[Config, Context], Checked]] = {
    "loading": checks_model.loading,
    "template": checks_prompts.template,
    "prediction": checks_prompts.prediction,
    "chat": checks_prompts.chat,
    "classifier": checks_tokens.classifier,
    "verification": checks_verdicts.verification,
    "memory": checks_model.memory,
}
"""Every check, in the order in which they are listed by default."""


@dataclass(frozen=True, slots=True)
class Config:
    checks: tuple[str, ...] = tuple(CHECKS)
    memory_budget: int | str | None = None
    expect: Mapping[str, Any] | None = None
    prompts: tuple[Mapping[str, Any], ...] = (
        {
            "text": "The quick brown",
            "chat": "Complete this phrase: The quick brown",
            "expected": "fox",
        },
    )
    max_rank: int = 10
    rank_factor: float = 2.0
    p_factor: float = 2.0
    min_improvement: float | None = None
    labelled: Mapping[str, tuple[int, ...]] | None = None
    glitch: tuple[int, ...] = ()
    controls: tuple[int, ...] | int = 20
    max_false_alarms: float = 0.1
    attempts: int = 3
    max_new_tokens: int = 20


def prompt_ids(config: Config, context: Context) -> Iterator[tuple[str, Sequence[int]]]:
    """The prompts of the checks that ask the model something."""
    formats = {"prediction": ["raw"], "chat": ["raw", "chat"]}
    for name in ("chat", "prediction"):
        if name in config.checks:
            yield from rendered_prompt_ids(config.prompts, formats[name], context)
    if "verification" in config.checks:
        yield from probed("strict", context)


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch a check, in the order in which they are named."""
    batches = list(history)
    for place in range(len(batches), len(config.checks)):
        start = time.perf_counter()
        checked = CHECKS[config.checks[place]](config, context)
        seconds = time.perf_counter() - start
        entries = tuple(checked.entries())
        batches.append(Batch(entries, place + 1, len(config.checks), seconds))
        yield batches[-1]
    rows = [entry for batch in batches for entry in batch.entries if entry.table == "checks"]
    outcomes = [row.cells["outcome"] for row in rows]
    yield Measured("failed", outcomes.count("fail"), len(outcomes))
    yield Measured("passed", outcomes.count("pass"), len(outcomes))
    yield Measured("skipped", outcomes.count("skip"), len(outcomes))
    yield Measured("checks", len(outcomes), len(outcomes))
