"""A GGUF file as a checkpoint folder: converted once, then found by its content.

transformers needs some 20 s to unpack a 100 MB file and its tokenizer; the same weights as
safetensors load in half a second. A conversion is written beside its place and moved there when
whole, under a lock: a killed one leaves nothing that would be taken for a checkpoint, and two
processes convert one after the other, the second finding the work done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock

from glitchrun.checkpoint.model_cache import CACHE_VARIABLE, size_of
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.model.gguf_tokenizer import describe_split, gguf_tokenizer, reading
from glitchrun.model.noise import quiet

log = logging.getLogger(__name__)

CONVERTER = 2
"""Raise it when the converted files would change: older conversions are then left aside."""
_UNPACKED = 10
"""Bound on the growth of the weights: from 3.4 bits (Q2_K with its scales) to 32."""
_NOTE = "glitchrun.json"


def converted(gguf: Path, cache: Path) -> Path:
    """The folder under `cache` that holds `gguf` as float32 safetensors and a fast tokenizer.

    Converts where it is not there yet, which takes seconds per 100 MB. Raises ModelUnavailable for
    a damaged file or one that cannot be rebuilt, PreflightError when the cache cannot be written
    or the disk is too small.
    """
    folder = conversion(gguf, cache)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if not folder.is_dir():
                _convert_into(folder, gguf)
    except OSError as error:
        raise PreflightError(
            f"the model cache {cache} cannot be written: {error}; set {CACHE_VARIABLE} to another "
            "folder"
        ) from error
    return folder


def conversion(gguf: Path, cache: Path) -> Path:
    """Where the conversion of a file is or will be.

    Raises ModelUnavailable where the file cannot be read.
    """
    made_by = f"v{CONVERTER}-transformers-{transformers.__version__}"
    try:
        return cache / "gguf" / f"{_sha256(gguf)[:32]}-{made_by}"
    except OSError as error:
        raise ModelUnavailable(f"{gguf}: cannot be read ({error.strerror})") from error


def tokenizer_note(folder: Path) -> str:
    """How the text of a converted model is split, and which source named the split; else empty."""
    note = folder / _NOTE
    if not note.is_file():
        return ""
    return str(json.loads(note.read_text(encoding="utf-8"))["tokenizer"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_into(folder: Path, gguf: Path) -> None:
    _check_disk(folder.parent, gguf)
    log.warning("converting %s for faster loading, once (into %s)", gguf.name, folder.parent)
    partial = folder.parent / f"{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed conversion left behind
    with quiet():
        model, tokenizer = load_gguf(gguf)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    note = {"converter": CONVERTER, "source": gguf.name, "tokenizer": describe_split(gguf)}
    (partial / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)
    log.warning(
        "converted: %.0f MB, shared by all projects; `glitchrun doctor` shows how to remove it",
        size_of(folder) / 1e6,
    )


def _check_disk(place: Path, gguf: Path) -> None:
    needed = gguf.stat().st_size * _UNPACKED
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PreflightError(
            f"{gguf}: unpacking it may take {needed / 1e9:.1f} GB in {place}, where "
            f"{free / 1e9:.1f} GB are free; make room, or set {CACHE_VARIABLE} to another folder"
        )


def load_gguf(gguf: Path) -> tuple[Any, Any]:
    """The model, in float32, and the tokenizer, straight from the file (slow).

    Raises ModelUnavailable where the file cannot be read.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    tokenizer = gguf_tokenizer(gguf)  # first: it is read in a second, and may be refused
    with reading(gguf):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            # Without it a machine with the package `kernels` keeps the blocks packed, and
            # save_pretrained refuses models that are.
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    return model, tokenizer
