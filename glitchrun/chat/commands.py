"""What a line that begins with `/` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from glitchrun.chat.session import Session
from glitchrun.errors import UsageError
from glitchrun.prompts.tokenizer import decode_inside
from glitchrun.vocabulary.text import visible

_ROWS = 10
"""Rows of the next-token table where none are asked for."""


class Leave(Exception):
    """The user wants to go."""


class Remark(str):
    """A line that is no part of what was asked for."""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to do, and the line that `/help` shows for it."""

    usage: str
    summary: str
    run: Callable[[Session, str], Iterator[str]]
    """From the session and the rest of the line to lines for the user."""


def obey(session: Session, line: str) -> Iterator[str]:
    """Carries out one line `/NAME REST`; yields what is to be shown.

    Raises UsageError for an unknown command or a wrong argument, and Leave.
    """
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"there is no /{name}; /help lists what there is")
    return COMMANDS[name].run(session, rest.strip())


def _help(session: Session, rest: str) -> Iterator[str]:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        yield f"{command.usage:<{width}}  {command.summary}"
    yield "A text may name a token by its id: <#31415>. One that begins with / is written //."
    yield "Ctrl-C ends an answer; twice, it leaves. Ctrl-D leaves."


def _ids(session: Session, rest: str) -> Iterator[str]:
    if not session.turns:
        raise UsageError("nothing has been said yet")
    turn = session.turns[-1]
    for name, ids in (("asked", turn.asked_ids), ("answered", turn.answer_ids)):
        yield f"{name}  {len(ids)} ids"
        yield from _pieces(session, ids)


def _pieces(session: Session, ids: Sequence[int]) -> Iterator[str]:
    for token_id, text in zip(ids, decode_inside(session.tokenizer, ids), strict=True):
        yield f"{token_id:>8}  {visible(text)}"


def _next(session: Session, rest: str) -> Iterator[str]:
    count, _, text = rest.partition(" ")
    if count.isdecimal():
        k, text = int(count), text.strip()
    else:
        k, text = _ROWS, rest
    if k < 1:
        raise UsageError("/next takes a number of rows from 1")
    rows = session.next_tokens(k, text or None)
    texts = decode_inside(session.tokenizer, [row.token_id for row in rows])
    yield "rank        id  probability  token"
    for row, shown in zip(rows, texts, strict=True):
        yield f"{row.rank:>4}  {row.token_id:>8}  {row.p:>11.6f}  {visible(shown)}"


def _system(session: Session, rest: str) -> Iterator[str]:
    if rest:
        session.begin_with(None if rest == "-" else rest)
        yield Remark("a new conversation begins")
    else:
        yield "no system text" if session.system is None else session.system


def _history(session: Session, rest: str) -> Iterator[str]:
    for turn in session.turns:
        yield f"user: {turn.user}"
        cut = "" if turn.ended == "end" else f" [{turn.ended}]"
        yield f"assistant: {turn.answer}{cut}"


def _reset(session: Session, rest: str) -> Iterator[str]:
    session.reset()
    yield Remark("a new conversation begins")


def _exit(session: Session, rest: str) -> Iterator[str]:
    raise Leave


COMMANDS: Mapping[str, Command] = {
    "ids": Command("/ids", "the token ids of the last turn", _ids),
    "next": Command(
        "/next [K] [TEXT]", "the K likeliest next tokens, here or after asking TEXT", _next
    ),
    "system": Command(
        "/system [TEXT]", "the system text, or begin anew with TEXT (- for none)", _system
    ),
    "history": Command("/history", "what has been said", _history),
    "reset": Command("/reset", "begin anew, and free the memory of what was said", _reset),
    "help": Command("/help", "this", _help),
    "exit": Command("/exit", "leave", _exit),
}
