"""The header of a GGUF file, read and checked without touching the weights.

The package gguf can read it too, but builds a numpy view of every token: 3 s for SmolLM2's 49,152
tokens, against 0.1 s here. `plan` should answer within two seconds.
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

from glitchrun.checkpoint.safetensors_files import TensorInfo
from glitchrun.errors import ModelUnavailable

# GGML's types by number: name, elements per block, bytes per block. Source: gguf 0.19,
# gguf.constants.GGML_QUANT_SIZES; a test compares the two.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

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
_KEPT_ARRAY = 1024  # enough for one number per layer; token types and scores are longer
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensors of a GGUF file."""

    metadata: dict[str, Any]
    """Scalars unchanged; the first 1,024 items of an array of numbers; the length of any other
    array (tokens, merges). Arrays that were requested whole are complete lists."""
    tensors: dict[str, TensorInfo]
    """By name."""
    data_start: int
    """Offset in the file of the tensors' bytes."""


def read_gguf(path: Path, whole: Collection[str] = ()) -> GgufHeader:
    """The header of a GGUF file (version 2 or 3, little-endian).

    `whole` names the keys whose arrays of numbers or strings are read completely.

    Raises ModelUnavailable where the file cannot be read, is cut short, or its header is unsound.
    """
    try:
        if not path.stat().st_size:
            raise _broken(path, "it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, whole).header()
    except OSError as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error.strerror})") from error


class _Reader:
    """Reads values one after another and checks each against the end of the file."""

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
        """Check that `count` items of at least `least` bytes fit into the rest of the file."""
        if count * least > self.size - self.at:
            raise _broken(self.path, f"it announces {count} items and is too short for them")
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
        """Skip strings. This is the hot loop of the reader, so it uses local names."""
        data, at, size = self.data, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise _broken(self.path, f"it ends inside its header, at byte {size}")
            at += 8 + unpack(data, at)[0]
        self.at = min(at, size)  # past the end, the next read raises

    def tensor(self) -> tuple[str, TensorInfo, int]:
        """A tensor's name, description, and offset in bytes from the start of the data."""
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
        """Check that all tensors lie inside the file and do not overlap."""
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
