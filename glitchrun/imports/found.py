"""What a result file says, token by token, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

VERDICTS = {
    "confirmed": "sampled, and called a glitch token by its attempts",
    "unconfirmed": "sampled, and not called one",
    "glitch": "called a glitch token, not sampled",
    "passed": "looked at, and not called one",
    "filtered": "probed, but kept from a verdict by a filter of the tool",
    "listed": "named without a verdict",
}
"""Every verdict that a file can give, and what it says."""


@dataclass(frozen=True, slots=True)
class Found:
    """One token as a file names it. What the file does not say is None."""

    id: int
    place: str
    """Where in the file: `results[3]`, `line 12`."""
    text: str | None = None
    """The token's text, as the tool that wrote the file decoded it."""
    visible: str | None = None
    """The text with invisible characters written out, where the file has only that."""
    glitch: bool | None = None
    """The verdict of probes of the next-token distribution."""
    confirmed: bool | None = None
    """The verdict of sampled attempts."""
    filtered: bool = False
    p: float | None = None
    rank: int | None = None
    entropy: float | None = None
    """In nats."""
    norm: float | None = None
    asr: float | None = None
    attempts: int | None = None
    failures: int | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    """Everything else the file says of the token, in its own words."""

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.confirmed is not None:
            return "confirmed" if self.confirmed else "unconfirmed"
        if self.filtered:
            return "filtered"
        if self.glitch is not None:
            return "glitch" if self.glitch else "passed"
        return "listed"

    @property
    def selected(self) -> bool:
        """Whether `tokens: {file: ...}` takes the token: found to be a glitch, or just listed."""
        return self.verdict in ("confirmed", "glitch", "listed")


@dataclass(frozen=True, slots=True)
class Source:
    """Where tokens come from."""

    file: str
    """The file's name, without its folder."""
    format: str
    sha256: str
    claimed_model: str | None
    """The model that the file names; glitcher's own list names a wrong one."""
    lists: str
    """`verdicts`: every token that was looked at. `findings`: only those found."""
    looked_at: int | None
    """Tokens that the run looked at, where the file says so; it may list fewer."""
    settings: Mapping[str, Any]
    """What the file says of the run that made it."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A file's tokens, each once, in its order."""

    source: Source
    tokens: tuple[Found, ...]
    entries: int
    """Entries that name a token, duplicates included."""
    duplicates: int
    conflicts: int
    """Duplicates that contradict the entry kept, which is the first."""
    left_out: Mapping[str, int]
    """What was not taken over, by what it is."""
    extra: Mapping[str, Any]
    """What the file holds besides tokens, such as the sequences of a genetic search."""

    @property
    def verdicts(self) -> dict[str, int]:
        """How many tokens have each verdict that occurs."""
        return tally(self.tokens)


def tally(tokens: Iterable[Found]) -> dict[str, int]:
    """How many of the tokens have each verdict that occurs."""
    counts = dict.fromkeys(VERDICTS, 0)
    for token in tokens:
        counts[token.verdict] += 1
    return {verdict: count for verdict, count in counts.items() if count}
