"""The attempts of `validate`: which ones a step needs, those that are known, and the ASR. No torch.

An attempt is a function of the model, the prompts, the seed, the token and its number. So a step
takes the attempts that other steps with the same question have sampled, and samples the rest. If
nothing is left, the model is not even loaded (`known_batches`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from glitchrun.behaviour.proportions import wilson
from glitchrun.events import Attempt, Batch, Sampled, Token
from glitchrun.strategies.validate import Config
from glitchrun.strategies.validate.stopping import Stopping
from glitchrun.verdicts import is_confirmed

Made = tuple[tuple[bool, ...], tuple[Attempt, ...]]
"""Whether each attempt on a token failed, and all that was said."""
Sample = Callable[[Sequence[Token], Sequence[range]], Sequence[Made]]
"""Samples attempts of these numbers on each token, see `Sampler.attempt`."""


@dataclass(frozen=True, slots=True)
class Known:
    """What steps with the same question have sampled."""

    samples: Mapping[int, Sampled] = field(default_factory=dict)
    """By token id, the most attempts on it."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By probe, the text before the token and the text after it."""
    dropped_system: int = 0
    """Prompts of each token whose own system text the template cannot include."""


def stopping(config: Config, threshold: float) -> Stopping | None:
    """The rule by which attempts stop before there are `attempts`; None without one."""
    return Stopping(threshold, config.repeats, config.error_rate) if config.sequential else None


def attempts(
    config: Config,
    tokens: Sequence[Token],
    known: Mapping[int, Sampled],
    sample: Sample,
    *,
    order: Sequence[str],
    threshold: float,
) -> tuple[list[Made], int, int]:
    """Returns the attempts on each token, how many of them were known, and of how many tokens all.

    With `sequential` they are made in rounds. A round makes only attempts without which the rule
    cannot stop. So the attempts of a token depend neither on its batch nor on what is known.

    Args:
        config: The step's Config.
        tokens: The tokens, each once.
        known: Attempts by token id.
        sample: Called for the attempts that are not known.
        order: The probes, in the order in which an attempt tries them.
        threshold: `thresholds.asr`.
    """
    rule = stopping(config, threshold)
    made = [_Attempts() for _ in tokens]
    reused = 0
    complete = set(range(len(tokens)))
    going = list(range(len(tokens)))
    while going:
        asked: dict[int, range] = {}  # the row of a token, and the numbers to sample
        still_going = []
        for row in going:
            one, before = made[row], made[row].size
            needed = rule.needed(before, sum(one.outcomes)) if rule else config.repeats - before
            if not needed:
                continue
            still_going.append(row)
            if (sampled := known.get(tokens[row].id)) is not None:
                one.take(sampled, before + needed)
                reused += one.size - before
            if one.size < before + needed:
                asked[row] = range(one.size, before + needed)
        if asked:
            complete -= asked.keys()
            found = sample([tokens[row] for row in asked], list(asked.values()))
            for row, (failed, said) in zip(asked, found, strict=True):
                made[row].outcomes += failed
                made[row].said += said
        going = still_going
    place = {name: number for number, name in enumerate(order)}
    return [(one.outcomes, one.in_order(place)) for one in made], reused, len(complete)


def are_known(config: Config, known: Sampled | None, threshold: float) -> bool:
    """Whether the known attempts on a token are all that it needs."""
    if known is None:
        return False
    rule = stopping(config, threshold)
    size = 0
    while size <= known.attempts:
        failures = sum(known.outcomes[:size])
        needed = rule.needed(size, failures) if rule else config.repeats - size
        if needed <= 0:
            return True
        size += needed
    return False


@dataclass(slots=True)
class _Attempts:
    """The attempts made on a token so far."""

    outcomes: tuple[bool, ...] = ()
    said: tuple[Attempt, ...] = ()

    @property
    def size(self) -> int:
        return len(self.outcomes)

    def take(self, known: Sampled, end: int) -> None:
        """Adds the known attempts up to number `end`."""
        start = self.size
        self.outcomes += known.outcomes[start:end]
        self.said += tuple(one for one in known.continuations if start <= one.number < self.size)

    def in_order(self, place: Mapping[str, int]) -> tuple[Attempt, ...]:
        """What was said, by probe and then by number, whatever the rounds were."""
        return tuple(sorted(self.said, key=lambda one: (place[one.probe], one.number)))


def estimate(token: Token, outcomes: tuple[bool, ...], threshold: float, kept: bool) -> Sampled:
    """The ASR of a token with Wilson's 95 % interval, and its verdict.

    Args:
        token: The token.
        outcomes: Whether each attempt failed.
        threshold: `thresholds.asr`.
        kept: Whether every prompt presents the token intact.
    """
    asr = wilson(sum(outcomes), len(outcomes))
    confirmed = is_confirmed(outcomes, threshold)
    return Sampled(token, outcomes, asr.value, asr.low, asr.high, confirmed, kept)


class _Unknown(Exception):
    """An attempt has to be sampled."""


def known_batches(
    config: Config, tokens: Sequence[Token], known: Known, threshold: float
) -> list[Batch] | None:
    """The batches of a step all of whose attempts are known; None if it needs the model.

    Args:
        config: The step's Config.
        tokens: The tokens that it takes from earlier steps.
        known: What steps with the same question have sampled.
        threshold: `thresholds.asr`.
    """

    def unknown(tokens: Sequence[Token], numbers: Sequence[range]) -> Sequence[Made]:
        raise _Unknown

    start = time.perf_counter()
    if config.controls or not known.prompts:  # controls are drawn from the vocabulary
        return None
    if not all(token.id in known.samples for token in tokens):
        return None
    order = tuple(known.prompts)
    try:
        made, reused, _ = attempts(
            config, tokens, known.samples, unknown, order=order, threshold=threshold
        )
    except _Unknown:
        return None
    facts = tuple(
        replace(
            estimate(token, outcomes, threshold, known.samples[token.id].intact),
            continuations=said,
        )
        for token, (outcomes, said) in zip(tokens, made, strict=True)
    )
    counters = {
        "reused_attempts": reused,
        "reused_tokens": len(tokens),
        "not_intact": sum(not fact.intact for fact in facts),
        "dropped_system": known.dropped_system * len(tokens),
    }
    batch = Batch(
        facts,
        done=len(tokens),
        total=len(tokens),
        seconds=time.perf_counter() - start,
        counters={name: count for name, count in counters.items() if count},
        stage="sampling",
        prompts=known.prompts,
    )
    return [batch] if tokens else []
