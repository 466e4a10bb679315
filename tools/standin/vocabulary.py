"""Mistral's tokenizer, complete or in part, as the files of a Mixtral checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from glitchrun.model import load_tokenizer

_FIRST_PIECES = 259
"""<unk>, <s>, </s> and the 256 bytes, which every part of the vocabulary includes."""
_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "legacy": True,
    "model_max_length": 32768,
    "tokenizer_class": "LlamaTokenizer",
}


def sentencepiece_model() -> Path:
    """The SentencePiece model of Mistral and Mixtral, from the package mistral-common."""
    spec = find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package mistral-common is missing: run `make setup`")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "tokenizer.model.v1"


def write_tokenizer(folder: Path, texts: Sequence[str], pieces: int | None) -> None:
    """Write tokenizer.json and tokenizer_config.json, and tokenizer.model for all entries.

    Args:
        folder: Folder of the checkpoint.
        texts: Texts that a part of the vocabulary must encode as the complete one does.
        pieces: Entries to keep; None for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sentencepiece_model(), folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG, indent=2), encoding="utf-8")
    layout = json.loads(load_tokenizer(folder).backend_tokenizer.to_str())
    _put_spaces_as_mixtral_does(layout)
    if pieces is not None:
        _keep(layout["model"], texts, pieces)
        (folder / "tokenizer.model").unlink()  # it has the complete vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")


def _put_spaces_as_mixtral_does(layout: dict[str, Any]) -> None:
    """Add a space before every text and after every special token, as in published Mixtrals."""
    layout["pre_tokenizer"] = None
    layout["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    layout["model"]["unk_token"] = "<unk>"


def _keep(model: dict[str, Any], texts: Sequence[str], pieces: int) -> None:
    """Reduce the model to the pieces that the texts need and the earliest others, renumbered."""
    whole: Mapping[str, int] = model["vocab"]
    parts: dict[str, tuple[str, str]] = {}
    for left, right in model["merges"]:
        parts.setdefault(left + right, (left, right))
    by_id = sorted(whole, key=whole.__getitem__)
    kept = dict.fromkeys(by_id[:_FIRST_PIECES])
    characters = {c for text in texts for c in text.replace(" ", "▁")}
    needed = [piece for piece in by_id if piece in characters]
    needed += _used(model, texts)
    for piece in [*needed, *_spread(by_id[_FIRST_PIECES:])]:
        built = dict.fromkeys(_built_from(piece, parts))
        if len(kept | built) <= pieces:
            kept |= built
    ordered = sorted(kept, key=whole.__getitem__)
    model["vocab"] = {piece: row for row, piece in enumerate(ordered)}
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if left in kept and right in kept and left + right in kept
    ]


def _used(model: Mapping[str, Any], texts: Sequence[str]) -> Iterable[str]:
    """Yield the pieces into which the complete vocabulary splits the texts."""
    whole = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model}))
    for text in texts:
        yield from whole.encode(text.replace(" ", "▁")).tokens


def _spread(by_id: Sequence[str]) -> Iterable[str]:
    """Yield words by rank, and after every eighth word a character of another script."""
    words = [piece for piece in by_id if len(piece) > 2]
    others = [piece for piece in by_id if len(piece) == 1 and piece > "\u0370" and piece != "▁"]
    for row, word in enumerate(words):
        yield word
        if row % 8 == 0 and row // 8 < len(others):
            yield others[row // 8]


def _built_from(piece: str, parts: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    """Yield a piece and all pieces from which merges create it."""
    yield piece
    for part in parts.get(piece, ()):
        yield from _built_from(part, parts)
