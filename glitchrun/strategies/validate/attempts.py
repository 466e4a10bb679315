"""The attempts of `validate`: which ones a step needs, those that are known, and the ASR. No torch.

An attempt is a function of the model, the prompts, the seed, the token and its number. So a step
takes the attempts that other steps with the same question have sampled, and samples the rest. If
nothing is left, the model is not even loaded (`known_batches`). `Stopping` ends a token's attempts
once its verdict is settled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scipy.special import betainc, betaincc, betaln

from glitchrun.behaviour.significance import wilson
from glitchrun.events import Attempt, Batch, Sampled, Token
from glitchrun.strategies.validate import Config
from glitchrun.verdicts import is_confirmed

Made = tuple[tuple[bool, ...], tuple[Attempt, ...]]
"""Whether each attempt on a token failed, and all that was said."""


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


@dataclass(frozen=True, slots=True)
class Collected:
    """The attempts on one token."""

    made: Made
    reused: int
    """How many of them were known."""
    is_known: bool
    """Whether all of them were."""


def collect(
    config: Config, known: Sampled | None, *, order: Sequence[str], threshold: float
) -> Generator[range, Made, Collected]:
    """Yields the numbers of the attempts to sample on one token; returns all that it needs.

    With `sequential` they are made in rounds. A round makes only attempts without which the rule
    cannot stop. So the attempts of a token depend neither on its batch nor on what is known.

    Args:
        config: The step's Config.
        known: Attempts that were sampled before.
        order: The probes, in the order in which an attempt tries them.
        threshold: `thresholds.asr`.
    """
    rule = stopping(config, threshold)
    one = _Attempts()
    reused, is_known = 0, True
    while True:
        before = one.size
        needed = rule.needed(before, sum(one.outcomes)) if rule else config.repeats - before
        if not needed:
            place = {name: number for number, name in enumerate(order)}
            return Collected((one.outcomes, one.in_order(place)), reused, is_known)
        if known is not None:
            one.take(known, before + needed)
            reused += one.size - before
        if one.size < before + needed:
            is_known = False
            failed, said = yield range(one.size, before + needed)
            one.outcomes += failed
            one.said += said


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

    start = time.perf_counter()
    if config.controls or not known.prompts:  # controls are drawn from the vocabulary
        return None
    if not all(token.id in known.samples for token in tokens):
        return None
    facts: list[Sampled] = []
    reused = 0
    for token in tokens:
        sample = known.samples[token.id]
        collecting = collect(config, sample, order=tuple(known.prompts), threshold=threshold)
        try:
            next(collecting)
        except StopIteration as end:
            outcomes, said = end.value.made
            fact = estimate(token, outcomes, threshold, sample.intact)
            facts.append(replace(fact, continuations=said))
            reused += end.value.reused
        else:  # an attempt has to be sampled
            return None
    counters = {
        "reused_attempts": reused,
        "reused_tokens": len(tokens),
        "not_intact": sum(not fact.intact for fact in facts),
        "dropped_system": known.dropped_system * len(tokens),
    }
    batch = Batch(
        tuple(facts),
        done=len(tokens),
        total=len(tokens),
        seconds=time.perf_counter() - start,
        counters={name: count for name, count in counters.items() if count},
        stage="sampling",
        prompts=known.prompts,
    )
    return [batch] if tokens else []


@dataclass(frozen=True, slots=True)
class Stopping:
    """A sequential test of each token's ASR against a threshold, evaluated after every attempt.

    Attempts stop where either

    - the verdict of all `attempts` is certain already (curtailment: never an error), or
    - the attempts so far are evidence enough: the likelihood of the rates on one side of the
      threshold, averaged evenly, over that of the threshold itself exceeds 1 / error_rate. If
      the true rate lies on the other side, this ever happens with a probability of at most
      `error_rate` (mixtures of Robbins 1970 with Ville's inequality; a one-sided case of the
      beta-binomial mixture of Howard, Ramdas, McAuliffe, Sekhon 2021, arXiv 1810.08240).

    So a token is stopped by evidence on the wrong side of the threshold with a probability of at
    most `error_rate`. In both cases failures / attempts lies on the side that was found.
    """

    threshold: float
    attempts: int
    error_rate: float

    @property
    def theta(self) -> float:
        """The rate that confirms a token; a threshold of 0 requires one failed attempt."""
        return self.threshold or 1 / self.attempts

    def needed(self, made: int, failures: int) -> int:
        """The fewest further attempts that can settle the verdict; 0 if the attempts may stop."""
        if self._settled(made, failures):
            return 0
        left = range(1, self.attempts - made + 1)
        # Nothing settles sooner than failures alone, or successes alone.
        return next(
            n
            for n in left
            if self._settled(made + n, failures + n) or self._settled(made + n, failures)
        )

    def _settled(self, made: int, failures: int) -> bool:
        if made == 0:
            return False
        left = self.attempts - made
        if failures / self.attempts >= self.theta:
            return True
        if (failures + left) / self.attempts < self.theta:
            return True
        return self._evidence(made, failures)

    def _evidence(self, made: int, failures: int) -> bool:
        theta, successes = self.theta, made - failures
        if self.error_rate == 0 or not 0 < theta < 1:
            return False
        above, below = betaincc, betainc
        share, room = (above, 1 - theta) if failures > theta * made else (below, theta)
        tail = float(share(failures + 1, successes + 1, theta)) / room
        if tail == 0:
            return False
        mixed = math.log(tail) + float(betaln(failures + 1, successes + 1))
        alone = failures * math.log(theta) + successes * math.log1p(-theta)
        return mixed - alone >= -math.log(self.error_rate)
