"""Facts about the entries of a tokenizer: the contexts in which it produces one, and their
frequency ranks.

The text before a token decides how it is split. Llama 3's tokenizer encodes `.get` as one token
alone and after a letter, and as two after a quote; it encodes `'s` as one token alone, and as two
after «. One context proves that a token can be produced, but no single context proves that it
cannot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.prompts.tokenizer import ANCHOR, Tokenizer, decode_inside, encode, encode_all


@dataclass(frozen=True, slots=True)
class EncodingContext:
    """The text before and after a token's text while it is encoded."""

    before: str
    after: str = ""

    def __str__(self) -> str:
        if self.after:
            return f"before {self.after!r}"
        return f"after {self.before!r}" if self.before else "alone"


FIRST = EncodingContext(ANCHOR)
"""The first context, because hardly any vocabulary merges « with other text."""
ALONE = EncodingContext("")
CONTEXTS = (
    FIRST,
    ALONE,
    # Most tokenizers split a text at a line break, a space, a digit, quotes and brackets. There are
    # several letters, because WordPiece takes the longest entry from the left, and `a` may be part
    # of one with letters of the text.
    *map(
        EncodingContext, ("a", "\n", " ", "1", '"', "'", "(", ".", "Z", "q", "x", "é", "的", "\t")
    ),
    # BPE with an end-of-word mark produces the inner pieces of a word only before other letters.
    *(EncodingContext("", after) for after in ("q", "x", "z", "1", "-", "a")),
)
"""In the order of trial; each is tried for the tokens that no earlier context produced."""
_MANY = 10_000
_SAMPLE = 1_000
"""If more than `_MANY` tokens are left (all capitals for a lower-case tokenizer), the third and
later contexts are first tried on `_SAMPLE` of them, and on all only if one is produced. So a whole
vocabulary is categorized in the time of two encodings, not of twenty."""


def find_contexts(
    tokenizer: Tokenizer, rows: Sequence[int], texts: Sequence[str]
) -> dict[int, EncodingContext]:
    """The first context in which each token's text is encoded as just that token.

    Tokens that no context produces are not in the result.

    Args:
        tokenizer: The tokenizer.
        rows: The tokens' ids.
        texts: The text of each token, decoded inside a text.
    """
    found: dict[int, EncodingContext] = {}
    left = dict(zip(rows, texts, strict=True))
    for one in CONTEXTS:
        if one not in (FIRST, ALONE) and not _worth_trying(tokenizer, left, one):
            continue
        found |= dict.fromkeys(_produced(tokenizer, left, one), one)
        left = {row: text for row, text in left.items() if row not in found}
        if one is ALONE:  # decoded alone, a first piece may lose its space
            again = {row: text for row, text in _decoded(tokenizer, left) if text != left[row]}
            found |= dict.fromkeys(_produced(tokenizer, again, one), one)
            left = {row: text for row, text in left.items() if row not in found}
    return found


def _worth_trying(tokenizer: Tokenizer, texts: dict[int, str], context: EncodingContext) -> bool:
    """Whether to try a context on all texts: few are left, or it produces one of a sample."""
    if len(texts) <= _MANY:
        return bool(texts)
    some = dict(list(texts.items())[:: len(texts) // _SAMPLE])
    return any(True for _ in _produced(tokenizer, some, context))


def _produced(
    tokenizer: Tokenizer, texts: dict[int, str], context: EncodingContext
) -> Iterator[int]:
    """Yield the rows whose texts are encoded as just that row in a context."""
    before = list(encode(tokenizer, context.before))
    whole = [f"{context.before}{text}{context.after}" for text in texts.values()]
    for row, ids in zip(texts, encode_all(tokenizer, whole), strict=True):
        if _single_id(ids, before, context) == row:
            yield row


def _decoded(tokenizer: Tokenizer, rows: dict[int, str]) -> Iterator[tuple[int, str]]:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    texts = tokenizer.batch_decode([[row] for row in rows], **options) if rows else []
    return zip(rows, texts, strict=True)


def _single_id(ids: Sequence[int], before: Sequence[int], context: EncodingContext) -> int | None:
    """The single id of the text between `before` and `after`; None for several ids."""
    start = len(before)
    if list(ids[:start]) != list(before) or len(ids) <= start:
        return None
    # The text after it has ids of its own.
    alone = len(ids) > start + 1 if context.after else len(ids) == start + 1
    return ids[start] if alone else None


def encoded_as_one(tokenizer: Tokenizer, text: str) -> int | None:
    """The token as which a text is encoded in some context; None if there is none.

    After «, any single token counts (some tokenizers encode `The` as `the`). In other contexts the
    token must decode to the text.
    """
    for context in CONTEXTS:
        before = encode(tokenizer, context.before)
        ids = encode(tokenizer, f"{context.before}{text}{context.after}")
        one = _single_id(ids, before, context)
        if one is not None and (context is FIRST or decode_inside(tokenizer, [one]) == [text]):
            return one
    return None


def frequency_ranks(tokenizer: Tokenizer, pieces: Sequence[str | None]) -> tuple[int, ...]:
    """Each row's rank by frequency in the tokenizer's training text; 0 is the most frequent.

    - BPE (byte-level and SentencePiece's): the index of the merge that creates the piece. Training
      adds merges by falling frequency (Sennrich et al. 2016, arXiv 1508.07909). Pieces without a
      merge (single characters and bytes, added tokens) are ranked by id among themselves, because
      they exist before the first merge.
    - Unigram (Kudo 2018, arXiv 1804.10959): the rank by falling score, the log-probability.
    - Other tokenizers, and those that do not expose their model: the id, because entries are
      usually stored in the order in which they were learned.
    """
    model = _model(tokenizer)
    if model.get("type") == "BPE" and model.get("merges"):
        return _by_merge(model["merges"], pieces)
    if model.get("type") == "Unigram":
        return _by_score(model["vocab"], pieces)
    return tuple(range(len(pieces)))


def _model(tokenizer: Tokenizer) -> Mapping[str, Any]:
    """The `model` of tokenizer.json; empty for a tokenizer of another library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model: Mapping[str, Any] = json.loads(backend.to_str())["model"] if backend else {}
    return model


def _by_merge(merges: Sequence[Any], pieces: Sequence[str | None]) -> tuple[int, ...]:
    by_piece: dict[str, int] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        by_piece.setdefault(left + right, len(by_piece))  # several merges may create one piece
    ranks, single = [], 0
    for piece in pieces:
        rank = by_piece.get(piece) if piece is not None else None
        ranks.append(single if rank is None else rank)
        single += rank is None
    return tuple(ranks)


def _by_score(vocab: Sequence[Any], pieces: Sequence[str | None]) -> tuple[int, ...]:
    by_score = sorted(range(len(vocab)), key=lambda place: (-vocab[place][1], place))
    ranks = {vocab[place][0]: rank for rank, place in enumerate(by_score)}
    return tuple(
        ranks.get(piece, row) if piece is not None else row for row, piece in enumerate(pieces)
    )
