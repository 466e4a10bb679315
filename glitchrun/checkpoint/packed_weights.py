"""Weights that are quantized on disk: the name of their format, and how many weights they are.

Their tensors are codes, several of which may share an element, with scales beside them. Sizes of
tensors are therefore not numbers of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.safetensors_files import TensorInfo

_SCALES = re.compile(
    r"(absmax|quant_map|quant_state\.\w+|SCB|weight_format|scale(s|_inv|_\d)?|q?zeros|zero_points?"
    r"|g_idx|weight_shape)$"
)
"""The last part of the names of what is stored beside codes."""
_WORDS = ("int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
"""dtypes of tensors of codes. Other quantized weights are elements of a float of 8 bits."""
_METHOD_BITS = {"mxfp4": 4, "nvfp4": 4, "fp_quant": 4}
_MOST_BITS = 8
_NOT_WEIGHTS = ("input_activations", "output_activations", "kv_cache_scheme")
"""Settings of compressed-tensors whose numbers of bits are not those of weights."""
_UNPACKED_ON_CPU = ("fp8",)
"""Methods whose weights transformers converts to floats where it finds no GPU."""
_LEAST_CAPABILITY = {"fp8": 8.9, "mxfp4": 7.5}
"""CUDA compute capability below which it converts the weights of a method to floats."""
_TRITON = ("mxfp4",)
"""Methods whose weights it converts to floats where the packages of their kernels are missing."""


def stored_format(header: Header) -> str | None:
    """The name of the format in which weights are quantized on disk, with its bits where the name
    of the method does not say them: `fp8`, `mxfp4`, `gptq 4-bit`, `bitsandbytes nf4`; None for
    floats."""
    method = header.prequantized
    if not method:
        return None
    settings = _settings(header)
    if method == "bitsandbytes":
        four = settings.get("load_in_4bit")
        kind = settings.get("bnb_4bit_quant_type") or "fp4"
        return f"{method} {kind if four else 'int8'}"
    if re.search(r"\d", method):
        return method
    bits = _bits(header)
    return method if bits is None else f"{method} {bits}-bit"


def becomes_floats(header: Header, kind: str, capability: float | None = None) -> bool:
    """Whether transformers converts the stored weights to floats while it loads them on a kind of
    device, because it cannot compute with them there. They then take the memory of floats.

    Args:
        header: The checkpoint.
        kind: Kind of device, cpu or cuda.
        capability: CUDA compute capability of the device; None where it is not known.
    """
    least = _LEAST_CAPABILITY.get(header.prequantized or "")
    if least is not None and capability is not None and capability < least:
        return True
    if header.prequantized in _UNPACKED_ON_CPU:
        return kind == "cpu"
    return header.prequantized in _TRITON and not (find_spec("triton") and find_spec("kernels"))


def elements(header: Header, name: str, info: TensorInfo) -> int:
    """Weights that a stored tensor represents: more than it has elements if codes share them, and
    none if it contains scales."""
    if not header.prequantized:
        return info.numel
    if _SCALES.search(name):
        return 0
    if info.dtype in _WORDS or f"{name}.absmax" in header.tensors:
        return info.nbytes * 8 // (_bits(header) or _MOST_BITS)
    return info.numel


def _settings(header: Header) -> Mapping[str, Any]:
    found = header.config.get("quantization_config") or header.config.get("quantization")
    return found if isinstance(found, dict) else {}


def _bits(header: Header) -> int | None:
    """Bits of a weight; None where the configuration does not say it."""
    if header.prequantized in _METHOD_BITS:
        return _METHOD_BITS[header.prequantized]
    for key, value in _fields(_settings(header)):
        if key in ("load_in_4bit", "load_in_8bit") and value is True:
            return int(key[8])
        is_bits = key in ("bits", "w_bit", "num_bits", "nbits") and type(value) is int
        if is_bits and 1 <= value <= _MOST_BITS:
            return int(value)
    return None


def _fields(settings: Mapping[str, Any], depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The settings of weights and those in maps below them, outermost first."""
    yield from settings.items()
    for name, value in settings.items():
        if isinstance(value, dict) and depth and name not in _NOT_WEIGHTS:
            yield from _fields(value, depth - 1)
