"""The header of a GGUF file, read and checked without touching the weights.

The package gguf reads this too, but builds numpy views of every token on the way: 3 s for
SmolLM2's 49,152 tokens against 0.1 s here, where `plan` is to answer within two.
Layout: magic, version, tensor count, key count, key-value pairs, tensor descriptions, padding, the
tensors' bytes. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.tensors import GGML_TYPES, TensorInfo
from glitchrun.errors import ModelUnavailable

_STRING, _ARRAY = 8, 9
# Scalar value types by number, as struct codes; 7 is a bool in one byte.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_VERSIONS = (2, 3)
_MAX_RANK = 4  # GGML_MAX_DIMS
_MAX_NAME = 65_535
_MAX_NESTING = 4
_KEPT_ARRAY = 1024  # enough for numbers given per layer; token types and scores are longer
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufHeader:
    metadata: dict[str, Any]
    """Every key: scalars as they are, of an array of numbers the first 1,024, of any other array
    (tokens, merges) its length; arrays that were asked for whole, as lists."""
    tensors: dict[str, TensorInfo]
    data_start: int
    """Where the tensors' bytes begin in the file."""


def read_gguf(path: Path, whole: Collection[str] = ()) -> GgufHeader:
    """The header of a GGUF file (version 2 or 3, little-endian).

    `whole` names keys whose arrays of numbers or strings are read to their ends.

    Raises ModelUnavailable when the file cannot be read, is cut short, or its header is not sound.
    """
    try:
        if not path.stat().st_size:
            raise _broken(path, "it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, whole).header()
    except OSError as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error.strerror})") from error


class _Reader:
    """A position in the file that moves over what it reads and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap, whole: Collection[str]) -> None:
        self.path = path
        self.whole = whole
        self.data = data
        self.size = len(data)
        self.at = 0

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise _broken(self.path, "it does not start with the bytes GGUF")
        version = self.number("<I")
        if version not in _VERSIONS:
            raise _broken(self.path, f"version {version} is not one of {_VERSIONS}")
        tensor_count, key_count = self.number("<Q"), self.number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(self.bounded(key_count, 13)):
            key = self.string()
            metadata[key] = self.value(self.number("<I"), whole=key in self.whole)
        places = [self.tensor() for _ in range(self.bounded(tensor_count, 24))]
        start = self.aligned(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        self.check_cover(places, start)
        tensors = {name: info for name, info, _ in places}
        if len(tensors) < len(places):
            raise _broken(self.path, "a tensor's name occurs twice")
        return GgufHeader(metadata, tensors, start)

    def take(self, length: int) -> bytes:
        if length > self.size - self.at:
            raise _broken(self.path, f"it ends inside its header, at byte {self.size}")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def bounded(self, count: int, least: int) -> int:
        """A count, when that many items of at least `least` bytes can still follow."""
        if count * least > self.size - self.at:
            raise _broken(self.path, f"it announces {count} items and has no room for them")
        return count

    def string(self, limit: int = _MAX_NAME) -> str:
        length = self.number("<Q")
        if length > limit:
            raise _broken(self.path, f"a name of {length} bytes at byte {self.at}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _broken(self.path, f"a name that is not UTF-8 at byte {self.at}") from error

    def value(self, kind: int, depth: int = 0, *, whole: bool = False) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth >= _MAX_NESTING:
            raise _broken(self.path, f"a value of the unknown type {kind} at byte {self.at}")
        return self.array(depth, whole=whole)

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def array(self, depth: int, *, whole: bool) -> Any:
        """The first numbers of an array of numbers; of any other array, its length."""
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            raw = self.take(self.bounded(count, width) * width)
            kept = raw if whole else raw[: width * _KEPT_ARRAY]
            return [v for (v,) in struct.iter_unpack(_SCALARS[kind], kept)]
        if kind == _STRING and whole:
            return [self.text() for _ in range(self.bounded(count, 8))]
        if kind == _STRING:
            self.skip_strings(self.bounded(count, 8))
            return count
        for _ in range(self.bounded(count, 12)):
            self.value(kind, depth + 1)
        return count

    def skip_strings(self, count: int) -> None:
        """Pass over strings; the hot loop of the whole reader, so it works on local names."""
        data, at, size = self.data, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise _broken(self.path, f"it ends inside its header, at byte {size}")
            at += 8 + unpack(data, at)[0]
        self.at = min(at, size)  # past the end, the next read says so

    def tensor(self) -> tuple[str, TensorInfo, int]:
        """A tensor's name, description, and offset from the start of the data."""
        name = self.string()
        rank = self.number("<I")
        if rank > _MAX_RANK:
            raise _broken(self.path, f"tensor {name!r} has {rank} dimensions")
        # GGML counts from the innermost dimension, torch from the outermost.
        shape = tuple(reversed([self.number("<Q") for _ in range(rank)]))
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in GGML_TYPES:
            raise _broken(self.path, f"tensor {name!r} has the unknown type {kind}")
        label, block, block_bytes = GGML_TYPES[kind]
        if shape and shape[-1] % block:
            raise _broken(self.path, f"tensor {name!r}: {shape[-1]} columns in blocks of {block}")
        return name, TensorInfo(label, shape, prod(shape) // block * block_bytes), offset

    def aligned(self, alignment: Any) -> int:
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _broken(self.path, f"general.alignment {alignment!r} is not a power of two")
        return -(-self.at // alignment) * alignment

    def check_cover(self, places: list[tuple[str, TensorInfo, int]], start: int) -> None:
        """Every tensor's bytes lie inside the file, and no two share any."""
        at = 0
        for name, info, offset in sorted(places, key=lambda place: (place[2], place[1].nbytes)):
            if offset < at:
                raise _broken(self.path, f"tensor {name!r} begins inside another, at {offset}")
            at = offset + info.nbytes
        if start + at > self.size:
            raise _broken(self.path, f"the tensors end at byte {start + at} of {self.size}")


def _broken(path: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{path}: not a sound GGUF file: {why}. It may be cut short; fetch it again"
    )
