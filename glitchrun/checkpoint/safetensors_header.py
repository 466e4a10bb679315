"""The header of a safetensors file, read and checked without touching the weights.

Layout: 8 bytes with the header's length N (unsigned, little-endian), N bytes of JSON, then the
tensors' bytes. The checks are those of the format's reference implementation: the tensors must
cover the rest of the file without gap or overlap, and each shape must agree with its bytes.
Source: https://huggingface.co/docs/safetensors (format section).
"""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from glitchrun.checkpoint.tensors import SAFETENSORS_DTYPES, TensorInfo
from glitchrun.errors import ModelUnavailable

_LENGTH = struct.Struct("<Q")
# The reference implementation refuses longer headers too; the largest real ones take a few MB.
MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 64


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file by name.

    Raises ModelUnavailable when the file cannot be read, is cut short, or its header is not sound.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = _raw_header(path, size, file.read(_LENGTH.size), file.read)
    except OSError as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error.strerror})") from error
    entries = _parse(path, raw)
    entries.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in entries.items()}
    _check_cover(path, spans, size - _LENGTH.size - len(raw))
    return {name: info for name, (info, _, _) in spans.items()}


def _raw_header(path: Path, size: int, prefix: bytes, read: Any) -> bytes:
    if len(prefix) < _LENGTH.size:
        raise _broken(path, f"{size} bytes are too few for a safetensors file")
    (length,) = _LENGTH.unpack(prefix)
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH.size):
        raise _broken(path, f"a header of {length} bytes is announced in a file of {size} bytes")
    raw: bytes = read(length)
    return raw


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"the header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _broken(path, "the header is not a JSON object")
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _span(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """One tensor with the place of its bytes, counted from the end of the header."""
    if not isinstance(entry, dict):
        raise _broken(path, f"tensor {name!r} is described by {type(entry).__name__}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise _broken(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        raise _broken(path, f"tensor {name!r} has a shape that is none")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _broken(path, f"tensor {name!r} has data_offsets that are none")
    label, bits = SAFETENSORS_DTYPES[dtype]
    begin, end = offsets
    if prod(shape) * bits != (end - begin) * 8:
        raise _broken(path, f"tensor {name!r}: shape {shape} does not fit {end - begin} bytes")
    return TensorInfo(label, tuple(shape), end - begin), begin, end


def _naturals(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of integers from 0 to 2**63 (JSON's true is none)."""
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in value
    )


def _check_cover(path: Path, spans: dict[str, tuple[TensorInfo, int, int]], available: int) -> None:
    """The tensors' bytes must follow one another from 0 to the end of the file."""
    at = 0
    for name, (_, begin, end) in sorted(spans.items(), key=lambda item: item[1][1:]):
        if begin != at:
            raise _broken(path, f"tensor {name!r} begins at byte {begin}, expected {at}")
        at = end
    if at != available:
        raise _broken(path, f"the tensors take {at} bytes, the file holds {available}")


def _broken(path: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{path}: not a sound safetensors file: {why}. It may be cut short; fetch it again"
    )
