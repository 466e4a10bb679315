"""The size of weights that are stored as pickle, without running it.

A torch file is a zip archive with one entry per storage: its directory gives the bytes of each, but
not which tensor they belong to. Embedding and head are told apart by the config's sizes; the rest
counts as one matrix.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.stored import HIDDEN, LAYERS, VOCAB, declared
from glitchrun.checkpoint.tensors import TensorInfo
from glitchrun.errors import ModelUnavailable

PICKLES = "pytorch_model*.bin"
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def pickle_files(folder: Path) -> tuple[Path, ...]:
    """The pickled weight files that transformers would load from a folder, sorted."""
    return tuple(sorted(folder.glob(PICKLES)))


def sized_tensors(
    files: tuple[Path, ...], config: Mapping[str, Any], source: Path
) -> dict[str, TensorInfo]:
    """Stand-ins for the tensors, right in their sum; `rest` is everything but embedding and head.

    Raises ModelUnavailable when a file is no torch archive, or `source` (config.json) does not name
    the vocabulary's size, or names sizes that the files have no room for.
    """
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = _BYTES.get(dtype, 4)
    vocab, hidden = _size(config, VOCAB, source), _size(config, HIDDEN, source)
    table = TensorInfo(dtype, (vocab, hidden), vocab * hidden * width)
    tensors = {"embed_tokens.weight": table}
    if config.get("tie_word_embeddings") is False:
        tensors["lm_head.weight"] = table
    storages = [size for file in files for size in _storages(file)]
    _check_room(config, table, storages, source)
    left = sum(storages) - sum(info.nbytes for info in tensors.values())
    rows = max(0, left) // (hidden * width)
    tensors["rest"] = TensorInfo(dtype, (rows, hidden), rows * hidden * width)
    return tensors


def _size(config: Mapping[str, Any], names: tuple[str, ...], source: Path) -> int:
    size = declared(config, names, source)
    if size is None:
        raise ModelUnavailable(f"{source}: there is no {' or '.join(names)} in it")
    return size


def _check_room(
    config: Mapping[str, Any], table: TensorInfo, storages: list[int], source: Path
) -> None:
    """A layer takes a storage at least, and the embedding the bytes of the largest one."""
    layers = declared(config, LAYERS, source) or 0
    if layers > len(storages):
        raise ModelUnavailable(
            f"{source}: {layers:,} layers, but the weights hold {len(storages):,} tensors; "
            "config.json and weights do not belong together"
        )
    # The config's dtype may be wider than the stored one, by 4 bytes to 1 at most.
    if table.nbytes > 4 * max(storages, default=0):
        raise ModelUnavailable(
            f"{source}: a vocabulary of {table.shape[0]:,} by {table.shape[1]:,} takes "
            f"{table.nbytes:,} bytes, but the largest tensor stored has {max(storages):,}; "
            "config.json and weights do not belong together"
        )


def _storages(file: Path) -> list[int]:
    """Bytes of every storage in a torch archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            return [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename]
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelUnavailable(f"{file}: not a readable torch archive ({error})") from error
