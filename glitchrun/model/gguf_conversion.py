"""Converts a GGUF file to a checkpoint folder once, and finds the conversion by the file's content.

transformers needs some 20 s to unpack a 100 MB file and its tokenizer; the same weights as
safetensors load in half a second. A conversion is written under a temporary name and renamed when
it is complete, so a killed process leaves no incomplete checkpoint. A lock lets the second of two
processes wait for the first and use its result.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock

from glitchrun.checkpoint.cache_folder import CACHE_VARIABLE, size_of
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.events import Stage
from glitchrun.model.gguf_tokenizer import describe_pretokenizer, gguf_errors, gguf_tokenizer
from glitchrun.model.library_messages import Report, no_report, quiet_libraries, reported_loops
from glitchrun.spec.digest import file_digest

log = logging.getLogger(__name__)

CONVERTER = 2
"""Version of the converted files. Increase it when they change; older conversions are ignored."""
_MAX_GROWTH = 10
"""Bound on the ratio of unpacked to packed bytes: from 3.4 bits (Q2_K with its scales) to 32."""
_NOTE = "glitchrun.json"


def converted(gguf: Path, cache: Path, report: Report = no_report) -> Path:
    """The folder under `cache` with `gguf` as float32 safetensors and a fast tokenizer.

    Converts the file if necessary, which takes seconds per 100 MB; `report` takes the stage. Raises
    ModelUnavailable for a damaged file or one that cannot be rebuilt, PreflightError where the
    cache cannot be written or the disk is too small.
    """
    folder = conversion_folder(gguf, cache)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if not folder.is_dir():
                _convert_into(folder, gguf, report)
    except OSError as error:
        raise PreflightError(
            f"the model cache {cache} cannot be written: {error}; set {CACHE_VARIABLE} to another "
            "folder"
        ) from error
    return folder


def conversion_folder(gguf: Path, cache: Path) -> Path:
    """The folder of a file's conversion, which need not exist yet.

    Raises ModelUnavailable where the file cannot be read.
    """
    version = f"v{CONVERTER}-transformers-{transformers.__version__}"
    try:
        return cache / "gguf" / f"{file_digest(gguf)[:32]}-{version}"
    except OSError as error:
        raise ModelUnavailable(f"{gguf}: cannot be read ({error.strerror})") from error


def tokenizer_note(folder: Path) -> str:
    """The pre-tokenizer of a converted model and where its name comes from; else empty."""
    note = folder / _NOTE
    if not note.is_file():
        return ""
    return str(json.loads(note.read_text(encoding="utf-8"))["tokenizer"])


def _convert_into(folder: Path, gguf: Path, report: Report) -> None:
    _check_disk(folder.parent, gguf)
    log.warning("converting %s for faster loading, once (into %s)", gguf.name, folder.parent)
    partial = folder.parent / f"{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # from a killed conversion
    report(Stage("converting", None, unit=""), 0)
    with quiet_libraries(), reported_loops(report, "reading"):
        model, tokenizer = load_gguf(gguf)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    note = {"converter": CONVERTER, "source": gguf.name, "tokenizer": describe_pretokenizer(gguf)}
    (partial / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)
    log.warning(
        "converted: %.0f MB, shared by all projects; `glitchrun doctor` shows how to remove it",
        size_of(folder) / 1e6,
    )


def _check_disk(folder: Path, gguf: Path) -> None:
    needed = gguf.stat().st_size * _MAX_GROWTH
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreflightError(
            f"{gguf}: unpacking it may take {needed / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free; free some space, or set {CACHE_VARIABLE} to another "
            "folder"
        )


def load_gguf(gguf: Path) -> tuple[Any, Any]:
    """The model in float32 and the tokenizer, read directly from the file (slow).

    Raises ModelUnavailable where the file cannot be read.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    tokenizer = gguf_tokenizer(gguf)  # first, because it takes a second and may be refused
    with gguf_errors(gguf):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            # Otherwise the blocks stay packed if the package `kernels` is installed, and
            # save_pretrained refuses packed models.
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    return model, tokenizer
