"""Keeps the int8 or int4 matrices of a streamed model in the cache folder, quantized once.

Without it, every pass reads the stored weights and quantizes them again. A folder is written under
a temporary name and renamed when it is complete; a lock lets a second process wait for the first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from glitchrun.errors import PreflightError
from glitchrun.events import Stage
from glitchrun.model.library_messages import Report
from glitchrun.model.quantized_layers import SCHEMES
from glitchrun.model.weight_reader import read_tensor
from glitchrun.spec.digest import file_digest

_VERSION = 1
"""Of the kept files. Increase it when they change."""
_CHECKSUMS = "checksums.json"
"""The SHA-256 of each kept file, by its name."""
_checked: dict[Path, tuple[int, ...]] = {}
"""Inode, size and time of change of the files whose checksum was right."""


def kept_units(
    units: Units,
    checkpoint: Checkpoint,
    header: Header,
    scheme: str,
    dtype: torch.dtype,
    cache: Path,
    report: Report,
) -> tuple[Units, str]:
    """The units with matrices that are kept in the cache, quantized now if they are not there.

    Each kept file is compared with its checksum once in a process. A damaged one is written again,
    and the second value says so; else it is empty.

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
    note = ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not (folder / _CHECKSUMS).is_file():
                _write(folder, units, scheme, dtype, report)
            elif damaged := _damaged(folder, units, report):
                for unit in damaged:
                    _replace(folder, unit, scheme, dtype)
                first, more = file_of(folder, damaged[0]), len(damaged) - 1
                others = f" and {more} more" if more else ""
                note = (
                    f"the kept weights in {first}{others} were damaged (their checksum differs, or "
                    "they cannot be read); they were quantized again from the checkpoint"
                )
    except (OSError, SafetensorError) as error:  # the latter where the disk is full
        raise PreflightError(
            f"the cache {cache} cannot be written: {error}; set {CACHE_VARIABLE} to another "
            "folder, or remove model.keep_quantized"
        ) from error
    return quantized_units(units, scheme, folder), note


def _damaged(folder: Path, units: Units, report: Report) -> list[Unit]:
    """The units whose kept files differ from their checksums. A file that was read in this process
    and has not changed since is not read again."""
    kept = [unit for unit in units.body if matrices(unit)]
    wanted = _known_checksums(folder)
    stage = Stage("checking", len(kept), unit="parts")
    damaged: list[Unit] = []
    for done, unit in enumerate(kept):
        report(stage, done)
        file = file_of(folder, unit)
        try:
            status = file.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if _checked.get(file) == stamp:
                continue
            is_good = file_digest(file) == wanted.get(file.name)
        except OSError:
            is_good = False
        if is_good:
            _checked[file] = stamp
        else:
            damaged.append(unit)
    report(stage, len(kept))
    return damaged


def _replace(folder: Path, unit: Unit, scheme: str, dtype: torch.dtype) -> None:
    """Writes the kept file of a unit again, and its checksum."""
    file, partial = file_of(folder, unit), folder / "partial"
    save_file(_packed(unit, scheme, dtype), partial)
    partial.replace(file)
    _write_checksums(folder, {**_known_checksums(folder), file.name: file_digest(file)})


def _known_checksums(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / _CHECKSUMS).read_text())
    except ValueError:  # which includes bytes that are no text
        return {}
    return known if isinstance(known, dict) else {}


def _write_checksums(folder: Path, known: Mapping[str, str]) -> None:
    partial = folder / "partial"
    partial.write_text(json.dumps(known, indent=0))
    partial.replace(folder / _CHECKSUMS)


def _write(folder: Path, units: Units, scheme: str, dtype: torch.dtype, report: Report) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # without checksums, written by an earlier version
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
    known: dict[str, str] = {}
    for done, unit in enumerate(units.body):
        report(stage, done)
        if matrices(unit):
            file = file_of(partial, unit)
            save_file(_packed(unit, scheme, dtype), file)
            known[file.name] = file_digest(file)
    report(stage, len(units.body))
    _write_checksums(partial, known)
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
