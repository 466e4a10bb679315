"""Runs `check`: one batch for each check, then how many passed, failed or were skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from glitchrun.events import Batch, Event, Measured, Stage
from glitchrun.strategies.check import (
    Config,
    checks_model,
    checks_prompts,
    checks_tokens,
)
from glitchrun.strategies.check.outcomes import Checked
from glitchrun.strategies.context import Context
from glitchrun.strategies.predict.run import rendered_prompt_ids

_FUNCTIONS: Mapping[str, Callable[[Config, Context], Checked]] = {
    "loading": checks_model.loading,
    "template": checks_prompts.template,
    "prediction": checks_prompts.prediction,
    "chat": checks_prompts.chat,
    "classifier": checks_tokens.classifier,
    "verification": checks_tokens.verification,
    "memory": checks_model.memory,
}
"""The function of each check, by its name in `CHECKS`."""


def prompt_ids(config: Config, context: Context) -> Iterator[tuple[str, Sequence[int]]]:
    """The prompts that the checks give to the model."""
    formats = {"prediction": ["raw"], "chat": ["raw", "chat"]}
    for name in ("chat", "prediction"):
        if name in config.checks:
            yield from rendered_prompt_ids(config.prompts, formats[name], context)
    if "verification" in config.checks:
        yield from context.prompt_ids("strict")


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch per check, in the order of `config.checks`."""
    batches = list(history)
    stage = Stage("checks", len(config.checks), unit="checks")
    context.announce(stage)
    for place in range(len(batches), len(config.checks)):
        start = time.perf_counter()
        checked = _FUNCTIONS[config.checks[place]](config, context)
        seconds = time.perf_counter() - start
        entries = tuple(checked.entries())
        batches.append(Batch(entries, place + 1, stage.total, seconds, stage=stage.name))
        yield batches[-1]
    rows = [entry for batch in batches for entry in batch.entries if entry.table == "checks"]
    outcomes = [row.cells["outcome"] for row in rows]
    yield Measured("failed", outcomes.count("fail"), len(outcomes))
    yield Measured("passed", outcomes.count("pass"), len(outcomes))
    yield Measured("skipped", outcomes.count("skip"), len(outcomes))
    yield Measured("checks", len(outcomes), len(outcomes))
