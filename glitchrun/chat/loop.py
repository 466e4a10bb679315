"""Lines in, answers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from glitchrun.chat.commands import Leave, Remark, obey
from glitchrun.chat.session import Session
from glitchrun.errors import UsageError

_ENDINGS = {
    "length": "cut after {max_new_tokens} tokens; --max-new-tokens allows more",
    "context": "cut: the model's {positions} positions are used up; /reset begins a new one",
    "stopped": "stopped",
}


class Screen(Protocol):
    """Where the user reads."""

    def text(self, text: str) -> None:
        """A piece of an answer, as it comes."""

    def line(self, line: str) -> None:
        """A line of what a command shows; empty to end an answer."""

    def note(self, line: str) -> None:
        """A remark that is no part of what was asked for."""


def talk(
    session: Session, read: Callable[[], str | None], screen: Screen, *, forgiving: bool
) -> None:
    """Answers lines until there are no more (`read` gives None) or `/exit`.

    `forgiving`: a wrong command is remarked on, as for a person at a terminal; otherwise its
    UsageError ends the talk, as for a script.
    """
    while (line := read()) is not None:
        if not line.strip():
            continue
        try:
            _answer(session, line, screen)
        except Leave:
            return
        except UsageError as error:
            if not forgiving:
                raise
            screen.note(str(error))


def _answer(session: Session, line: str, screen: Screen) -> None:
    if line.startswith("/") and not line.startswith("//"):
        for shown in obey(session, line):
            (screen.note if isinstance(shown, Remark) else screen.line)(shown)
        return
    for piece in session.ask(line[1:] if line.startswith("//") else line):
        screen.text(piece)
    screen.line("")
    _remark(session, screen)


def _remark(session: Session, screen: Screen) -> None:
    """What was cut, and what a reader of the answer would not expect."""
    ending = _ENDINGS.get(session.turns[-1].ended)
    if ending:
        limit = session.settings.max_new_tokens
        screen.note(ending.format(max_new_tokens=limit, positions=session.positions))
    if len(session.turns) == 2 and session.rewritten:
        screen.note(
            "the model's chat template writes earlier turns differently as a conversation goes on; "
            "here they stay as they were said"
        )
