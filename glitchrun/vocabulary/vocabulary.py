"""What each row of a model's embedding is, found by asking the tokenizer and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glitchrun.events import Token
from glitchrun.prompts.tokenizer import ANCHOR, Tokenizer, decode_inside, encode, encode_all
from glitchrun.vocabulary.byte_pieces import raw_bytes
from glitchrun.vocabulary.frequency import frequency_ranks

if TYPE_CHECKING:
    from torch import Tensor

CATEGORIES = ("normal", "special", "byte", "undecodable", "unreachable", "unused")
"""In the words of a run's `category`:

- normal: plain text that encodes to just this token
- special: a token added to the tokenizer, or one written like a tag (`<s>`, `[INST]`)
- byte: raw bytes that are no text by themselves
- undecodable: text with U+FFFD in it, which stands for bytes that could not be decoded
- unreachable: text that the tokenizer writes with other tokens
- unused: a row that the tokenizer has no entry for, or an entry set aside by its name
"""

_TAG = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_SET_ASIDE = re.compile(r"reserved|unused|placeholder|dummy|extra_id|control_\d|SPECIAL_\d", re.I)
_REPLACEMENT = "\ufffd"


class Vocabulary:
    """The vocabulary of one model. Everything is worked out on first use, for all rows at once.

    `norms`: L2 norms of the input embedding, `(V,)`. V is the number of rows of the embedding, and
    may be more than the tokenizer has entries.
    """

    def __init__(self, tokenizer: Tokenizer, norms: Tensor) -> None:
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
        return tuple(map(self._category, range(len(self)), self._reachable))

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
        """The one token that a text is, read inside a text or as a vocabulary entry; else None."""
        both = encode(self._tokenizer, ANCHOR + text)
        if len(both) == len(self._anchor) + 1 and both[:-1] == self._anchor:
            return both[-1]
        return self._tokenizer.get_vocab().get(text)

    def reason(self, token_id: int) -> str:
        """Why a row has its category, as a phrase."""
        piece, text = self.pieces[token_id], self.texts[token_id]
        match self.categories[token_id]:
            case "normal":
                return "its text encodes to just this token"
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
        instead = encode(self._tokenizer, ANCHOR + text)
        if instead[: len(self._anchor)] == self._anchor:
            instead = instead[len(self._anchor) :]
        written = " ".join(repr(self.pieces[one]) for one in instead)
        return f"its text is encoded as {written} instead"

    def _category(self, row: int, reachable: bool) -> str:
        piece, text = self.pieces[row], self.texts[row]
        if piece is None:
            return "unused"
        is_byte = raw_bytes(piece) is not None and not _written_as_is(piece, text)
        if row in self._added or (_is_tag(text) and not is_byte):
            return "unused" if _SET_ASIDE.search(piece) else "special"
        if is_byte:
            return "byte"
        if not reachable:
            return "unreachable"
        return "undecodable" if _REPLACEMENT in text else "normal"

    @cached_property
    def _anchor(self) -> tuple[int, ...]:
        return encode(self._tokenizer, ANCHOR)

    @cached_property
    def _added(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        return frozenset({*self._tokenizer.all_special_ids, *added})

    @cached_property
    def _reachable(self) -> list[bool]:
        """Whether each row's text, behind an anchor, encodes to the anchor and just that row."""
        encoded = encode_all(self._tokenizer, [ANCHOR + text for text in self.texts])
        anchor = list(self._anchor)
        return [ids == [*anchor, row] for row, ids in enumerate(encoded)]


def _is_tag(text: str) -> bool:
    bare = text.strip()
    return len(bare) >= 3 and bool(_TAG.fullmatch(bare)) and any(map(str.isalpha, bare))


def _written_as_is(piece: str, text: str) -> bool:
    """SentencePiece's `é` is its own text, though it looks like a byte of byte-level BPE."""
    return text.strip() == piece
