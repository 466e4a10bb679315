"""What each row of a model's embedding is, found by asking the tokenizer and nothing else."""

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
from glitchrun.vocabulary.byte_pieces import raw_bytes
from glitchrun.vocabulary.frequency import frequency_ranks
from glitchrun.vocabulary.reach import FIRST, EncodingContext, reached, written_as_one

if TYPE_CHECKING:
    from torch import Tensor

CATEGORIES = ("normal", "special", "byte", "undecodable", "unreachable", "unused")
"""In the words of a run's `category`:

- normal: plain text that encodes to just this token, alone or in some surroundings (`reach.py`)
- special: a token that the tokenizer calls special; one that was added, or is written like a tag
  (`<s>`, `[INST]`), and is no ordinary text
- byte: raw bytes that are no text by themselves, or that the tokenizer has another entry for
- undecodable: text with U+FFFD in it, which stands for bytes that could not be decoded
- unreachable: text that the tokenizer writes with other tokens, whatever stands around it
- unused: a row that the tokenizer has no entry for, or an entry set aside by its name
"""

_TAG = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_SET_ASIDE = re.compile(r"reserved|unused|placeholder|dummy|extra_id|control_\d|SPECIAL_\d", re.I)
_REPLACEMENT = "\ufffd"
_SHOWN = 3
"""Other spellings that a message offers."""


class Vocabulary:
    """The vocabulary of one model. Everything is worked out on first use, for all rows at once.

    `norms`: L2 norms of the input embedding, `(V,)`. V is the number of rows of the embedding, and
    may be more or less than the tokenizer has entries.
    """

    def __init__(self, tokenizer: Tokenizer, norms: Tensor | Sequence[float]) -> None:
        self.norms = norms
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.norms)

    @cached_property
    def pieces(self) -> tuple[str | None, ...]:
        """Each row's entry as the tokenizer stores it, such as `▁the`; None where there is none."""
        pieces: list[str | None] = [None] * len(self)
        for piece, token_id in self._tokenizer.get_vocab().items():
            if token_id < len(pieces):
                pieces[token_id] = piece
        return tuple(pieces)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Each row's text as it reads inside a text; empty where there is no entry."""
        texts = [""] * len(self)
        known = [row for row, piece in enumerate(self.pieces) if piece is not None]
        for row, text in zip(known, decode_inside(self._tokenizer, known), strict=True):
            texts[row] = text
        return tuple(texts)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Each row's category, one of CATEGORIES."""
        return tuple(self._category(row, row in self._reached) for row in range(len(self)))

    def tally(self, *, wanted: bool) -> dict[str, int]:
        """Rows by category. It takes seconds to tell them: where it is not `wanted`, empty unless
        something else has asked for them before."""
        found = self.categories if wanted else self.__dict__.get("categories", ())
        return dict(sorted(Counter(found).items()))

    @cached_property
    def frequency_ranks(self) -> tuple[int, ...]:
        """Each row's rank by frequency in the tokenizer's training text, from 0."""
        return frequency_ranks(self._tokenizer, self.pieces)

    def raw(self, token_id: int) -> bytes:
        """The bytes that a row stands for: its text's in UTF-8, or a part of a character."""
        piece = self.pieces[token_id]
        if self.categories[token_id] == "byte" and piece is not None:
            return raw_bytes(piece) or b""
        return self.texts[token_id].encode("utf-8", "surrogatepass")

    def text(self, token_id: int) -> str:
        return self.texts[token_id]

    def token(self, token_id: int) -> Token:
        """What is known of a row without running the model."""
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
        """The one token that a text is, alone, inside a text or as a vocabulary entry; else None.

        None also where the tokenizer has an entry for it, and the embedding no row.
        """
        found = written_as_one(self._tokenizer, text)
        if found is None:
            found = self._tokenizer.get_vocab().get(text)
        return None if found is None or found >= len(self) else found

    def not_one_token(self, text: str) -> str:
        """Says why `find` knows no token of a text: its pieces, and the spellings that are one."""
        entry = written_as_one(self._tokenizer, text)
        if entry is not None and entry >= len(self):
            return f"{text!r} is token {entry}, and this model's embedding has {len(self)} rows"
        ids = encode_inside(self._tokenizer, text)
        read = decode_inside(self._tokenizer, ids)
        pieces = ", ".join(f"{one!r} ({row})" for one, row in zip(read, ids, strict=True))
        told = f"{text!r} is not one token of this model's vocabulary but {len(ids)}: {pieces}"
        near = [f"{one!r} ({row})" for one, row in self._near(text)]
        return f"{told}; one token here: {' or '.join(near)}" if near else told

    def _near(self, text: str) -> list[tuple[str, int]]:
        """Other spellings of a text that are one token here: other spaces, then other case."""
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
        """What the rule for reachable tokens has changed of a scope; None where nothing.

        The rule before tried « only, and took every added token and every tag for special. The
        digest (SHA-256, hex) is of the rows that are in the scope by one of the rules alone, so
        that a run's key can differ where, and only where, its scope does.
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
            case "normal" if self._reached[token_id] is FIRST:
                return "its text encodes to just this token"
            case "normal":
                return f"its text encodes to just this token {self._reached[token_id]}"
            case "special":
                added = token_id in self._added
                return "added to the tokenizer" if added else "written like a tag"
            case "byte":
                data = raw_bytes(piece or "") or b""
                return f"raw bytes ({data.hex(' ').upper()}), no text by themselves"
            case "undecodable":
                return "its text holds U+FFFD, which stands for bytes that could not be decoded"
            case "unused" if piece is None:
                return f"the tokenizer has no entry {token_id}"
            case "unused":
                return f"set aside by its name, {piece!r}"
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
        set_aside = bool(_SET_ASIDE.search(piece))
        plain = reachable and row not in self._special
        if (row in self._added and (tag or not plain)) or (tag and (set_aside or not plain)):
            return "unused" if set_aside else "special"
        if not reachable:
            return "byte" if is_byte else "unreachable"
        return "undecodable" if _REPLACEMENT in text else "normal"

    def _category_before(self, row: int) -> str:
        """The category by the rule before: reachable behind «, and by no other sign text."""
        piece, text = self.pieces[row], self.texts[row]
        if piece is None:
            return "unused"
        is_byte = self._is_byte(row)
        if row in self._added or (_is_tag(text) and not is_byte):
            return "unused" if _SET_ASIDE.search(piece) else "special"
        if is_byte:
            return "byte"
        if self._reached.get(row) is not FIRST:
            return "unreachable"
        return "undecodable" if _REPLACEMENT in text else "normal"

    def _is_byte(self, row: int) -> bool:
        piece = self.pieces[row] or ""
        return raw_bytes(piece) is not None and not _written_as_is(piece, self.texts[row])

    @cached_property
    def _special(self) -> frozenset[int]:
        """What the tokenizer itself calls special."""
        added = self._tokenizer.added_tokens_decoder
        named = {row for row, token in added.items() if getattr(token, "special", True)}
        return frozenset({*self._tokenizer.all_special_ids, *named})

    @cached_property
    def _added(self) -> frozenset[int]:
        return self._special | frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _reached(self) -> dict[int, EncodingContext]:
        """The rows whose text is written with just that row, and where."""
        rows = [
            row
            for row, text in enumerate(self.texts)
            if text and not (_REPLACEMENT in text and self._is_byte(row))  # a part of a character
        ]
        return reached(self._tokenizer, rows, [self.texts[row] for row in rows])


def scope_change(
    tokenizer: Tokenizer, rows: int, categories: Sequence[str] = ("normal",)
) -> str | None:
    """`Vocabulary.scope_change` of a tokenizer and so many rows; needs no weights."""
    return Vocabulary(tokenizer, [0.0] * rows).scope_change(categories)


def _cases(text: str) -> list[str]:
    return [text.lower(), text.capitalize(), text.upper()]


def _is_tag(text: str) -> bool:
    bare = text.strip()
    return len(bare) >= 3 and bool(_TAG.fullmatch(bare)) and any(map(str.isalpha, bare))


def _written_as_is(piece: str, text: str) -> bool:
    """SentencePiece's `é` is its own text, though it looks like a byte of byte-level BPE."""
    return text.strip() == piece
