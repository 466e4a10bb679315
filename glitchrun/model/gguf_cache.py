"""A GGUF file as a checkpoint folder: converted once, then found by its content.

transformers needs some 20 s to unpack a 100 MB file and its tokenizer; the same weights as
safetensors load in half a second. A conversion is written beside its place and moved there when
whole, under a lock: a killed one leaves nothing that would be taken for a checkpoint, and two
processes convert one after the other, the second finding the work done.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from glitchrun.errors import MissingExtra, ModelUnavailable, PreflightError
from glitchrun.model.noise import quiet

log = logging.getLogger(__name__)

CONVERTER = 1
"""Raise it when the converted files would change: older conversions are then left aside."""
_UNPACKED = 10
"""Bound on the growth of the weights: from 3.4 bits (Q2_K with its scales) to 32."""


def converted(gguf: Path, cache: Path) -> Path:
    """The folder under `cache` that holds `gguf` as float32 safetensors and a fast tokenizer.

    Converts where it is not there yet, which takes seconds per 100 MB. Raises ModelUnavailable for
    a damaged file or an architecture that transformers does not read, PreflightError when the cache
    cannot be written or the disk is too small.
    """
    folder = conversion(gguf, cache)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _convert_into(folder, gguf)
    except OSError as error:
        raise PreflightError(f"the model cache {cache} cannot be written: {error}") from error
    return folder


def conversion(gguf: Path, cache: Path) -> Path:
    """Where the conversion of a file is or will be."""
    return cache / "gguf" / f"{_sha256(gguf)[:32]}-v{CONVERTER}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_into(folder: Path, gguf: Path) -> None:
    _check_disk(folder.parent, gguf)
    log.warning("converting %s for faster loading, once (into %s)", gguf.name, folder.parent)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed conversion left behind
    with quiet():
        model, tokenizer = load_gguf(gguf)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _check_disk(place: Path, gguf: Path) -> None:
    needed = gguf.stat().st_size * _UNPACKED
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PreflightError(
            f"{gguf}: unpacking it may take {needed / 1e9:.1f} GB in {place}, where "
            f"{free / 1e9:.1f} GB are free; make room, or point the cache elsewhere"
        )


def load_gguf(gguf: Path) -> tuple[Any, Any]:
    """The model, in float32, and the tokenizer, straight from the file (slow).

    Raises ModelUnavailable where transformers cannot read the file.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    with _reading(gguf):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            # Without it a machine with the package `kernels` keeps the blocks packed, and
            # save_pretrained refuses models that are.
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    return model, gguf_tokenizer(gguf)


def gguf_tokenizer(gguf: Path) -> Any:
    """The tokenizer alone; none of the weights is unpacked. Raises as `load_gguf` does."""
    from transformers import AutoTokenizer

    with _reading(gguf):
        return AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )


@contextmanager
def _reading(gguf: Path) -> Iterator[None]:
    try:
        import gguf as _reader  # noqa: F401  transformers only says that "something" is missing
    except ModuleNotFoundError as error:
        raise MissingExtra("gguf") from error
    try:
        yield
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError) as error:
        raise ModelUnavailable(
            f"model.path {str(gguf)!r}: transformers cannot read this GGUF file "
            f"({type(error).__name__}: {error}); it may be damaged, or of an architecture it does "
            "not know, in which case the original checkpoint folder is the way"
        ) from error
