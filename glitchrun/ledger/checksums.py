"""The numbers and checksums of a ledger's lines.

Each line ends with its number and a checksum over itself and the checksum before it, so a line
that was altered, duplicated, removed or moved is detected, and the lines before it are intact.

    {"kind":"ledger","at":...,"version":2,"before":...,"run":{...},"seq":1,"sum":"0123456789abcdef"}
    {"kind":"batch","at":...,...,"seq":2,"sum":"fedcba9876543210"}

The line of kind `ledger` begins the chain. It is the first line, unless an older version began the
ledger: then it is where this version resumed the run, and `before` is a digest of all lines before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError, file_access
from glitchrun.ledger.files import open_regular

VERSION = 3
"""The ledger format. Version 1 had neither numbers nor checksums; up to version 2 a run's own
ledger contained the facts of its steps."""
SEALED = 2
"""The first version with numbers and checksums."""
HEAD = "ledger"
"""Kind of the entry that begins the chain."""

HEAD_LINE = b'{"kind":"ledger",'
"""The first bytes of that entry's line."""
_SEAL = re.compile(rb',"seq":(\d{1,18}),"sum":"([0-9a-f]{16})"\}\n\Z')


class NewerLedger(RunError):
    """The ledger was written by a glitchrun newer than this one."""

    def __init__(self, version: object) -> None:
        super().__init__(
            f"written by a newer glitchrun (ledger format {version}; this one reads up to "
            f"{VERSION}): update glitchrun"
        )


@dataclass(frozen=True, slots=True)
class Damage:
    """The line at which a ledger is damaged, and the evidence."""

    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """How much of a ledger is intact."""

    chain: Chain
    """The chain after the intact lines."""
    good_bytes: int
    damage: Damage | None = None
    torn: bool = False
    """Whether the ledger ends in the middle of a line, as after a kill."""


def inspect(path: Path, known: Callable[[str], bool], invalid: Damage | None = None) -> Inspection:
    """Reads a ledger up to its end or the first damaged line.

    Args:
        path: The ledger; a missing file has no lines.
        known: Returns whether a kind of entry exists.
        invalid: A line known to be damaged for another reason; the intact part ends before it.

    Raises:
        NewerLedger: a newer glitchrun wrote the ledger.
        OSError: the ledger cannot be read.
    """
    chain, good = Chain(known), 0
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return Inspection(chain, 0)
    with file:
        for number, line in enumerate(file, start=1):
            if invalid is not None and number == invalid.line:
                return Inspection(chain, good, invalid)
            objection = chain.objection(line) if line.endswith(b"\n") else _unended(chain, line)
            if objection is None:
                chain.add(line)
                good += len(line)
            elif objection == _TORN or (_has_holes(line) and not file.read(1)):
                return Inspection(chain, good, torn=True)
            elif chain.before_is_altered:
                return Inspection(Chain(known), 0, Damage(number, objection))
            else:
                return Inspection(chain, good, Damage(number, objection))
    return Inspection(chain, good)


def intact_lines(path: Path, upto: int) -> Iterator[tuple[int, bytes]]:
    """The lines in the first `upto` bytes of a ledger, numbered from 1.

    Raises:
        RunError: the ledger cannot be read.
    """
    if not upto:
        return
    with file_access(path), open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if upto <= 0:
                return
            upto -= len(line)
            yield number, line


@contextmanager
def newer_format(path: Path) -> Iterator[None]:
    """Puts the path in front of the message about a newer format.

    Raises:
        RunError: the block raised NewerLedger.
    """
    try:
        yield
    except NewerLedger as exc:
        raise RunError(f"{path}: {exc}") from exc


def described(path: Path, inspection: Inspection, damage: Damage) -> str:
    """The message about a damaged ledger: the line, how much is intact, and the remedy."""
    good = inspection.chain.lines
    before = f"the {good} line{'s' * (good != 1)} before it" if good else "nothing before it"
    return (
        f"{path}:{damage.line}: {damage.what}; {before} {'are' if good > 1 else 'is'} intact. "
        "`glitchrun apply` continues from there and keeps the damaged file; --fresh starts again"
    )


_TORN = "torn"


def _unended(chain: Chain, line: bytes) -> str:
    """Why a last line without a line feed is not valid: it is torn, unless the line is complete and
    its line feed was replaced by another byte."""
    if chain.head is not None and chain.objection(line[:-1] + b"\n") is None:
        return "it was altered: its line feed is missing"
    return _TORN


def _has_holes(line: bytes) -> bool:
    """Whether a line contains zeros, which a file system writes for data that a power cut lost."""
    return b"\0\0" in line


class Chain:
    """Checks a ledger line by line, and makes the lines that continue it."""

    def __init__(self, known: Callable[[str], bool]) -> None:
        """`known` returns whether a kind of entry exists; used for lines without a checksum."""
        self.lines = 0
        self.head: Mapping[str, Any] | None = None
        """The entry that began the chain; None before the first line with a checksum."""
        self.before_is_altered = False
        """Whether the last reason concerned the lines before the given one."""
        self._known = known
        self._sum = ""
        self._plain = hashlib.blake2b(digest_size=8)

    def objection(self, line: bytes) -> str | None:
        """Why a line cannot be the next one; None if it can.

        Raises:
            NewerLedger: the line begins a ledger that a newer glitchrun wrote.
        """
        self.before_is_altered = False
        if self.head is None:
            is_head = line.startswith(HEAD_LINE)
            return self._no_head(line) if is_head else self._no_plain(line)
        found = _SEAL.search(line)
        if found is None:
            return "it was altered: it has no checksum"
        wanted = self.lines + 1
        number = int(found[1])
        if number > wanted:
            return f"entry {wanted} is missing or moved: this is entry {number}"
        if number < wanted:
            return f"it is duplicated or moved: entry {number} occurs again"
        if found[2].decode() != _digest(self._sum, line[: found.start()]):
            return "it was altered: its checksum does not match"
        return None

    def add(self, line: bytes) -> None:
        """Adds a line for which `objection` returned None."""
        self.lines += 1
        found = _SEAL.search(line)
        if self.head is None and line.startswith(HEAD_LINE):
            self.head = json.loads(line)
        if self.head is None or found is None:
            self._plain.update(line)
        else:
            self._sum = found[2].decode()

    def line(self, entry: Mapping[str, Any]) -> bytes:
        """The next line, for an entry. Call `add` once it is written."""
        body = json.dumps(entry, separators=(",", ":")).encode()[:-1]
        return body + _seal(self.lines + 1, _digest(self._sum, body))

    def head_line(self, at: int, name: str, document: Mapping[str, Any]) -> bytes:
        """The line that begins the chain.

        Args:
            at: Milliseconds since the epoch.
            name: `run` or `step`.
            document: What identifies the run or step.
        """
        entry = {"kind": HEAD, "at": at, "version": VERSION, "before": self._before()}
        entry[name] = document
        return self.line(entry)

    def _before(self) -> str:
        return self._plain.hexdigest()

    def _no_plain(self, line: bytes) -> str | None:
        """Why a line without a checksum, of format 1, is not valid; None if it is."""
        found = _SEAL.search(line)
        if found is not None:
            return (
                f"the beginning of the ledger is missing or altered: this is entry {int(found[1])}"
            )
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as exc:
            return f"not a ledger entry ({exc})"
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            return "not a ledger entry (it has no kind)"
        return None if self._known(entry["kind"]) else f"no kind of entry: {entry['kind']!r:.40}"

    def _no_head(self, line: bytes) -> str | None:
        """Why a line cannot begin the chain; None if it can."""
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as exc:
            return f"not a ledger entry ({exc})"
        version = entry.get("version")
        is_newer = isinstance(version, int) and version > VERSION
        if is_newer and not _is_only_version_altered(line, version):
            raise NewerLedger(version)
        found = _SEAL.search(line)
        if found is None or found[2].decode() != _digest("", line[: found.start()]):
            return "it was altered: its checksum does not match"
        if int(found[1]) != self.lines + 1 or entry.get("before") != self._before():
            self.before_is_altered = True
            return "the lines before it were altered"
        return None


def _is_only_version_altered(line: bytes, version: int) -> bool:
    """Whether the line is valid with a version number of ours: then a digit was altered."""
    for ours in range(SEALED, VERSION + 1):
        right = line.replace(f'"version":{version}'.encode(), f'"version":{ours}'.encode(), 1)
        found = _SEAL.search(right)
        if found is not None and found[2].decode() == _digest("", right[: found.start()]):
            return True
    return False


def _seal(number: int, checksum: str) -> bytes:
    return f',"seq":{number},"sum":"{checksum}"}}\n'.encode()


def _digest(before: str, body: bytes) -> str:
    return hashlib.blake2b(before.encode() + body, digest_size=8).hexdigest()
