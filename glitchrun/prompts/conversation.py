"""A conversation written as text in a family's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glitchrun.spec.probes import Exchange
from glitchrun.spec.templates import Family


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is said before the answer that is looked at."""

    user: str
    earlier: Sequence[Exchange] = ()
    system: str | None = None
    """None for none; an empty text is a system turn that says nothing."""


def write(family: Family, conversation: Conversation) -> str:
    """The conversation as text, up to where the answer begins; without BOS.

    A system text is left out where the family carries none: the caller has asked before.
    """
    system = conversation.system
    if system is None:
        system = family.default_system
    texts = [turn.user for turn in conversation.earlier] + [conversation.user]
    parts = [family.opening]
    if system is not None and family.system is not None:
        parts.append(_fill(family.system, "{system}", system))
    elif system is not None and family.system_in_user is not None:
        texts[0] = _wrap(family.system_in_user, system, texts[0])
    for text, turn in zip(texts, conversation.earlier, strict=False):
        parts.append(_fill(family.user, "{user}", text))
        parts.append(_fill(family.answer, "{answer}", turn.answer))
    parts.append(_fill(family.user, "{user}", texts[-1]))
    return "".join(parts)


def write_next(family: Family, user: str, *, closed: bool) -> str:
    """What stands between an answer and the next one: its close, and the next user turn.

    `closed`: the answer has said the family's closing text itself.
    """
    closing = family.answer.partition("{answer}")[2]
    if closed and family.stop:
        closing = closing.partition(family.stop)[2]
    return closing + _fill(family.user, "{user}", user)


def _fill(pattern: str, name: str, text: str) -> str:
    """Not `str.format`: braces in the texts stay what they are."""
    before, _, after = pattern.partition(name)
    return f"{before}{text}{after}"


def _wrap(pattern: str, system: str, user: str) -> str:
    before, _, after = pattern.partition("{user}")
    return _fill(before, "{system}", system) + user + after
