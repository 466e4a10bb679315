"""Behavioural tests, and the judgements of their indicators on answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an answer shows a behaviour. `found` is None if that is undecided."""

    found: bool | None
    reason: str
    """What the indicator found, as a phrase."""


Indicator = Callable[..., Judgement]
"""From question, answer and token text (and the test's own parameters) to a judgement."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with a place for the token."""

    name: str
    user: str
    """Contains `{token}` exactly once."""


@dataclass(frozen=True, slots=True)
class BehaviourTest:
    """One behavioural class: an indicator on the answers to a question."""

    name: str
    question: str
    indicator: Indicator
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scenario: str = "basic"
    """The setting of the question, if the test has several."""

    def judge(self, question: str, answer: str, token: str) -> Judgement:
        """The judgement on one answer. `question` contains the token's text, not `{token}`."""
        return self.indicator(question, answer, token, **self.parameters)


def clear(reason: str = "") -> Judgement:
    """The answer does not show the behaviour."""
    return Judgement(False, reason)


def seen(reason: str) -> Judgement:
    """The answer shows the behaviour."""
    return Judgement(True, reason)


def undecided(reason: str) -> Judgement:
    """The indicator cannot judge the answer."""
    return Judgement(None, reason)
