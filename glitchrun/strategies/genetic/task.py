"""The task of a genetic step: prompt, pool of tokens, goals and fitness."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from glitchrun.errors import RunError
from glitchrun.fitness import Ids, increase, reduction
from glitchrun.probing.sequence_scoring import SequenceScorer
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Slot, render_slot
from glitchrun.strategies.context import Context
from glitchrun.strategies.genetic import Config

Scores = Mapping[Ids, tuple[float, ...]]
"""Probabilities after each sequence: of the target, and of the wanted token if there is one."""


class Timer:
    """A stopwatch that starts when it is created."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the timer was created."""
        return time.perf_counter() - self._start


class Task:
    """One scenario on one loaded model."""

    def __init__(self, config: Config, context: Context) -> None:
        self.config = config
        self.context = context
        self.place = place(config, context)
        self.wanted = (
            None if config.wanted is None else _one_token("wanted", config.wanted, context)
        )
        self.given = None if config.target is None else _one_token("target", config.target, context)
        self.objective = _objective(config)
        self.pool = _pool(config, context, self.wanted)
        self.before: tuple[float, ...] = ()
        """Probabilities of the goals without a sequence; set by `start`."""
        self.scorer: SequenceScorer = SequenceScorer(context.backend, self.place, ())

    def start(self, goals: tuple[int, ...], before: tuple[float, ...]) -> None:
        """Sets the goals' ids, and their probabilities without a sequence."""
        self.scorer = SequenceScorer(self.context.backend, self.place, goals)
        self.before = before

    def fitness(self, after: tuple[float, ...]) -> float:
        """The fitness of a sequence, from the probabilities of the goals after it.

        This is how far the target's probability falls, how far the wanted token's rises, or the
        mean of both.
        """
        lowered = reduction(self.before[0], after[0])
        if self.objective == "target":
            return lowered
        raised = increase(self.before[1], after[1])
        return raised if self.objective == "wanted" else (lowered + raised) / 2


def _objective(config: Config) -> str:
    """The objective; for `auto`, the goals that are given, or the target if none is."""
    if config.objective != "auto":
        return config.objective
    if config.wanted is None:
        return "target"
    return "wanted" if config.target is None else "both"


def place(config: Config, context: Context) -> Slot:
    """The prompt of a step, with a place for sequences."""
    model = context.backend.model
    if config.format == "chat":
        system = context.spec.system
        return render_slot(
            context.template, config.base_text, model.tokenizer, system, config.prefill
        )
    raw = detect("raw", model.tokenizer, model.config, context.spec.model.path)
    return render_slot(raw, config.base_text + config.prefill, model.tokenizer)


def _one_token(name: str, value: int | str, context: Context) -> int:
    size = len(context.vocabulary)
    if isinstance(value, int):
        if not 0 <= value < size:
            raise RunError(
                f"{context.at(name)}: token id {value} is outside this model's vocabulary of "
                f"{size} entries"
            )
        return value
    found = context.vocabulary.find(value)
    if found is None:
        reason = context.vocabulary.not_one_token(value)
        raise RunError(f"{context.at(name)}: {reason}; give one of them, by its text or id")
    return found


def _pool(config: Config, context: Context, wanted: int | None) -> list[int]:
    """Ids of the tokens that sequences may contain, ascending.

    Raises:
        RunError: no token is left.
    """
    if config.pool is None:
        ids = context.scope(whole=True)
    else:
        ids = sorted(token.id for token in context.tokens(config.pool, "pool", whole=True))
    pattern = re.compile(config.pool_pattern or "")
    text = context.vocabulary.text
    kept = [
        i for i in ids if pattern.search(text(i)) and (not config.ascii_only or _ascii(text(i)))
    ]
    if wanted is not None and not config.wanted_in_pool:
        kept = [i for i in kept if i != wanted and _bare(text(i)) != _bare(text(wanted))]
    if not kept:
        raise RunError(
            f"the pool is empty: {len(ids)} tokens were named, and pool_pattern, ascii_only and "
            "wanted_in_pool leave none of them"
        )
    return kept


def _ascii(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _bare(text: str) -> str:
    return text.strip().casefold()
