"""Phrases: texts as lists of token ids, each with another tokenization of the same text.

A phrase and its control consist of the same characters, so the model's answers can differ only
because of the tokens. The control is the usual tokenization: what the tokenizer encodes the text
to. If that is the phrase itself, the control encodes every character separately.

Pairs of incomplete tokens follow Jang et al. 2024 (arXiv 2410.23684): the first token ends within a
character, and the second one completes it.
"""

from __future__ import annotations

import codecs
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from glitchrun.prompts.tokenizer import Tokenizer, decode_runs_inside, encode_inside
from glitchrun.vocabulary.text import raw_bytes
from glitchrun.vocabulary.vocabulary import Vocabulary

USUAL, CHARACTERS = "usual", "characters"
"""The kinds of controls."""
_DRAWS = 200
"""Pairs drawn at most for each one wanted. Of 13,484 pairs of SmolLM2, 2,196 have a control and
1,685 are reachable, so eight draws for each are usually enough."""
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text as token ids, and the same text as other ids."""

    ids: tuple[int, ...]
    text: str
    control: tuple[int, ...]
    kind: str
    """How the control is made: `usual` or `characters`."""


@dataclass(slots=True)
class Pairs:
    """The pairs of incomplete tokens that a rule drew, and counts of those left out."""

    rule: str
    first: int
    """Tokens that end within a character."""
    second: int
    """Tokens that begin with the rest of a character."""
    pairs: int
    """Pairs of both in which the second token completes the character of the first."""
    drawn: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Drawn pairs that are left out, by reason: `not_utf8`, `not_reachable`, `no_control`."""
    phrases: list[Phrase] = field(default_factory=list)


def phrase_of(ids: Sequence[int], tokenizer: Tokenizer) -> Phrase | str:
    """The phrase of some ids with its control, or why there is none: `not_utf8` if the ids are no
    whole characters, `no_control` if no other tokenization of the text is known."""
    (text,) = decode_runs_inside(tokenizer, [tuple(ids)])
    if _REPLACEMENT in text or not text:
        return "not_utf8"
    return _with_control(tuple(ids), text, encode_inside(tokenizer, text), tokenizer)


def phrase_of_text(text: str, tokenizer: Tokenizer) -> Phrase | str:
    """The phrase of a text in its usual tokenization, or `no_control`."""
    ids = encode_inside(tokenizer, text)
    return _with_control(ids, text, ids, tokenizer)


def _with_control(
    ids: tuple[int, ...], text: str, usual: tuple[int, ...], tokenizer: Tokenizer
) -> Phrase | str:
    single = tuple(one for character in text for one in encode_inside(tokenizer, character))
    for kind, control in ((USUAL, usual), (CHARACTERS, single)):
        if control != ids and decode_runs_inside(tokenizer, [control]) == [text]:
            return Phrase(ids, text, control, kind)
    return "no_control"


def incomplete_pairs(
    vocabulary: Vocabulary, tokenizer: Tokenizer, rule: str, limit: int, seed: int
) -> Pairs:
    """Pairs of incomplete tokens, in an order drawn by the seed.

    Args:
        vocabulary: The vocabulary.
        tokenizer: Its tokenizer.
        rule: `incomplete` for all pairs with a control, `reachable` for those of them to which the
            tokenizer encodes their text.
        limit: Pairs wanted.
        seed: Decides which.
    """
    first, second = _incomplete(vocabulary)
    sizes = [(need, len(first[need]) * len(second[need])) for need in sorted(first)]
    total = sum(size for _, size in sizes)
    count = [sum(map(len, some.values())) for some in (first, second)]
    found = Pairs(rule, count[0], count[1], total)
    places = random.Random(f"phrases {seed}").sample(range(total), min(total, _DRAWS * limit))
    for place in places:
        if len(found.phrases) == limit:
            break
        found.drawn += 1
        ids = _pair_at(place, sizes, first, second)
        made = phrase_of(ids, tokenizer)
        if not isinstance(made, str) and rule == "reachable":
            # The kind of control does not tell: a tokenizer may normalize the text.
            made = made if encode_inside(tokenizer, made.text) == ids else "not_reachable"
        if isinstance(made, str):
            found.dropped[made] += 1
        else:
            found.phrases.append(made)
    return found


def _pair_at(
    place: int,
    sizes: Sequence[tuple[int, int]],
    first: Mapping[int, Sequence[int]],
    second: Mapping[int, Sequence[int]],
) -> tuple[int, int]:
    """The pair at one place of all pairs, which are ordered by the bytes missing."""
    for need, size in sizes:
        if place < size:
            row, column = divmod(place, len(second[need]))
            return first[need][row], second[need][column]
        place -= size
    raise IndexError(place)


def _incomplete(vocabulary: Vocabulary) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """By number of bytes, the tokens that lack so many at their end, and those that begin with so
    many. Everything else in them is whole characters."""
    first: defaultdict[int, list[int]] = defaultdict(list)
    second: defaultdict[int, list[int]] = defaultdict(list)
    for row, data in _byte_tokens(vocabulary):
        if lacking := _lacking(data):
            first[lacking].append(row)
        elif given := _given(data):
            second[given].append(row)
    return first, second


def _byte_tokens(vocabulary: Vocabulary) -> Iterator[tuple[int, bytes]]:
    for row, (piece, text) in enumerate(zip(vocabulary.pieces, vocabulary.texts, strict=True)):
        if piece and _REPLACEMENT in text and (data := raw_bytes(piece)):
            yield row, data


def _lacking(data: bytes) -> int:
    """Bytes that the last character lacks; 0 if none, or if the bytes are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return 0
    begun = decoder.getstate()[0]
    if not begun:
        return 0
    size = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    return size - len(begun)


def _given(data: bytes) -> int:
    """Continuation bytes at the start of data that is otherwise whole characters; else 0."""
    rest = data.lstrip(bytes(range(0x80, 0xC0)))
    try:
        rest.decode("utf-8")
    except UnicodeDecodeError:
        return 0
    return len(data) - len(rest)
