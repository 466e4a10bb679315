"""Continuations as a tree: attempts that have drawn the same tokens so far share one text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from glitchrun.events import Token


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt on one token behind one probe."""

    token: Token
    number: int
    key: int
    """Of its random numbers."""


@dataclass(frozen=True, slots=True)
class Text:
    """A continuation so far, and the attempts that have drawn just these tokens."""

    token: Token
    ids: tuple[int, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A text and the row of the last pass that it goes on from."""

    row: int
    text: Text


def beginnings(attempts: Iterable[Attempt]) -> list[Text]:
    """One empty text for each token, in the order in which they come."""
    by_token: dict[Token, list[Attempt]] = {}
    for attempt in attempts:
        by_token.setdefault(attempt.token, []).append(attempt)
    return [Text(token, (), tuple(some)) for token, some in by_token.items()]


def branches(
    texts: Sequence[Text], draws: Iterable[tuple[int, Attempt]], chosen: Iterable[int]
) -> list[Branch]:
    """What the texts become: one branch for each row and token chosen there, ordered by row.

    Args:
        texts: The rows.
        draws: The attempts, each with its row.
        chosen: The token that each of them chose.
    """
    groups: dict[tuple[int, int], list[Attempt]] = {}
    for (row, attempt), token_id in zip(draws, chosen, strict=True):
        groups.setdefault((row, token_id), []).append(attempt)
    return [
        Branch(row, Text(texts[row].token, (*texts[row].ids, token_id), tuple(some)))
        for (row, token_id), some in groups.items()
    ]


def packs(found: Sequence[Branch], most: int) -> Iterator[list[Branch]]:
    """Branches in packs of at most `most` attempts: however they part, each finds a row."""
    pack: list[Branch] = []
    room = most
    for branch in found:
        rest = branch.text.attempts
        while rest:
            some, rest = rest[:room], rest[room:]
            pack.append(Branch(branch.row, Text(branch.text.token, branch.text.ids, some)))
            room -= len(some)
            if room == 0:
                yield pack
                pack, room = [], most
    if pack:
        yield pack


@dataclass(frozen=True)
class Ending:
    """Where a continuation ends, and whether it holds its token by then."""

    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    stop_text: str | None = None
    match: str = "either"
    """What says a token: its `id`, its `text`, or `either`."""

    def of(self, text: Text) -> tuple[bool, bool]:
        """Whether a text is at its end, and whether it says its token; call it at every token."""
        newest = text.ids[-1]
        answer = self.decode(text.ids)
        stop = ""
        if self.stop_text:
            answer, stop, _ = answer.partition(self.stop_text)
        said_it = (self.match != "text" and newest == text.token.id) or (
            self.match != "id" and _holds(answer, text.token.text)
        )
        return said_it or bool(stop) or newest in self.stop_ids, said_it


def _holds(answer: str, text: str) -> bool:
    """Whether an answer holds a token's text, white space around it aside."""
    # Half a character decodes to U+FFFD, which proves nothing. A token of nothing but white space
    # is looked for as it is.
    wanted = text.strip() or text
    return bool(wanted) and "\ufffd" not in wanted and wanted in answer
