"""The loop of `glitchrun chat`: answers lines of text, and executes lines that begin with `/`.
`cli/chat.py` calls `run_chat`, and provides the reader and the display."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from glitchrun.chat.conversation import ChatSession
from glitchrun.errors import UsageError
from glitchrun.prompts.tokenizer import decode_inside
from glitchrun.vocabulary.text import visible

_ENDINGS = {
    "length": "cut after {max_new_tokens} tokens; --max-new-tokens allows more",
    "context": "cut: the model's {positions} positions are used up; /reset starts a new "
    "conversation",
    "stopped": "stopped",
}
_DEFAULT_ROWS = 10
"""Rows of the next-token table if no number is given."""


class ChatOutput(Protocol):
    """The display of a conversation."""

    def text(self, text: str) -> None:
        """Shows a piece of an answer as it arrives."""

    def line(self, line: str) -> None:
        """Shows a line of a command's output; an empty one ends an answer."""

    def note(self, line: str) -> None:
        """Shows a remark that is not part of the output."""


def run_chat(
    session: ChatSession, read: Callable[[], str | None], output: ChatOutput, *, interactive: bool
) -> None:
    """Answers lines until `read` returns None or `/exit` is read.

    Args:
        session: The conversation.
        read: Returns the next line.
        output: Where answers, lines of commands and notes go.
        interactive: Whether a wrong command is only noted, as for a person at a terminal.

    Raises:
        UsageError: A command is wrong, and `interactive` is false.
    """
    while (line := read()) is not None:
        if not line.strip():
            continue
        try:
            _answer(session, line, output)
        except _ExitChat:
            return
        except UsageError as error:
            if not interactive:
                raise
            output.note(str(error))


def _answer(session: ChatSession, line: str, output: ChatOutput) -> None:
    if line.startswith("/") and not line.startswith("//"):
        for shown in _run_command(session, line):
            (output.note if isinstance(shown, _Note) else output.line)(shown)
        return
    for piece in session.ask(line[1:] if line.startswith("//") else line):
        output.text(piece)
    output.line("")
    _note_ending(session, output)


def _note_ending(session: ChatSession, output: ChatOutput) -> None:
    """Notes what cut the answer, and what its reader would not expect."""
    ending = _ENDINGS.get(session.turns[-1].ended)
    if ending:
        limit = session.settings.max_new_tokens
        output.note(ending.format(max_new_tokens=limit, positions=session.positions))
    if len(session.turns) == 2 and session.rewritten:
        output.note(
            "the model's chat template rewrites earlier turns as a conversation grows; here they "
            "stay as they were"
        )


# Commands -------------------------------------------------------------------------------------


class _ExitChat(Exception):
    """The user entered /exit."""


class _Note(str):
    """A line that is not part of a command's output."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and the line that `/help` shows for it."""

    usage: str
    summary: str
    run: Callable[[ChatSession, str], Iterator[str]]
    """From the session and the rest of the line to lines of output."""


def _run_command(session: ChatSession, line: str) -> Iterator[str]:
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"there is no /{name}; /help lists the commands")
    return COMMANDS[name].run(session, rest.strip())


def _help(session: ChatSession, rest: str) -> Iterator[str]:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        yield f"{command.usage:<{width}}  {command.summary}"
    yield "A text may name a token by its id: <#31415>. To begin a text with /, write //."
    yield "Ctrl-C ends an answer; twice, it leaves. Ctrl-D leaves."


def _ids(session: ChatSession, rest: str) -> Iterator[str]:
    if not session.turns:
        raise UsageError("nothing has been said yet")
    turn = session.turns[-1]
    for name, ids in (("asked", turn.asked_ids), ("answered", turn.answer_ids)):
        yield f"{name}  {len(ids)} ids"
        yield from _id_lines(session, ids)


def _id_lines(session: ChatSession, ids: Sequence[int]) -> Iterator[str]:
    for token_id, text in zip(ids, decode_inside(session.tokenizer, ids), strict=True):
        yield f"{token_id:>8}  {visible(text)}"


def _next(session: ChatSession, rest: str) -> Iterator[str]:
    count, _, text = rest.partition(" ")
    if count.isdecimal():
        k, text = int(count), text.strip()
    else:
        k, text = _DEFAULT_ROWS, rest
    if k < 1:
        raise UsageError("/next takes a number of rows, at least 1")
    rows = session.next_tokens(k, text or None)
    texts = decode_inside(session.tokenizer, [row.token_id for row in rows])
    yield "rank        id  probability  token"
    for row, shown in zip(rows, texts, strict=True):
        yield f"{row.rank:>4}  {row.token_id:>8}  {row.p:>11.6f}  {visible(shown)}"


def _system(session: ChatSession, rest: str) -> Iterator[str]:
    if rest:
        session.set_system(None if rest == "-" else rest)
        yield _Note("a new conversation begins")
    else:
        yield "no system text" if session.system is None else session.system


def _history(session: ChatSession, rest: str) -> Iterator[str]:
    for turn in session.turns:
        yield f"user: {turn.user}"
        cut = "" if turn.ended == "end" else f" [{turn.ended}]"
        yield f"assistant: {turn.answer}{cut}"


def _reset(session: ChatSession, rest: str) -> Iterator[str]:
    session.reset()
    yield _Note("a new conversation begins")


def _exit(session: ChatSession, rest: str) -> Iterator[str]:
    raise _ExitChat


COMMANDS: Mapping[str, Command] = {
    "ids": Command("/ids", "show the token ids of the last turn", _ids),
    "next": Command(
        "/next [K] [TEXT]", "show the K most likely next tokens, here or after TEXT", _next
    ),
    "system": Command(
        "/system [TEXT]", "show the system text, or start anew with TEXT (- for none)", _system
    ),
    "history": Command("/history", "show the conversation", _history),
    "reset": Command("/reset", "start a new conversation, and free the memory of this one", _reset),
    "help": Command("/help", "show this list", _help),
    "exit": Command("/exit", "leave", _exit),
}
