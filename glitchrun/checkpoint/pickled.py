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

from glitchrun.checkpoint.shape import Shape
from glitchrun.checkpoint.tensors import TensorInfo
from glitchrun.errors import ModelUnavailable

PICKLES = "pytorch_model*.bin"
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def pickle_files(folder: Path) -> tuple[Path, ...]:
    """The pickled weight files that transformers would load from a folder, sorted."""
    return tuple(sorted(folder.glob(PICKLES)))


def sized_tensors(
    files: tuple[Path, ...], config: Mapping[str, Any], shape: Shape
) -> dict[str, TensorInfo]:
    """Stand-ins for the tensors, right in their sum; `rest` is everything but embedding and head.

    Raises ModelUnavailable when a file is no torch archive or the config does not name the
    vocabulary's size.
    """
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = _BYTES.get(dtype, 4)
    vocab = config.get("vocab_size")
    if type(vocab) is not int or vocab < 1:
        raise ModelUnavailable(f"{files[0].parent / 'config.json'}: there is no vocab_size in it")
    table = TensorInfo(dtype, (vocab, shape.hidden), vocab * shape.hidden * width)
    tensors = {"embed_tokens.weight": table}
    if config.get("tie_word_embeddings") is False:
        tensors["lm_head.weight"] = table
    left = sum(map(_storage_bytes, files)) - sum(info.nbytes for info in tensors.values())
    rows = max(0, left) // (shape.hidden * width)
    tensors["rest"] = TensorInfo(dtype, (rows, shape.hidden), rows * shape.hidden * width)
    return tensors


def _storage_bytes(file: Path) -> int:
    try:
        with zipfile.ZipFile(file) as archive:
            return sum(
                entry.file_size for entry in archive.infolist() if "/data/" in entry.filename
            )
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelUnavailable(f"{file}: not a readable torch archive ({error})") from error
