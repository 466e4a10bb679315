"""How far definitions of glitch tokens agree on the same tokens of a run.

A run may verify the same tokens by several probes or protocols. Each step is then a definition,
and so is each of its probes alone. Counts and Cohen's kappa are those of `comparison.pairs`, with
which `glitchrun compare` compares runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from glitchrun.behaviour.significance import Proportion, wilson
from glitchrun.events import SEVERE, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.comparison.pairs import Counts, Overlap
from glitchrun.report.formatting import MISSING, count, figure, percent
from glitchrun.report.token_rows import facts_by_token, remembered
from glitchrun.report.totals import is_shown
from glitchrun.spec.probes import PROTOCOLS


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition of glitch tokens, and the tokens that are some by it."""

    step: str
    name: str
    """`magikarp`, or a part of it: `repeats alone`, `magikarp, p < 0.001`."""
    whole: bool
    """Whether it is the verdict of the step, and not a part of it."""
    found: frozenset[int]
    n: int
    """Tokens that were verified."""

    @property
    def rate(self) -> Proportion:
        """The share of the tokens, with Wilson's 95 % interval."""
        return wilson(len(self.found), self.n)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two definitions, applied to the same tokens."""

    left: Definition
    right: Definition
    counts: Counts

    @property
    def overlap(self) -> Overlap:
        """The tokens of both, compared with two random sets of the same sizes."""
        both = self.counts.both
        sizes = len(self.left.found), len(self.right.found)
        return Overlap("found by both", *sizes, both, self.counts.n)


@remembered
def definitions(record: RunRecord) -> list[Definition]:
    """The definitions that the run applied to the same tokens; empty if it has only one.

    Steps that verify what another step found are left out: they agree by design.
    """
    same: dict[frozenset[int], list[tuple[StepRecord, list[Verified]]]] = {}
    for step in record.steps:
        facts = [verified for verified, _ in facts_by_token(step).values() if verified]
        same.setdefault(frozenset(fact.token.id for fact in facts), []).append((step, facts))
    groups = [steps for tokens, steps in same.items() if tokens and len(steps) > 1]
    if not groups:
        return []
    return [one for step, facts in max(groups, key=len) for one in _of_step(step, facts)]


def _of_step(step: StepRecord, facts: Sequence[Verified]) -> Iterator[Definition]:
    def by(name: str, fails: Callable[[Verified], bool], *, whole: bool = False) -> Definition:
        found = frozenset(fact.token.id for fact in facts if fails(fact))
        return Definition(step.id, name, whole, found, len(facts))

    named = step.params.get("probes")
    asked = [*dict.fromkeys(name for fact in facts for name in (*fact.probes, *fact.answers))]
    name = named if isinstance(named, str) else ", ".join(asked)
    yield by(name, lambda fact: fact.glitch, whole=True)
    if len(asked) > 1:
        for probe in asked:
            yield by(f"{probe} alone", lambda fact, probe=probe: _fails(fact, probe))  # type: ignore[misc]
    if facts[0].probes:
        yield by(f"{name}, p < {SEVERE:g}", lambda fact: fact.severe)


def _fails(fact: Verified, probe: str) -> bool:
    found = fact.probes.get(probe) or fact.answers.get(probe)
    return found is not None and not found.passed


def agreements(record: RunRecord) -> list[Agreement]:
    """Every two verdicts of steps that verified the same tokens."""
    whole = [one for one in definitions(record) if one.whole]
    return [Agreement(left, right, _counts(left, right)) for left, right in combinations(whole, 2)]


def _counts(left: Definition, right: Definition) -> Counts:
    both = len(left.found & right.found)
    only = len(left.found) - both, len(right.found) - both
    return Counts(both, *only, left.n - both - sum(only))


def agreement_tables(record: RunRecord) -> dict[str, Any]:
    """What the report shows: `definitions` and `agreements`, lists of rows of text."""
    return {
        "definitions": [
            {
                "step": one.step,
                "name": one.name,
                "source": PROTOCOLS[one.name].source if one.name in PROTOCOLS else "",
                "found": count(len(one.found)),
                "n": count(one.n),
                "share": percent(one.rate.value),
                "interval": f"{percent(one.rate.low)} to {percent(one.rate.high)}",
            }
            for one in definitions(record)
        ],
        "agreements": [_row(one) for one in agreements(record)],
    }


def _row(one: Agreement) -> dict[str, str]:
    counts, overlap = one.counts, one.overlap
    return {
        "pair": f"{one.left.name} and {one.right.name}",
        "both": count(counts.both),
        "only_left": count(counts.only_left),
        "only_right": count(counts.only_right),
        "neither": count(counts.neither),
        "by_chance": figure(overlap.expected),
        "reading": overlap.reading,
        "agreement": MISSING if counts.agreement is None else percent(counts.agreement),
        "kappa": MISSING if counts.kappa is None else f"{counts.kappa:.3f}",
    }


def agreement_json(record: RunRecord) -> dict[str, list[Mapping[str, Any]]]:
    """The definitions and their agreement as JSON-ready data."""
    return {
        "definitions": [
            {
                "step": one.step,
                "name": one.name,
                "glitch": len(one.found),
                "n": one.n,
                "low": round(one.rate.low, 7),
                "high": round(one.rate.high, 7),
            }
            for one in definitions(record)
        ],
        "agreements": [
            {
                "left": one.left.step,
                "right": one.right.step,
                "both": one.counts.both,
                "only_left": one.counts.only_left,
                "only_right": one.counts.only_right,
                "neither": one.counts.neither,
                "by_chance": round(one.overlap.expected, 7),
                "p_more": one.overlap.p_more,
                "kappa": one.counts.kappa,
            }
            for one in agreements(record)
        ],
    }


def spread(record: RunRecord) -> str:
    """The counts by each definition in a sentence; empty if the run has only one."""
    whole = [one for one in definitions(record) if one.whole]
    if not whole:
        return ""
    parts = [f"{len(one.found):,} by {one.name} ({percent(one.rate.value)})" for one in whole]
    return f"Of the same {whole[0].n:,} tokens, glitch tokens are {', '.join(parts)}."


def spread_unit(record: RunRecord) -> tuple[int, str] | None:
    """The number of definitions, and what they find; None if the run has only one."""
    found = [len(one.found) for one in definitions(record) if one.whole]
    if not found:
        return None
    low, high, n = min(found), max(found), definitions(record)[0].n
    between = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return len(found), f"definitions find {between} glitch tokens among the same {n:,} tokens"


@dataclass(frozen=True, slots=True)
class Shown:
    """The tokens that fail in chat and were then shown to the model in examples."""

    in_chat: int
    """Glitch tokens by probes in the chat format."""
    even_shown: int
    """Those that are glitch tokens by probes that show the token as well."""

    @property
    def unit(self) -> str:
        """What the number `in_chat` counts, with the other number."""
        return f"tokens fail in chat, {self.even_shown:,} of them even when shown"

    @property
    def sentence(self) -> str:
        """Both counts, with Wilson's 95 % interval of their ratio."""
        rate = wilson(self.even_shown, self.in_chat)
        return (
            f"{self.in_chat:,} tokens fail in chat, and {self.even_shown:,} of them "
            f"({percent(rate.value)}, 95 % CI {percent(rate.low)} to {percent(rate.high)}) fail "
            "even when shown: few-shot examples that contain the token do not help."
        )


@remembered
def shown(record: RunRecord) -> Shown | None:
    """How many tokens fail in chat, and how many even when shown; None unless both were tried."""
    chat: dict[int, bool] = {}
    few_shot: dict[int, bool] = {}
    for step in record.steps:
        for token_id, (verified, _) in facts_by_token(step).items():
            if verified:
                found = few_shot if is_shown(record, verified) else chat
                found[token_id] = verified.glitch
    both = [token_id for token_id in few_shot if chat.get(token_id)]
    if not both or definitions(record):
        return None
    return Shown(len(both), sum(few_shot[token_id] for token_id in both))
