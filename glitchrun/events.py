"""The facts that travel from strategies to the ledger, and from there to MLflow and the report.

A strategy yields `Batch` (verdicts, samples and entries that become durable together) and, at its
end, `Measured` and `Artifact`. Everything is plain data that survives JSON unchanged, so that a run
read back from its ledger is the run that was written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

DIGITS = 7
"""Significant digits of the floats in tokens.jsonl: what float32 holds."""
SEVERE = 1e-3
"""A glitch token is severe when its probability lies below this in every probe. On
SmolLM2-135M-Instruct 27 % of the vocabulary fails its probe, most of it by naming a piece of the
right text first, and 0.75 % is severe."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a vocabulary entry without running the model."""

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
    """What the model made of one prompt that asks for one token back."""

    p: float
    """Probability of the token at the position where it is asked for."""
    rank: int
    """Rank of the token there, from 1."""
    entropy: float
    """Entropy of the next-token distribution, in nats."""
    argmax: int
    gap: float
    """Largest logit minus the token's own; 0 where the token is the most likely one."""
    passed: bool
    decided_in: str
    """The dtype whose arithmetic settled the verdict."""
    intact: bool = True
    """False when encoding the whole prompt as text would not keep the token's id."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The verdict on one token."""

    token: Token
    probes: Mapping[str, ProbeResult]
    glitch: bool
    emitted: str | None
    """What came instead: prefix, case_space, whitespace or other; None when a probe passed. Of the
    probe in which the token was most probable."""
    emitted_text: str | None = None
    """The text that came instead; None when a probe passed."""

    @property
    def presented_intact(self) -> bool:
        return all(result.intact for result in self.probes.values())

    @property
    def failed(self) -> bool:
        """Whether no probe passed: a glitch token, or a near miss."""
        return not any(result.passed for result in self.probes.values())

    @property
    def p(self) -> float:
        """Largest probability over the probes, by which a failure is severe; NaN where one is.

        To the digits that tokens.jsonl has, so that what is counted here can be counted there.
        """
        found = [result.p for result in self.probes.values()]
        return math.nan if any(map(math.isnan, found)) else float(f"{max(found):.{DIGITS}g}")

    @property
    def flagged(self) -> bool:
        """Whether the step found it."""
        return self.glitch

    @property
    def severe(self) -> bool:
        """Whether it is a glitch token with a probability below `SEVERE` in every probe."""
        return self.glitch and self.p < SEVERE


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sampled attempts on one token. `outcomes[i]` is True where attempt i failed."""

    token: Token
    outcomes: tuple[bool, ...]
    asr: float
    asr_low: float
    asr_high: float
    """Bounds of Wilson's 95 % interval."""
    confirmed: bool
    intact: bool = True

    @property
    def attempts(self) -> int:
        return len(self.outcomes)

    @property
    def failures(self) -> int:
        return sum(self.outcomes)

    @property
    def flagged(self) -> bool:
        """Whether the step confirmed it."""
        return self.confirmed


TokenFact = Verified | Sampled


@dataclass(frozen=True, slots=True)
class Control:
    """An ordinary token that was treated like one found, to see how often that raises an alarm.

    It counts among the controls alone, never among the tokens verified, found or confirmed.
    """

    of: int
    """The token that it is like in script, length and frequency."""
    alike: bool
    """Whether it has that token's script and a space in front as it has."""
    fact: TokenFact
    elsewhere: bool = False
    """Whether it was drawn outside the scripts in which most controls raise an alarm."""

    @property
    def token(self) -> Token:
        return self.fact.token

    @property
    def alarm(self) -> bool:
        """Whether the step takes the ordinary token for a glitch token, or confirms it."""
        return self.fact.flagged


@dataclass(frozen=True, slots=True)
class Screened:
    """What a screen made of N tokens, by columns: it only says where to look first."""

    token_ids: tuple[int, ...]
    log_p: tuple[float, ...]
    """Approximate log-probability of each, in nats."""
    gap: tuple[float, ...]
    """Approximate distance of each from the largest logit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of one of the step's own tables: a fact about something other than one token.

    The strategy's fragment declares the table and its columns under `x-tables`.
    """

    table: str
    cells: Mapping[str, Any]
    """By column, the same ones in every row, None where there is nothing; JSON-ready."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts that become durable together: the most that a killed run can lose."""

    facts: tuple[TokenFact | Control | Screened | Entry, ...]
    done: int
    """Items finished in this step, this batch included."""
    total: int | None
    """Items the step will look at; None where that is not known beforehand."""
    seconds: float = 0.0
    counters: Mapping[str, int] = field(default_factory=dict)
    """Work and oddities of this batch, added up over the step: forwards, rechecked, ..."""
    search_seconds: float = 0.0
    """What choosing the items took: gradients, screens, models fitted. Not part of `seconds`."""

    @property
    def token_facts(self) -> tuple[TokenFact, ...]:
        """The facts about the tokens that the step is to look at."""
        return tuple(fact for fact in self.facts if isinstance(fact, TokenFact))

    @property
    def controls(self) -> tuple[Control, ...]:
        """The facts about controls that these are compared with, from the same script."""
        return tuple(f for f in self.facts if isinstance(f, Control) and not f.elsewhere)

    @property
    def controls_elsewhere(self) -> tuple[Control, ...]:
        """The facts about additional control tokens, drawn from other scripts."""
        return tuple(f for f in self.facts if isinstance(f, Control) and f.elsewhere)

    @property
    def is_of_controls(self) -> bool:
        """Whether it contains controls of either kind; glitch tokens among them do not count."""
        return any(isinstance(fact, Control) for fact in self.facts)

    @property
    def screened(self) -> tuple[Screened, ...]:
        """The scores that say where to look first."""
        return tuple(fact for fact in self.facts if isinstance(fact, Screened))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The rows of tables."""
        return tuple(fact for fact in self.facts if isinstance(fact, Entry))


@dataclass(frozen=True, slots=True)
class Measured:
    """A number that a step ends with. `name` is without the step's id; `n` is what it rests on."""

    name: str
    value: float | None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a step leaves behind, as text."""

    path: str
    text: str


Event = Batch | Measured | Artifact


def batch_to_json(batch: Batch) -> dict[str, Any]:
    """A batch as JSON-ready data; `batch_from_json` is the way back."""
    return {
        "facts": [_fact_to_json(fact) for fact in batch.facts],
        "done": batch.done,
        "total": batch.total,
        "seconds": batch.seconds,
        "counters": dict(batch.counters),
        "search_seconds": batch.search_seconds,
    }


def batch_from_json(data: Mapping[str, Any]) -> Batch:
    """The batch that `batch_to_json` wrote."""
    return Batch(
        facts=tuple(_fact_from_json(fact) for fact in data["facts"]),
        done=data["done"],
        total=data["total"],
        seconds=data["seconds"],
        counters=data["counters"],
        search_seconds=data.get("search_seconds", 0.0),
    )


def _fact_to_json(fact: TokenFact | Control | Screened | Entry) -> dict[str, Any]:
    data = {"kind": type(fact).__name__.lower(), **asdict(fact)}
    if isinstance(fact, Control):
        data["fact"] = _fact_to_json(fact.fact)
        if not fact.elsewhere:
            del data["elsewhere"]
    return data


def _fact_from_json(data: Mapping[str, Any]) -> TokenFact | Control | Screened | Entry:
    match data["kind"]:
        case "entry":
            return Entry(data["table"], data["cells"])
        case "screened":
            columns = ("token_ids", "log_p", "gap")
            return Screened(*(tuple(data[name]) for name in columns))
        case "control":
            elsewhere = data.get("elsewhere", False)
            return Control(data["of"], data["alike"], _token_fact(data["fact"]), elsewhere)
        case _:
            return _token_fact(data)


def _token_fact(data: Mapping[str, Any]) -> TokenFact:
    fields = {key: value for key, value in data.items() if key != "kind"}
    match data["kind"]:
        case "verified":
            probes = {name: ProbeResult(**r) for name, r in fields.pop("probes").items()}
            return Verified(token=Token(**fields.pop("token")), probes=probes, **fields)
        case "sampled":
            outcomes = tuple(fields.pop("outcomes"))
            return Sampled(token=Token(**fields.pop("token")), outcomes=outcomes, **fields)
        case kind:
            raise ValueError(f"no kind of fact: {kind!r}")
