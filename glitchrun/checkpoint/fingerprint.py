"""The identity of a model's contents, without reading all of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from glitchrun.checkpoint.gguf_header import read_gguf
from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import ModelUnavailable

# Beside the weights, what decides a result: sizes, how text becomes ids, how a chat is written.
_SIDE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Less common files: tokenizers of other families, a processor's template, named templates.
# They are listed separately so that fingerprints of folders without them do not change.
_RARER_FILES = (
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "tokenizer.model.v*",
    "tekken.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece*.model",
    "source.spm",
    "*.tiktoken",
    "processor_config.json",
    "preprocessor_config.json",
)
_GENERATION = "generation_config.json"
_CODE = "*.py"
_VERSION = b"glitchrun fingerprint 1"
_WHOLE = 32 * 1024**2
_BLOCK = 16 * 1024
# A block at least every 8 MiB, so that no matrix of that size can change unseen; in 90 GB of
# weights that is 190 MB to read.
_EVERY = 8 * 1024**2
_LEAST_BLOCKS = 256


def fingerprint(checkpoint: Checkpoint, header: Header, *, code: bool = False) -> str:
    """SHA-256 (hex) of a model's contents: equal bytes give equal values wherever they lie.

    Covers config.json, the tokenizer's files, chat templates and an adapter's files whole, weight
    files up to 32 MiB whole, and of larger ones the size, the header, and 16 KiB blocks spread
    evenly, one every 8 MiB or closer. Training changes every block; an edit of a few rows of a
    large matrix can go unseen. Of generation_config.json it covers the tokens that end a text,
    where they are not those of config.json; with `code` (model.trust_remote_code) also the Python
    files of the folder.
    Raises ModelUnavailable when a file cannot be read.
    """
    digest = hashlib.sha256(_VERSION)
    try:
        for name, chunk in _pieces(checkpoint, header, code=code):
            digest.update(f"\0{name}\0{len(chunk)}\0".encode())
            digest.update(chunk)
    except OSError as error:
        raise ModelUnavailable(f"{error.filename}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _pieces(checkpoint: Checkpoint, header: Header, *, code: bool) -> Iterator[tuple[str, bytes]]:
    """Named byte strings, in an order that depends on the contents alone."""
    folder = checkpoint.path if checkpoint.kind == "folder" else None
    if folder is not None:
        for name in _SIDE_FILES:
            if (folder / name).is_file():
                yield name, (folder / name).read_bytes()
    for number, file in enumerate(header.files):
        # A GGUF file's own name says nothing; shards are told apart by their order.
        yield f"size {number}", str(file.stat().st_size).encode()
        for at, chunk in _samples(file, _header_bytes(file, header)):
            yield f"weights {number} at {at}", chunk
    for file in header.adapter.files if header.adapter else ():
        yield f"adapter {file.name}", file.read_bytes()
    if folder is not None:
        yield from _rarer_pieces(folder, header, code=code)


def _rarer_pieces(folder: Path, header: Header, *, code: bool) -> Iterator[tuple[str, bytes]]:
    """Files that few folders have or few runs read."""
    for pattern in _RARER_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                yield file.relative_to(folder).as_posix(), file.read_bytes()
    ends = _own_ends(folder, header)
    if ends is not None:
        yield _GENERATION, ends
    if code:
        for file in filter(Path.is_file, sorted(folder.rglob(_CODE))):
            yield file.relative_to(folder).as_posix(), file.read_bytes()


def _own_ends(folder: Path, header: Header) -> bytes | None:
    """The end-of-text ids of generation_config.json; None where they are those of config.json
    or the file is missing."""
    file = folder / _GENERATION
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        said = json.loads(content)["eos_token_id"]
    except (ValueError, RecursionError, KeyError, TypeError):  # loading has the last word on it
        return content
    return None if said == header.config.get("eos_token_id") else json.dumps(said).encode()


def _header_bytes(file: Path, header: Header) -> int:
    if header.format == "gguf":
        return read_gguf(file).data_start
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little") if header.format == "safetensors" else 0


def _samples(file: Path, header_bytes: int) -> Iterator[tuple[int, bytes]]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= _WHOLE:
            yield 0, opened.read()
            return
        yield 0, opened.read(header_bytes)
        span = size - header_bytes - _BLOCK
        count = max(_LEAST_BLOCKS, span // _EVERY + 2)
        for index in range(count):
            at = header_bytes + span * index // (count - 1)
            opened.seek(at)
            yield at, opened.read(_BLOCK)
