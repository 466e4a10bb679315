"""The units of a streamed checkpoint whose matrices are kept in int8 or int4, in the cache folder.

Each unit with matrices has a safetensors file of its own with codes and scales; what is not
quantized (norms, biases, routers, embedding, head) is read from the checkpoint as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from glitchrun.checkpoint.safetensors_files import TensorInfo, tensor_offsets
from glitchrun.checkpoint.stream_units import TensorPlace, Unit, Units

_BLOCK, _SCALE_BLOCK = 64, 256
"""Weights that share a scale in int4, and scales that share a second-level one."""
_FUSED = ("gate_proj", "up_proj")
"""A resident model quantizes these of an expert as one matrix."""


def matrices(unit: Unit) -> dict[str, tuple[tuple[str, ...], tuple[int, int]]]:
    """The matrices of a unit that are quantized.

    Returns:
        By name: the tensors that are joined along their rows, and the shape `(R, K)` of all.
    """
    found: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {}
    if unit.kind == "expert":
        rows, columns = unit.tensors["gate_proj"].info.shape
        found["gate_up_proj"] = _FUSED, (2 * rows, columns)
        down, inner = unit.tensors["down_proj"].info.shape
        found["down_proj"] = ("down_proj",), (down, inner)
    elif unit.kind == "layer":
        for name, place in unit.tensors.items():
            if name.endswith("_proj.weight"):
                rows, columns = place.info.shape
                found[name] = (name,), (rows, columns)
    return found


def file_of(folder: Path, unit: Unit) -> Path:
    """The file of a unit's matrices in a folder of kept ones."""
    expert = f"-expert-{unit.expert}" if unit.kind == "expert" else ""
    return folder / f"layer-{unit.layer}{expert}.safetensors"


def quantized_units(units: Units, scheme: str, folder: Path | None = None) -> Units:
    """The units with their matrices in int8 or int4.

    Args:
        units: Those of the checkpoint.
        scheme: `int8` or `int4`.
        folder: Where the matrices are kept; None for sizes alone, before they exist.

    Raises:
        ModelUnavailable: a kept file is damaged.
    """
    layers = tuple(
        tuple(_quantized(unit, scheme, folder) for unit in layer) for layer in units.layers
    )
    return replace(units, layers=layers)


def _quantized(unit: Unit, scheme: str, folder: Path | None) -> Unit:
    wanted = matrices(unit)
    if not wanted:
        return unit
    joined = {part for parts, _ in wanted.values() for part in parts}
    tensors = {name: place for name, place in unit.tensors.items() if name not in joined}
    if folder is None:
        return replace(unit, tensors=tensors | dict(_sizes(wanted, scheme)))
    file = file_of(folder, unit)
    stored = tensor_offsets(file).items()
    return replace(
        unit, tensors=tensors | {name: TensorPlace(info, file, at) for name, (info, at) in stored}
    )


def _sizes(
    wanted: Mapping[str, tuple[tuple[str, ...], tuple[int, int]]], scheme: str
) -> Iterator[tuple[str, TensorPlace]]:
    for name, (_, (rows, columns)) in wanted.items():
        blocks = -(-rows * columns // _BLOCK)
        sizes: dict[str, tuple[str, tuple[int, ...], int]] = {
            "codes": ("int8", (1, rows, columns), 1),
            "scales": ("float32", (1, rows), 4),
        }
        if scheme == "int4":
            sizes = {
                "codes": ("uint8", (1, blocks * _BLOCK // 2, 1), 1),
                "scales": ("uint8", (1, blocks), 1),
                "scale_scales": ("float32", (1, -(-blocks // _SCALE_BLOCK)), 4),
                "offsets": ("float32", (1,), 4),
            }
        for part, (dtype, shape, width) in sizes.items():
            info = TensorInfo(dtype, shape, 0)
            info = replace(info, nbytes=info.numel * width)
            yield f"{name}.{part}", TensorPlace(info, Path(), 0)
