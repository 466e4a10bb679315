"""The events that strategies yield; the ledger stores them, MLflow and the report show them.

    Event
    ├── Batch           facts that are written to the ledger together, in one line
    │   ├── Verified    the verdict on one token from its probes
    │   ├── Sampled     the sampled attempts on one token
    │   ├── Control     a Verified or Sampled of an ordinary token, for comparison
    │   ├── Screened    the approximate scores that order the tokens for verification
    │   └── Entry       a row of a table that the strategy declares
    ├── Measured        a final metric of a step
    └── Artifact        a file of a step

A step works in stages, such as screening the vocabulary and then verifying a part of it. Each batch
belongs to one stage and counts the items of that stage alone. A strategy announces a `Stage` before
the first batch of it (`Context.announce`); announcements are shown and not stored.

All of them are plain data that JSON stores without loss, so a run read back from its ledger equals
the run that was written. `events_json` defines the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DIGITS = 7
"""Significant digits of the floats in tokens.jsonl: the precision of float32."""
SEVERE = 1e-3
"""A glitch token is severe if its probability is below this in every probe. With
SmolLM2-135M-Instruct, 27 % of the vocabulary fails its probe, mostly because the model begins with
a piece of the right text, and 0.75 % is severe."""


@dataclass(frozen=True, slots=True)
class Token:
    """A vocabulary entry, as known without running the model."""

    id: int
    text: str
    """The decoded text."""
    piece: str
    """The vocabulary entry as the tokenizer stores it, such as `▁the` or `Ġthe`."""
    category: str
    """normal, special, byte, undecodable, unreachable or unused."""
    norm: float
    """L2 norm of the input embedding."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The model's answer to one prompt that asks it to repeat a token.

    If the token may come at any of several greedy positions, the numbers are those of the position
    where it is most probable.
    """

    p: float
    """Probability of the token at the position where it is expected."""
    rank: int
    """Rank of the token at that position, counted from 1."""
    entropy: float
    """Entropy of the next-token distribution, in nats."""
    argmax: int
    """Id of the most probable token."""
    gap: float
    """Largest logit minus the token's own; 0 if the token is the most probable one."""
    passed: bool
    """Whether the model repeats the token by the rule of the probe."""
    decided_in: str
    """The dtype in which the verdict was computed."""
    intact: bool = True
    """False if encoding the prompt as text would give other ids in place of the token's."""
    at_positions: tuple[float, ...] = ()
    """Probability of the token at each greedy position; empty if there is only one."""
    greedy: tuple[int, ...] = ()
    """The greedy ids at these positions. They end with the first stop token."""
    least: float | None = None
    """The probability from which the probe passes; None if the token must be the most probable one.
    `thresholds.probability` does not apply to a probe with a limit of its own."""
    encodable: bool = True
    """False if the prompt, encoded as text, has the token's id nowhere; only known for probes of
    several positions."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The model's greedy answer to one prompt, compared as text: a spelling or a length."""

    expected: str
    """The right answer."""
    text: str
    """The answer up to its first line's end, without a stop token."""
    passed: bool
    """Whether it is right by the rule of the probe."""
    decided_in: str
    """The dtype in which the answer was generated."""
    intact: bool = True
    """False if encoding the prompt as text would give other ids in place of the token's."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The verdict on one token."""

    token: Token
    probes: Mapping[str, ProbeResult]
    glitch: bool
    emitted: str | None
    """The kind of text that the model preferred, in the probe in which the token was most probable:
    prefix, case_space, whitespace or other; None if a probe passed."""
    emitted_text: str | None = None
    """The text that the model preferred; None if a probe passed."""
    answers: Mapping[str, Answered] = field(default_factory=dict)
    """Answers that were compared as text, by probe."""
    any_of: tuple[tuple[str, ...], ...] = ()
    """Groups of probes in which one failure is enough, as a protocol says. A glitch token fails
    every other probe."""

    @property
    def presented_intact(self) -> bool:
        """Whether every probe would keep the token's id when encoded as text."""
        found = [result.intact for result in self.probes.values()]
        return False not in found and all(one.intact for one in self.answers.values())

    @property
    def failed(self) -> bool:
        """Whether the token failed its probes: all of them, and one of each group in `any_of`.

        A token that failed is no glitch token if its probability exceeds the threshold.
        """
        if not self.answers and not self.any_of:  # nearly all facts
            return True not in [result.passed for result in self.probes.values()]
        return self.fails(1.0, by_probability=False)

    def fails(self, limit: float, *, by_probability: bool = True) -> bool:
        """Whether the token failed its probes with probabilities below `limit`.

        Args:
            limit: `thresholds.probability`. Answers compared as text have no probability.
            by_probability: Whether the limit counts.
        """
        failed = {name: not one.passed for name, one in self.answers.items()}
        for name, result in self.probes.items():
            limited = by_probability and result.least is None
            failed[name] = not result.passed and (not limited or result.p < limit)
        grouped = {name for group in self.any_of for name in group}
        return all(failed[name] for name in failed if name not in grouped) and all(
            any(failed.get(name, False) for name in group) for group in self.any_of
        )

    @property
    def p(self) -> float:
        """The largest probability over the probes, which decides severity; NaN if one is NaN.

        Rounded like the floats in tokens.jsonl, so that counts from that file agree. NaN as well if
        every answer was compared as text.
        """
        found = [result.p for result in self.probes.values()] or [math.nan]
        return math.nan if any(map(math.isnan, found)) else float(f"{max(found):.{DIGITS}g}")

    @property
    def flagged(self) -> bool:
        """Whether the step found the token: it is a glitch token."""
        return self.glitch

    @property
    def severe(self) -> bool:
        """Whether the token is a glitch token with a probability below `SEVERE` in every probe that
        asks for the token itself."""
        return self.glitch and self.p < SEVERE


@dataclass(frozen=True, slots=True)
class Attempt:
    """The continuation of one probe in one attempt on a token."""

    probe: str
    number: int
    """Number of the attempt, from 0; it selects the random numbers."""
    said: bool
    """Whether the continuation contains the token. The attempt ends there, with this probe."""
    text: str
    """The continuation up to its end or to the token, without the stop token that ended it."""
    ids: tuple[int, ...]
    """The sampled ids, with the stop token."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sampled attempts on one token. `outcomes[i]` is True if attempt i failed."""

    token: Token
    outcomes: tuple[bool, ...]
    asr: float
    """Attack success rate: the share of failed attempts."""
    asr_low: float
    asr_high: float
    """Upper bound of Wilson's 95 % interval of the ASR; `asr_low` is the lower one."""
    confirmed: bool
    """Whether the attempts confirm that the token is a glitch token."""
    intact: bool = True
    """False if encoding the prompt as text would give other ids in place of the token's."""
    continuations: tuple[Attempt, ...] = ()
    """Every continuation, by probe and then by number. Attempt i has one for each probe up to the
    first that said the token. Empty in records of earlier versions."""

    @property
    def attempts(self) -> int:
        """Number of attempts."""
        return len(self.outcomes)

    @property
    def failures(self) -> int:
        """Number of failed attempts."""
        return sum(self.outcomes)

    @property
    def flagged(self) -> bool:
        """Whether the step found the token: it is confirmed."""
        return self.confirmed


TokenFact = Verified | Sampled


@dataclass(frozen=True, slots=True)
class Control:
    """An ordinary token that was tested like a found one, to measure the rate of false alarms.

    It counts only as a control, never among the verified, found or confirmed tokens.
    """

    of: int
    """Id of the found token that it matches in script, length and frequency."""
    alike: bool
    """Whether it has the same script and also begins, or does not begin, with a space."""
    fact: TokenFact
    elsewhere: bool = False
    """Whether it was drawn from scripts outside those in which most controls raise an alarm."""

    @property
    def token(self) -> Token:
        """The ordinary token."""
        return self.fact.token

    @property
    def alarm(self) -> bool:
        """Whether the step finds or confirms the ordinary token as a glitch token."""
        return self.fact.flagged


@dataclass(frozen=True, slots=True)
class Screened:
    """Screening scores of N tokens, by columns. They only order the tokens for verification."""

    token_ids: tuple[int, ...]
    log_p: tuple[float, ...]
    """Approximate log-probability of each token, in nats."""
    gap: tuple[float, ...]
    """Approximate difference between the largest logit and each token's own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of one of the step's own tables, for facts that are not about one token.

    The strategy's fragment declares the table and its columns under `x-tables`.
    """

    table: str
    """Name of the table."""
    cells: Mapping[str, Any]
    """Value by column; every row has all columns, None is an empty cell. JSON-ready."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts that are written to the ledger together. A killed run loses at most one batch."""

    facts: tuple[TokenFact | Control | Screened | Entry, ...]
    done: int
    """Items of the batch's stage that are finished, including this batch. A stage may come again,
    such as the front of a cascade after an audit; its count then continues."""
    total: int | None
    """Items of the stage, at least `done`; None if not known in advance."""
    seconds: float = 0.0
    """Time for the items of this batch."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Counters of this batch, summed over the step: forwards, rechecked, ..."""
    search_seconds: float = 0.0
    """Seconds for choosing the items, such as gradients and screens; not part of `seconds`."""
    stage: str = ""
    """Name of the stage; empty in records of earlier versions, where `done` and `total` count the
    items of the whole step."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By probe, the texts before and after the token in the whole prompt, special tokens included.
    Only in the first batch of a stage."""

    @property
    def token_facts(self) -> tuple[TokenFact, ...]:
        """The facts about the step's tokens."""
        return tuple(fact for fact in self.facts if isinstance(fact, TokenFact))

    @property
    def samples(self) -> tuple[Sampled, ...]:
        """The samples of the step's tokens and of controls."""
        facts = (fact.fact if isinstance(fact, Control) else fact for fact in self.facts)
        return tuple(fact for fact in facts if isinstance(fact, Sampled))

    @property
    def controls(self) -> tuple[Control, ...]:
        """The controls from the same scripts as the tokens."""
        return tuple(f for f in self.facts if isinstance(f, Control) and not f.elsewhere)

    @property
    def controls_elsewhere(self) -> tuple[Control, ...]:
        """The additional controls from other scripts."""
        return tuple(f for f in self.facts if isinstance(f, Control) and f.elsewhere)

    @property
    def is_of_controls(self) -> bool:
        """Whether the batch contains controls; glitch tokens among them are no findings."""
        return any(isinstance(fact, Control) for fact in self.facts)

    @property
    def screened(self) -> tuple[Screened, ...]:
        """The screening scores."""
        return tuple(fact for fact in self.facts if isinstance(fact, Screened))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The rows of the step's tables."""
        return tuple(fact for fact in self.facts if isinstance(fact, Entry))


@dataclass(frozen=True, slots=True)
class Stage:
    """Announces a stage of a step: what it counts, and how many there are."""

    name: str
    """Such as screen, verification, front, audit, sampling or controls."""
    total: int | None
    """Items of the stage; None if not known in advance."""
    unit: str = "tokens"
    """Name of the counted items, in the plural; empty if nothing is counted."""
    most: int | None = None
    """Upper bound of the items if `total` is None; None if no bound is known either."""
    work: str = ""
    """Counter of the batches whose rate is more informative than that of the items, such as
    `continuations`; empty for the items' rate."""
    ahead: float = 0.0
    """Items whose work is done although they are not finished; only the time left counts them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A final metric of a step. `name` is without the step's id; `n` is the number of items it is
    based on."""

    name: str
    value: float | None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A text file of a step. `path` is relative to the run's artifacts."""

    path: str
    text: str


Event = Batch | Measured | Artifact
