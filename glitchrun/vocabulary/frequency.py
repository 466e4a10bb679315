"""How frequent a vocabulary entry was in the tokenizer's training text, by its place in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.prompts.tokenizer import Tokenizer


def frequency_ranks(tokenizer: Tokenizer, pieces: Sequence[str | None]) -> tuple[int, ...]:
    """Each row's rank by frequency in the text the tokenizer was trained on, 0 the most frequent.

    - BPE (byte-level and SentencePiece's): the place of the merge that makes the piece among the
      merges, which training adds by falling frequency (Sennrich et al. 2016, arXiv 1508.07909). A
      piece that no merge makes (single characters and bytes, added tokens) has its place, by id,
      among its like: they were there before the first merge.
    - Unigram (Kudo 2018, arXiv 1804.10959): the place by falling score, the log-probability.
    - Any other, and a tokenizer that does not show its model: the id, since entries are commonly
      written in the order in which they were learned.
    """
    model = _model(tokenizer)
    if model.get("type") == "BPE" and model.get("merges"):
        return _by_merge(model["merges"], pieces)
    if model.get("type") == "Unigram":
        return _by_score(model["vocab"], pieces)
    return tuple(range(len(pieces)))


def _model(tokenizer: Tokenizer) -> Mapping[str, Any]:
    """The `model` of a tokenizer.json; empty for a tokenizer that is not of that library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model: Mapping[str, Any] = json.loads(backend.to_str())["model"] if backend else {}
    return model


def _by_merge(merges: Sequence[Any], pieces: Sequence[str | None]) -> tuple[int, ...]:
    made: dict[str, int] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made.setdefault(left + right, len(made))  # several merges may make one piece
    ranks, single = [], 0
    for piece in pieces:
        rank = made.get(piece) if piece is not None else None
        ranks.append(single if rank is None else rank)
        single += rank is None
    return tuple(ranks)


def _by_score(vocab: Sequence[Any], pieces: Sequence[str | None]) -> tuple[int, ...]:
    by_score = sorted(range(len(vocab)), key=lambda place: (-vocab[place][1], place))
    ranks = {vocab[place][0]: rank for rank, place in enumerate(by_score)}
    return tuple(
        ranks.get(piece, row) if piece is not None else row for row, piece in enumerate(pieces)
    )
