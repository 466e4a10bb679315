"""The contents of a result file as records, and the description of a format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.imports.result_file import ResultFile

VERDICTS = {
    "confirmed": "sampled, and called a glitch token by its attempts",
    "unconfirmed": "sampled, and not called one",
    "glitch": "called a glitch token, not sampled",
    "passed": "examined, and not called a glitch token",
    "filtered": "probed, but kept from a verdict by a filter of the tool",
    "listed": "named without a verdict",
}
"""Every verdict that a file can give, and its meaning."""


@dataclass(frozen=True, slots=True)
class ImportedToken:
    """One token of a result file. What the file does not contain is None."""

    id: int
    """Below 0 for a token that the file names by its text alone."""
    place: str
    """Where in the file: `results[3]`, `line 12`."""
    text: str | None = None
    """The token's text, as the tool that wrote the file decoded it."""
    visible: str | None = None
    """The text with invisible characters escaped, if the file has only that."""
    glitch: bool | None = None
    """The verdict of probes, from next-token probabilities."""
    confirmed: bool | None = None
    """The verdict of sampled attempts."""
    filtered: bool = False
    """Whether a filter of the tool excluded the token after probing."""
    p: float | None = None
    rank: int | None = None
    entropy: float | None = None
    """In nats."""
    norm: float | None = None
    asr: float | None = None
    attempts: int | None = None
    failures: int | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the token, under their names in the file."""

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
        """Whether `tokens: {file: ...}` takes the token: called a glitch token, or unjudged."""
        return self.verdict in ("confirmed", "glitch", "listed")


@dataclass(frozen=True, slots=True)
class ResultSource:
    """Where the tokens come from."""

    file: str
    """The file's name, without its folder."""
    format: str
    sha256: str
    claimed_model: str | None
    """The model that the file names; it may be wrong, as in glitcher's own list."""
    lists: str
    """`verdicts` if the file lists every examined token, `findings` if only those found."""
    looked_at: int | None
    """Number of tokens that the run examined, if the file says so; it may list fewer."""
    settings: Mapping[str, Any]
    """The settings of the run that the file contains."""


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A result file: each token once, in the file's order."""

    source: ResultSource
    tokens: tuple[ImportedToken, ...]
    entries: int
    """Entries about tokens, including duplicates."""
    duplicates: int
    conflicts: int
    """Duplicates that contradict the first entry, which is kept."""
    left_out: Mapping[str, int]
    """Number of things that were not imported, by their description."""
    extra: Mapping[str, Any]
    """Contents other than tokens, such as the sequences of a genetic search."""

    @property
    def verdicts(self) -> dict[str, int]:
        """How many tokens have each verdict that occurs."""
        return tally(self.tokens)


def tally(tokens: Iterable[ImportedToken]) -> dict[str, int]:
    """How many of the tokens have each verdict that occurs."""
    counts = dict.fromkeys(VERDICTS, 0)
    for token in tokens:
        counts[token.verdict] += 1
    return {verdict: count for verdict, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Content:
    """The contents of a result file, as the reader of its format returns them."""

    tokens: Iterable[ImportedToken]
    claimed_model: str | None = None
    lists: str = "verdicts"
    """`verdicts` or `findings`, as `ResultSource.lists`."""
    looked_at: int | None = None
    """As `ResultSource.looked_at`; None if unknown, or if the file lists all of them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeated: int = 0
    """Entries that repeat another entry, and are not in `tokens`."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """A format, recognized by the structure of the file."""

    name: str
    shape: str
    """One line for messages: the usual file names, and what marks them."""
    matches: Callable[[ResultFile], bool]
    read: Callable[[ResultFile], Content]
    """Raises Malformed for what the format does not allow."""
