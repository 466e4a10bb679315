"""What an indicator says about an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an answer shows a behaviour. `found` is None where that cannot be told."""

    found: bool | None
    reason: str
    """What was seen, as a phrase."""


Indicator = Callable[..., Judgement]
"""From question, answer and token text (and the test's own parameters) to a judgement."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with a place for the token."""

    name: str
    user: str
    """Holds `{token}` exactly once."""


@dataclass(frozen=True, slots=True)
class BehaviourTest:
    """One behavioural class: an indicator on the answers to a question."""

    name: str
    question: str
    indicator: Indicator
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scenario: str = "basic"
    """The setting in which it asks, where it has several."""

    def judge(self, question: str, answer: str, token: str) -> Judgement:
        """The judgement on one answer. `question` has the token's text in its place."""
        return self.indicator(question, answer, token, **self.parameters)


def clear(reason: str = "") -> Judgement:
    return Judgement(False, reason)


def seen(reason: str) -> Judgement:
    return Judgement(True, reason)


def undecided(reason: str) -> Judgement:
    return Judgement(None, reason)
