"""Keeps the int8 or int4 matrices of a streamed model in the cache folder, quantized once.

Without it, every pass reads the stored weights and quantizes them again. A folder is written under
a temporary name and renamed when it is complete; a lock lets a second process wait for the first.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from glitchrun.checkpoint.cache_folder import CACHE_VARIABLE
from glitchrun.checkpoint.fingerprint import fingerprint
from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.quantized_units import (
    file_of,
    matrices,
    quantized_units,
)
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.checkpoint.stream_units import Unit, Units
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.events import Stage
from glitchrun.model.load_progress import Report
from glitchrun.model.quantized_layers import SCHEMES
from glitchrun.model.weight_reader import read_tensor

_VERSION = 1
"""Of the kept files. Increase it when they change."""


def kept_units(
    units: Units,
    checkpoint: Checkpoint,
    header: Header,
    scheme: str,
    dtype: torch.dtype,
    cache: Path,
    report: Report,
) -> Units:
    """The units with matrices that are kept in the cache, quantized now if they are not there.

    Args:
        units: Those of the checkpoint.
        checkpoint: Its folder.
        header: Its headers.
        scheme: `int8` or `int4`.
        dtype: The matrices are converted to it before they are quantized, as in memory.
        cache: The cache folder.
        report: Takes how many units are done.

    Raises:
        ModelUnavailable: a weight file cannot be read.
        PreflightError: the cache cannot be written, or the disk is too small.
    """
    name = f"{fingerprint(checkpoint, header)[:32]}-{scheme}-v{_VERSION}-{version('bitsandbytes')}"
    folder = cache / "quantized" / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not _are_there(folder, units, scheme):
                shutil.rmtree(folder, ignore_errors=True)
                _write(folder, units, scheme, dtype, report)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full
        raise PreflightError(
            f"the cache {cache} cannot be written: {error}; set {CACHE_VARIABLE} to another "
            "folder, or remove model.keep_quantized"
        ) from error
    return quantized_units(units, scheme, folder)


def _are_there(folder: Path, units: Units, scheme: str) -> bool:
    """Whether the kept files exist and are complete; a power cut may leave empty ones."""
    try:
        quantized_units(units, scheme, folder)
    except ModelUnavailable:
        return False
    return True


def _write(folder: Path, units: Units, scheme: str, dtype: torch.dtype, report: Report) -> None:
    needed = quantized_units(units, scheme).pass_bytes
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise PreflightError(
            f"model.keep_quantized needs {needed / 1e9:.1f} GB in {folder.parent}, where "
            f"{free / 1e9:.1f} GB are free; free some space, or set {CACHE_VARIABLE} to another "
            "folder"
        )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # from a killed process
    partial.mkdir()
    stage = Stage("quantizing", len(units.body), unit="parts")
    for done, unit in enumerate(units.body):
        report(stage, done)
        save_file(_packed(unit, scheme, dtype), file_of(partial, unit))
    report(stage, len(units.body))
    partial.rename(folder)


def _packed(unit: Unit, scheme: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Codes and scales of a unit's matrices."""
    tensors: dict[str, Tensor] = {}
    for name, (parts, _) in matrices(unit).items():
        whole = torch.cat([read_tensor(unit.tensors[part]).to(dtype) for part in parts])
        quantized = SCHEMES[scheme].quantize(whole[None])
        tensors |= {f"{name}.{part}": buffer for part, buffer in quantized.named_buffers()}
    return tensors


def unpack_kept(tensors: dict[str, Tensor], unit: Unit, scheme: str) -> set[str]:
    """Replaces codes and scales by their matrices in float32, in place.

    Args:
        tensors: Those of a unit by name, such as `down_proj.codes`.
        unit: The unit of the checkpoint, whose tensors have the shapes `(R, K)`.
        scheme: `int8` or `int4`.

    Returns:
        The names of the matrices.
    """
    unpacked: set[str] = set()
    for name, (parts, shape) in matrices(unit).items():
        quantized = SCHEMES[scheme](*shape)
        for key in [key for key in tensors if key.startswith(f"{name}.")]:
            setattr(quantized, key.removeprefix(f"{name}."), torch.nn.Buffer(tensors.pop(key)))
        matrix = quantized.matrix(0, torch.float32)
        found = zip(parts, matrix.chunk(len(parts)), strict=True)
        tensors.update(found)
        unpacked.update(parts)
    return unpacked
