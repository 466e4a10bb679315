"""One row for each token of a run: its verdict and its samples together, as people read them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import TypeVar

from glitchrun.events import Control, ProbeResult, Sampled, Token, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.vocabulary.character_groups import READABLE, kind_of
from glitchrun.vocabulary.text import visible_token

_Record = TypeVar("_Record")
_Result = TypeVar("_Result")
_LAST = 8
"""Results kept by function: the steps of one run, seldom more."""


def remembered(function: Callable[[_Record], _Result]) -> Callable[[_Record], _Result]:
    """The function, which computes nothing for an object that is among the last ones it was given.

    Records are frozen, but cannot be hashed. They are compared by identity. Callers must not change
    the result.
    """
    last: deque[tuple[_Record, _Result]] = deque(maxlen=_LAST)

    @wraps(function)
    def wrapper(record: _Record) -> _Result:
        for known, result in tuple(last):
            if known is record:
                return result
        result = function(record)
        last.append((record, result))
        return result

    return wrapper


VERDICTS = {
    "confirmed": "sampled; its ASR is at least thresholds.asr",
    "unconfirmed": "sampled; its ASR is below thresholds.asr",
    "glitch": "failed every probe, p below thresholds.probability; not sampled",
    "near miss": "failed every probe, but p not below thresholds.probability",
    "false alarm": "a control (an ordinary token) that was flagged or confirmed",
    "passed": "repeated by the model in at least one probe",
    "control": "a control (an ordinary token) that was not flagged",
}
"""Every verdict and its meaning, the most interesting first."""


@dataclass(frozen=True)  # no slots: cached properties need a dictionary
class TokenRow:
    """A token with the verdict of the step that verified it and the samples of the step that
    validated it."""

    token: Token
    steps: tuple[str, ...]
    verified: Verified | None = None
    sampled: Sampled | None = None
    control_of: int | None = None
    """Id of the token that this one is a control for; None if it is not a control."""

    @property
    def glitch(self) -> bool | None:
        """Whether a step found it; None for controls, which cannot be found."""
        return self.verified.glitch if self.verified and self.control_of is None else None

    @property
    def confirmed(self) -> bool | None:
        """Whether a step confirmed it; None for controls, which cannot be confirmed."""
        return self.sampled.confirmed if self.sampled and self.control_of is None else None

    @property
    def answer(self) -> str | None:
        """The text that the model gave instead; None if it repeated the token, or was not asked."""
        return self.verified.emitted_text if self.verified else None

    @cached_property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.control_of is not None:
            facts = (self.verified, self.sampled)
            return "false alarm" if any(fact and fact.flagged for fact in facts) else "control"
        if self.sampled:
            return "confirmed" if self.sampled.confirmed else "unconfirmed"
        if self.verified and self.verified.glitch:
            return "glitch"
        return "passed" if self.passed else "near miss"

    @property
    def passed(self) -> bool:
        """Whether any probe passed."""
        return self.verified is not None and not self.verified.failed

    @cached_property
    def closest(self) -> tuple[str, ProbeResult] | None:
        """Name and result of the probe with the highest probability, which decides the verdict."""
        if not self.verified or not self.verified.probes:
            return None
        if len(self.verified.probes) == 1:
            return next(iter(self.verified.probes.items()))
        return max(self.verified.probes.items(), key=lambda item: _comparable(item[1].p))

    @cached_property
    def p(self) -> float:
        """The probability that decides the verdict, -1 if it is NaN; 1 for an unverified token."""
        return _comparable(self.closest[1].p) if self.closest else 1.0

    @property
    def asr(self) -> float:
        """The share of failed attempts; 0 for a token that was not sampled."""
        return self.sampled.asr if self.sampled else 0.0

    @property
    def intact(self) -> bool:
        """Whether every prompt, encoded as text, keeps the token's id."""
        return (not self.verified or self.verified.presented_intact) and (
            not self.sampled or self.sampled.intact
        )

    @property
    def decided_in(self) -> str:
        """The dtypes in which the probes were decided."""
        results = self.verified.probes.values() if self.verified else ()
        dtypes = {result.decided_in for result in results}
        return dtypes.pop() if len(dtypes) == 1 else ", ".join(sorted(dtypes))


def controls_of(step: StepRecord) -> list[Control]:
    """The controls of a step, in the order in which they were drawn."""
    return [control for timed in step.batches for control in timed.batch.controls]


def controls_elsewhere(step: StepRecord) -> list[Control]:
    """The additional controls of a step, drawn from other scripts, in the order of drawing."""
    return [control for timed in step.batches for control in timed.batch.controls_elsewhere]


@remembered
def facts_by_token(step: StepRecord) -> dict[int, tuple[Verified | None, Sampled | None]]:
    """The last verdict and the last sampling of each token of a step, in order of appearance."""
    found: dict[int, tuple[Verified | None, Sampled | None]] = {}
    for timed in step.batches:
        for fact in timed.batch.token_facts:
            verified, sampled = found.get(fact.token.id, (None, None))
            if isinstance(fact, Verified):
                found[fact.token.id] = (fact, sampled)
            else:
                found[fact.token.id] = (verified, fact)
    return found


@remembered
def token_rows(record: RunRecord) -> list[TokenRow]:
    """One row for each step and verified token, in order of first appearance.

    A row includes the samples of the first step that validated the token. Samples without a
    verdict, samples of further validating steps, and controls are rows of their own.
    """
    rows: list[TokenRow] = []
    places: dict[int, list[int]] = {}
    for step in record.steps:
        for token_id, (verified, sampled) in facts_by_token(step).items():
            if verified:
                places.setdefault(token_id, []).append(len(rows))
                rows.append(TokenRow(verified.token, (step.id,), verified, sampled))
            elif sampled:
                _place_sample(rows, places.get(token_id, ()), step.id, sampled)
        rows += _control_rows(step)
    return rows


def _control_rows(step: StepRecord) -> Iterator[TokenRow]:
    """A row for each control that is not also one of the step's own tokens."""
    own = facts_by_token(step)
    for control in (*controls_of(step), *controls_elsewhere(step)):
        if control.token.id not in own:
            fact = control.fact
            verified = fact if isinstance(fact, Verified) else None
            sampled = fact if isinstance(fact, Sampled) else None
            yield TokenRow(control.token, (step.id,), verified, sampled, control.of)


def _place_sample(rows: list[TokenRow], places: Iterable[int], step: str, sampled: Sampled) -> None:
    waiting = [place for place in places if rows[place].sampled is None]
    for place in waiting:
        row = rows[place]
        rows[place] = replace(row, steps=(*row.steps, step), sampled=sampled)
    if not waiting:
        rows.append(TokenRow(sampled.token, (step,), None, sampled))


@remembered
def most_interesting_first(record: RunRecord) -> list[TokenRow]:
    """The rows of `token_rows` by verdict, in the order of `VERDICTS`, then by descending ASR and
    ascending p."""
    return _ordered(token_rows(record))


def _ordered(rows: Iterable[TokenRow]) -> list[TokenRow]:
    order = {verdict: place for place, verdict in enumerate(VERDICTS)}
    return sorted(
        rows, key=lambda row: (order[row.verdict], -row.asr, row.p if row.closest else 0.0)
    )


def found_tokens(rows: Iterable[TokenRow]) -> list[TokenRow]:
    """The tokens found, the most interesting first; each token once."""
    first: dict[int, TokenRow] = {}
    for row in _ordered(row for row in rows if row.verdict in ("confirmed", "glitch")):
        first.setdefault(row.token.id, row)
    return list(first.values())


def worst_first(found: Iterable[TokenRow]) -> list[TokenRow]:
    """Confirmed tokens by descending ASR, tied ones that are readable first, then the others by
    ascending probability."""

    def key(row: TokenRow) -> tuple[bool, float, bool, float, int]:
        tied = row.confirmed is True
        return not tied, -row.asr, tied and not is_readable(row.token), row.p, row.token.id

    return sorted(found, key=key)


def named_tokens(record: RunRecord, rows: Iterable[TokenRow]) -> list[TokenRow]:
    """The tokens of steps whose `tokens` are ids or texts, each once, whatever their verdict."""
    named = {
        step.id
        for step in record.steps
        if isinstance(tokens := step.params.get("tokens"), Mapping)
        and (tokens.get("ids") or tokens.get("texts"))
    }
    first: dict[int, TokenRow] = {}
    for row in rows:
        if row.control_of is None and named.intersection(row.steps):
            first.setdefault(row.token.id, row)
    return list(first.values())


def is_readable(token: Token) -> bool:
    """Whether the token contains a letter or a digit, and nothing that must be spelled out."""
    return kind_of(token.text, token.category) in READABLE and "⟨" not in visible_token(token)


def _comparable(p: float) -> float:
    return p if p == p else -1.0  # NaN, from logits that overflowed, does not compare
