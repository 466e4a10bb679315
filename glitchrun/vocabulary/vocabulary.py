"""The vocabulary of a model: text and category of each embedding row, from the tokenizer alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glitchrun.events import Token
from glitchrun.prompts.tokenizer import Tokenizer, decode_inside, encode_inside
from glitchrun.spec.types import TokenScope
from glitchrun.vocabulary.text import raw_bytes
from glitchrun.vocabulary.tokenizer_analysis import (
    FIRST,
    EncodingContext,
    encoded_as_one,
    find_contexts,
    frequency_ranks,
)

if TYPE_CHECKING:
    from torch import Tensor

CATEGORIES = ("normal", "special", "byte", "undecodable", "unreachable", "unused")
"""The categories of tokens:

- normal: plain text that encodes to just this token, alone or in some context
  (`tokenizer_analysis`)
- special: a token that the tokenizer marks as special; an added token, or one that looks like a tag
  (`<s>`, `[INST]`), that is not ordinary text
- byte: raw bytes that are not text by themselves, or for which the tokenizer has another entry
- undecodable: text with U+FFFD, which represents bytes that could not be decoded
- unreachable: text that the tokenizer encodes as other tokens in every context
- unused: a row without an entry in the tokenizer, or an entry that is reserved by its name
"""

_TAG = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_RESERVED = re.compile(r"reserved|unused|placeholder|dummy|extra_id|control_\d|SPECIAL_\d", re.I)
_REPLACEMENT = "\ufffd"
_SHOWN = 3
"""Other spellings that a message suggests."""


class Vocabulary:
    """The vocabulary of one model. Values are computed at the first use, for all rows at once."""

    def __init__(self, tokenizer: Tokenizer, norms: Tensor | Sequence[float]) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: The model's tokenizer.
            norms: L2 norms of the input embedding, `(V,)`. V is the number of its rows, which can
                differ from the number of the tokenizer's entries.
        """
        self.norms = norms
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.norms)

    @cached_property
    def pieces(self) -> tuple[str | None, ...]:
        """Each row's entry as the tokenizer stores it, such as `▁the`; None if it has none."""
        pieces: list[str | None] = [None] * len(self)
        for piece, token_id in self._tokenizer.get_vocab().items():
            if token_id < len(pieces):
                pieces[token_id] = piece
        return tuple(pieces)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Each row's text, decoded inside a text; empty for a row without an entry."""
        texts = [""] * len(self)
        known = [row for row, piece in enumerate(self.pieces) if piece is not None]
        for row, text in zip(known, decode_inside(self._tokenizer, known), strict=True):
            texts[row] = text
        return tuple(texts)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Each row's category, one of CATEGORIES."""
        return tuple(self._category(row, row in self._contexts) for row in range(len(self)))

    def tally(self, *, wanted: bool) -> dict[str, int]:
        """The number of rows by category.

        Computing the categories takes seconds. Unless `wanted`, the result is empty if they were
        not computed before.
        """
        found = self.categories if wanted else self.__dict__.get("categories", ())
        return dict(sorted(Counter(found).items()))

    @cached_property
    def frequency_ranks(self) -> tuple[int, ...]:
        """Each row's rank by frequency in the tokenizer's training text, from 0."""
        return frequency_ranks(self._tokenizer, self.pieces)

    def raw(self, token_id: int) -> bytes:
        """The bytes of a row: its text in UTF-8, or a part of a character."""
        piece = self.pieces[token_id]
        if self.categories[token_id] == "byte" and piece is not None:
            return raw_bytes(piece) or b""
        return self.texts[token_id].encode("utf-8", "surrogatepass")

    def text(self, token_id: int) -> str:
        """A row's text, decoded inside a text."""
        return self.texts[token_id]

    def encoded(self, token_id: int) -> tuple[int, ...]:
        """The ids to which the tokenizer encodes a row's text, inside a text."""
        return encode_inside(self._tokenizer, self.texts[token_id])

    def token(self, token_id: int) -> Token:
        """Everything about a row that is known without running the model."""
        return Token(
            id=token_id,
            text=self.texts[token_id],
            piece=self.pieces[token_id] or "",
            category=self.categories[token_id],
            norm=float(self.norms[token_id]),
        )

    def ids(self, categories: Sequence[str]) -> list[int]:
        """Rows of the given categories, ascending."""
        wanted = set(categories)
        return [row for row, category in enumerate(self.categories) if category in wanted]

    def find(self, text: str) -> int | None:
        """The token as which a text is encoded, or the entry of this name; None if there is none.

        None also for an entry without a row in the embedding.
        """
        found = encoded_as_one(self._tokenizer, text)
        if found is None:
            found = self._tokenizer.get_vocab().get(text)
        return None if found is None or found >= len(self) else found

    def not_one_token(self, text: str) -> str:
        """Why `find` gives no token for a text: its pieces, and similar texts of one token."""
        entry = encoded_as_one(self._tokenizer, text)
        if entry is not None and entry >= len(self):
            return f"{text!r} is token {entry}, and this model's embedding has {len(self)} rows"
        ids = encode_inside(self._tokenizer, text)
        read = decode_inside(self._tokenizer, ids)
        pieces = ", ".join(f"{one!r} ({row})" for one, row in zip(read, ids, strict=True))
        message = f"{text!r} is not one token of this model's vocabulary but {len(ids)}: {pieces}"
        near = [f"{one!r} ({row})" for one, row in self._near(text)]
        return f"{message}; one token here: {' or '.join(near)}" if near else message

    def _near(self, text: str) -> list[tuple[str, int]]:
        """Spellings of a text that are one token: with other spaces, then with other case."""
        bare = text.strip()
        spaced = [f" {bare}", bare, f" {text}", text.lstrip(), text.rstrip()]
        cased = [f"{space}{one}" for one in _cases(bare) for space in (" ", "")]
        found: dict[int, str] = {}
        for one in (*spaced, *cased) if bare else ():
            row = self.find(one) if one != text else None
            if row is not None:
                found.setdefault(row, one)
        return [(one, row) for row, one in found.items()][:_SHOWN]

    def scope_change(self, categories: Sequence[str] = ("normal",)) -> str | None:
        """A digest of the rows by which the current rule changes a scope; None if there are none.

        The previous rule tried only the context «, and classified every added token and every tag
        as special. The digest (SHA-256, hex) covers the rows that only one of the two rules
        includes. It makes a run's key change exactly where the scope does.
        """
        wanted = set(categories)
        rows = [
            row
            for row, now in enumerate(self.categories)
            if (now in wanted) != (self._category_before(row) in wanted)
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest() if rows else None

    def reason(self, token_id: int) -> str:
        """Why a row has its category, as a phrase."""
        piece, text = self.pieces[token_id], self.texts[token_id]
        match self.categories[token_id]:
            case "normal" if self._contexts[token_id] is FIRST:
                return "its text encodes to just this token"
            case "normal":
                return f"its text encodes to just this token {self._contexts[token_id]}"
            case "special":
                added = token_id in self._added
                return "added to the tokenizer" if added else "written like a tag"
            case "byte":
                data = raw_bytes(piece or "") or b""
                return f"raw bytes ({data.hex(' ').upper()}), not text by themselves"
            case "undecodable":
                return "its text contains U+FFFD, which represents bytes that could not be decoded"
            case "unused" if piece is None:
                return f"the tokenizer has no entry {token_id}"
            case "unused":
                return f"reserved by its name, {piece!r}"
        return self._why_unreachable(text)

    def _why_unreachable(self, text: str) -> str:
        if not text:
            return "it decodes to nothing"
        instead = encode_inside(self._tokenizer, text)
        names = self._tokenizer.convert_ids_to_tokens(list(instead))
        return f"its text is encoded as {' '.join(map(repr, names))} instead"

    def _category(self, row: int, reachable: bool) -> str:
        piece, text = self.pieces[row], self.texts[row]
        if piece is None:
            return "unused"
        is_byte = self._is_byte(row)
        tag = _is_tag(text) and not is_byte
        is_reserved = bool(_RESERVED.search(piece))
        plain = reachable and row not in self._special
        if (row in self._added and (tag or not plain)) or (tag and (is_reserved or not plain)):
            return "unused" if is_reserved else "special"
        if not reachable:
            return "byte" if is_byte else "unreachable"
        return "undecodable" if _REPLACEMENT in text else "normal"

    def _category_before(self, row: int) -> str:
        """The category by the previous rule: text must be encoded as just the token after «."""
        piece, text = self.pieces[row], self.texts[row]
        if piece is None:
            return "unused"
        is_byte = self._is_byte(row)
        if row in self._added or (_is_tag(text) and not is_byte):
            return "unused" if _RESERVED.search(piece) else "special"
        if is_byte:
            return "byte"
        if self._contexts.get(row) is not FIRST:
            return "unreachable"
        return "undecodable" if _REPLACEMENT in text else "normal"

    def _is_byte(self, row: int) -> bool:
        piece = self.pieces[row] or ""
        return raw_bytes(piece) is not None and not _written_as_is(piece, self.texts[row])

    @cached_property
    def _special(self) -> frozenset[int]:
        """The tokens that the tokenizer marks as special."""
        added = self._tokenizer.added_tokens_decoder
        named = {row for row, token in added.items() if getattr(token, "special", True)}
        return frozenset({*self._tokenizer.all_special_ids, *named})

    @cached_property
    def _added(self) -> frozenset[int]:
        return self._special | frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _contexts(self) -> dict[int, EncodingContext]:
        """The first context of each row whose text is encoded as just that row."""
        rows = [
            row
            for row, text in enumerate(self.texts)
            if text and not (_REPLACEMENT in text and self._is_byte(row))  # a part of a character
        ]
        return find_contexts(self._tokenizer, rows, [self.texts[row] for row in rows])


def scope_change(
    tokenizer: Tokenizer, rows: int, categories: Sequence[str] = ("normal",)
) -> str | None:
    """`Vocabulary.scope_change` for a tokenizer and a number of rows, without weights."""
    return Vocabulary(tokenizer, [0.0] * rows).scope_change(categories)


def in_scope(vocabulary: Vocabulary, scope: TokenScope) -> list[int]:
    """Ids of the tokens in the categories of a scope, without excluded ones, ascending."""
    excluded = excluded_from(vocabulary, scope, scope.categories)
    return [row for row in vocabulary.ids(scope.categories) if row not in excluded]


def excluded_from(
    vocabulary: Vocabulary, scope: TokenScope, categories: Sequence[str]
) -> frozenset[int]:
    """Tokens of the categories that `tokens.exclude` excludes."""
    patterns = [re.compile(pattern) for pattern in scope.exclude or ()]
    if not patterns:
        return frozenset()
    texts = vocabulary.texts
    return frozenset(
        row
        for row in vocabulary.ids(categories)
        if any(pattern.search(texts[row]) for pattern in patterns)
    )


def category_counts(vocabulary: Vocabulary) -> str:
    """The number of rows of each category: `381 normal, 256 byte, 3 special`."""
    counts = Counter(vocabulary.categories)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _cases(text: str) -> list[str]:
    return [text.lower(), text.capitalize(), text.upper()]


def _is_tag(text: str) -> bool:
    bare = text.strip()
    return len(bare) >= 3 and bool(_TAG.fullmatch(bare)) and any(map(str.isalpha, bare))


def _written_as_is(piece: str, text: str) -> bool:
    """Whether a piece is its own text. SentencePiece's `é` looks like a byte of byte-level BPE."""
    return text.strip() == piece
