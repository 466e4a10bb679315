"""The safetensors files of a checkpoint: which ones, and the tensors that their headers list.

A file has 8 bytes with the header's length N (unsigned, little-endian), N bytes of JSON, then the
tensors' bytes. The checks are those of the format's reference implementation: the tensors must
cover the rest of the file without gap or overlap, and each shape must agree with its bytes.
Source: https://huggingface.co/docs/safetensors (format section).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from glitchrun.checkpoint.resolve import SHARD_INDEX, SINGLE_FILE, read_json
from glitchrun.errors import ModelUnavailable

# torch's name and the bits per element, by the format's name. Smaller types are packed into bytes.
# Source: `Dtype` in the safetensors format's reference implementation.
SAFETENSORS_DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1", 4),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}

_LENGTH = struct.Struct("<Q")
# The reference implementation refuses longer headers too; the largest real ones take a few MB.
MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 64
_PICKLES = "pytorch_model*.bin"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint as its header describes it."""

    dtype: str
    """torch's name (`bfloat16`), or GGML's (`Q4_1`) in a GGUF file."""
    shape: tuple[int, ...]
    """Outermost dimension first, as in torch: (rows, columns) for a matrix."""
    nbytes: int
    """Bytes in the file."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether `model.quantization` can change its dtype: a float of 16 bits or more."""
        return self.dtype in ("float16", "bfloat16", "float32", "float64")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint folder: `model.safetensors`, or the index's shards.

    Raises ModelUnavailable where a file is missing or the folder has no weights.
    """
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    index = folder / SHARD_INDEX
    if not index.is_file():
        raise ModelUnavailable(_no_weights(folder))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelUnavailable(f"{index}: there is no weight_map in it; fetch the file again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelUnavailable(f"{index}: the shard {name!r} is not a file name")
        if not (folder / name).is_file():
            raise ModelUnavailable(f"{folder / name}: this shard is missing; fetch it again")
    return tuple(folder / name for name in names)


def has_safetensors(folder: Path) -> bool:
    """Whether the folder has safetensors weights or an index of them."""
    return (folder / SINGLE_FILE).is_file() or (folder / SHARD_INDEX).is_file()


def pickle_files(folder: Path) -> tuple[Path, ...]:
    """The pickled weight files that transformers would load from a folder, sorted."""
    return tuple(sorted(folder.glob(_PICKLES)))


def _no_weights(folder: Path) -> str:
    pickles = pickle_files(folder)
    if pickles:
        return (
            f"{folder}: the weights are available only as pickle ({pickles[0].name}), which runs "
            "code when it is read. Convert them to safetensors, or set model.allow_pickle: true if "
            "you trust their source"
        )
    return f"{folder}: there are no weights: neither {SINGLE_FILE} nor {SHARD_INDEX}"


def read_all_tensors(folder: Path, files: tuple[Path, ...]) -> dict[str, TensorInfo]:
    """The tensors of all files of a checkpoint, by name.

    Raises ModelUnavailable for an unsound file, and where shards and index disagree.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        found = read_safetensors(file)
        twice = tensors.keys() & found.keys()
        if twice:
            raise ModelUnavailable(f"{file}: the tensor {min(twice)!r} is in another shard too")
        tensors |= found
    index = folder / SHARD_INDEX
    if files[0].name != SINGLE_FILE:
        absent = read_json(index)["weight_map"].keys() - tensors.keys()
        if absent:
            raise ModelUnavailable(f"{index}: no shard has the tensor {min(absent)!r}")
    return tensors


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name.

    Raises ModelUnavailable where the file cannot be read, is cut short, or its header is unsound.
    """
    return {name: info for name, (info, _) in tensor_offsets(path).items()}


def tensor_offsets(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """The tensors of one safetensors file with the offset of their first byte in it, by name.

    Raises ModelUnavailable as `read_safetensors` does.
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
    start = _LENGTH.size + len(raw)
    _check_cover(path, spans, size - start)
    return {name: (info, start + begin) for name, (info, begin, _) in spans.items()}


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
    """A tensor with the begin and end of its bytes, counted from the end of the header."""
    if not isinstance(entry, dict):
        raise _broken(path, f"tensor {name!r} is described by {type(entry).__name__}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise _broken(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        raise _broken(path, f"tensor {name!r} has an invalid shape")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _broken(path, f"tensor {name!r} has invalid data_offsets")
    label, bits = SAFETENSORS_DTYPES[dtype]
    begin, end = offsets
    if prod(shape) * bits != (end - begin) * 8:
        raise _broken(path, f"tensor {name!r}: shape {shape} does not fit {end - begin} bytes")
    return TensorInfo(label, tuple(shape), end - begin), begin, end


def _naturals(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of integers from 0 to 2**63 (JSON's true is not one)."""
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in value
    )


def _check_cover(path: Path, spans: dict[str, tuple[TensorInfo, int, int]], available: int) -> None:
    """Check that the tensors' bytes follow one another from 0 to the end of the file."""
    at = 0
    for name, (_, begin, end) in sorted(spans.items(), key=lambda item: item[1][1:]):
        if begin != at:
            raise _broken(path, f"tensor {name!r} begins at byte {begin}, expected {at}")
        at = end
    if at != available:
        raise _broken(path, f"the tensors take {at} bytes, the file has {available}")


def _broken(path: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{path}: not a sound safetensors file: {why}. It may be cut short; fetch it again"
    )
