"""A fingerprint of a model's contents that does not read all of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from glitchrun.checkpoint.gguf_header import read_gguf
from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import ModelUnavailable

# The files besides the weights that affect a result: dimensions, tokenizer, chat template.
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
# Less common files: tokenizers of other families, a processor's template, named templates. They
# come last, so that the fingerprints of folders without them do not change.
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
_READ_WHOLE = 32 * 1024**2
_BLOCK = 16 * 1024
# A block at least every 8 MiB, so that a change of a whole matrix of that size is always noticed.
# For 90 GB of weights, 190 MB are read.
_STRIDE = 8 * 1024**2
_MIN_BLOCKS = 256


def fingerprint(checkpoint: Checkpoint, header: Header, *, code: bool = False) -> str:
    """SHA-256 (hex) of a model's contents: equal for equal files, regardless of their location.

    It covers config.json, the tokenizer's files, chat templates, an adapter's files, and weight
    files up to 32 MiB completely. Of larger weight files it covers the size, the header, and
    evenly spaced blocks of 16 KiB, at least one every 8 MiB. Training changes every block; an edit
    of a few rows of a large matrix can remain unnoticed. Of generation_config.json it covers the
    end-of-text tokens, where they differ from those of config.json. With `code`
    (model.trust_remote_code) it also covers the Python files of the folder.

    Raises ModelUnavailable where a file cannot be read.
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
    """Yield named byte strings in an order that depends on the contents alone."""
    folder = checkpoint.path if checkpoint.kind == "folder" else None
    if folder is not None:
        for name in _SIDE_FILES:
            if (folder / name).is_file():
                yield name, (folder / name).read_bytes()
    for number, file in enumerate(header.files):
        # The name of a weight file does not count; shards are distinguished by their order.
        yield f"size {number}", str(file.stat().st_size).encode()
        for at, chunk in _samples(file, _header_bytes(file, header)):
            yield f"weights {number} at {at}", chunk
    for file in header.adapter.files if header.adapter else ():
        yield f"adapter {file.name}", file.read_bytes()
    if folder is not None:
        yield from _rarer_pieces(folder, header, code=code)


def _rarer_pieces(folder: Path, header: Header, *, code: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the files that few folders have or few runs read."""
    for pattern in _RARER_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                yield file.relative_to(folder).as_posix(), file.read_bytes()
    end_ids = _other_end_ids(folder, header)
    if end_ids is not None:
        yield _GENERATION, end_ids
    if code:
        for file in filter(Path.is_file, sorted(folder.rglob(_CODE))):
            yield file.relative_to(folder).as_posix(), file.read_bytes()


def _other_end_ids(folder: Path, header: Header) -> bytes | None:
    """The end-of-text ids of generation_config.json, as JSON.

    None where the file is missing or the ids are those of config.json.
    """
    file = folder / _GENERATION
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        ids = json.loads(content)["eos_token_id"]
    except (ValueError, RecursionError, KeyError, TypeError):  # loading reports it
        return content
    return None if ids == header.config.get("eos_token_id") else json.dumps(ids).encode()


def _header_bytes(file: Path, header: Header) -> int:
    if header.format == "gguf":
        return read_gguf(file).data_start
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little") if header.format == "safetensors" else 0


def _samples(file: Path, header_bytes: int) -> Iterator[tuple[int, bytes]]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= _READ_WHOLE:
            yield 0, opened.read()
            return
        yield 0, opened.read(header_bytes)
        span = size - header_bytes - _BLOCK
        count = max(_MIN_BLOCKS, span // _STRIDE + 2)
        for index in range(count):
            at = header_bytes + span * index // (count - 1)
            opened.seek(at)
            yield at, opened.read(_BLOCK)
