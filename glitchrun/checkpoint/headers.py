"""The header of a checkpoint: architecture, dimensions, and every tensor's dtype and shape."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from glitchrun.checkpoint.adapter import (
    NO_ADAPTER,
    Adapter,
    check_belongs,
    read_adapter,
    refuse_adapter_beside,
)
from glitchrun.checkpoint.dims import (
    HIDDEN,
    LAYERS,
    VOCAB,
    ModelDims,
    check_bounds,
    check_dims,
    check_gguf_layers,
    declared,
    dims_from_config,
    dims_from_gguf,
    stored_dims,
)
from glitchrun.checkpoint.gguf_header import read_gguf
from glitchrun.checkpoint.gguf_pretokenizers import pretokenizer_of
from glitchrun.checkpoint.language_part import (
    HEAD_NAMES,
    decoder_prefix,
    find_embedding,
    find_tensor,
    has_other_head,
    is_composite,
    is_tied,
    language_tensors,
    text_settings,
)
from glitchrun.checkpoint.resolve import Checkpoint, read_json
from glitchrun.checkpoint.safetensors_files import (
    TensorInfo,
    has_safetensors,
    pickle_files,
    read_all_tensors,
    weight_files,
)
from glitchrun.errors import ModelUnavailable, file_access

_MODELOPT = "hf_quant_config.json"
_GGUF_HEAD = "output.weight"
_DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Header:
    """Everything that is known about a checkpoint without reading its weights."""

    format: Literal["safetensors", "gguf", "pickle"]
    architecture: str
    """Class name from config.json (`MixtralForCausalLM`), or GGUF's name (`llama`)."""
    config: Mapping[str, Any]
    """config.json, or the GGUF file's metadata."""
    dims: ModelDims
    tensors: Mapping[str, TensorInfo]
    """By name. For pickled weights, placeholders of the right total size; for a composite model,
    only the tensors of its language part."""
    files: tuple[Path, ...]
    """The weight files, sorted by name."""
    vocab: int
    """Rows of the input embedding."""
    embedding: str
    """Name of the input embedding."""
    prefix: str
    """Prefix of the decoder's tensor names, the embedding's included: `model.`."""
    head: str | None
    """Name of the output matrix; None where it is the input embedding (tied)."""
    dtype: str
    """The dtype that `quantization: none` loads: the stored one; float32 for a GGUF file."""
    prequantized: str | None
    """The method by which the stored weights are quantized, such as `bitsandbytes`; else None."""
    composite: bool = False
    """Whether this is the language part of a model that also has parts for images or audio."""
    adapter: Adapter | None = None
    """The adapter to merge into the weights at load time."""


def read_header(
    checkpoint: Checkpoint, *, allow_pickle: bool = False, adapter: str | None = None
) -> Header:
    """The header of a checkpoint whose files are on this machine.

    `adapter` is the spec's `model.adapter`. No pickle is executed, not even with `allow_pickle`.

    Raises ModelUnavailable for files that are missing, cut short or unsound; for sizes in
    config.json that disagree with the weights; for an adapter that does not belong to the weights,
    or is beside them while `adapter` is None; and for pickled weights without `allow_pickle`.
    """
    if checkpoint.path is None:
        raise ModelUnavailable(
            f"model.path {checkpoint.source!r}: this hub model is not on this machine yet"
        )
    with file_access(checkpoint.path, error=ModelUnavailable):
        if checkpoint.kind == "gguf":
            header = _gguf(checkpoint.path)
        else:
            header = _folder(checkpoint.path, allow_pickle)
            if adapter is None:
                refuse_adapter_beside(checkpoint.path)
    if adapter is None or adapter == NO_ADAPTER:
        return header
    found = read_adapter(adapter, allow_pickle=allow_pickle)
    check_belongs(
        found,
        num_layers=header.dims.num_layers,
        vocab_size=header.vocab,
        prequantized=header.prequantized,
    )
    return replace(header, adapter=found)


def _folder(folder: Path, allow_pickle: bool) -> Header:
    config_path = folder / "config.json"
    config = read_json(config_path)
    decoder, composite = text_settings(config), is_composite(config)
    pickled = allow_pickle and not has_safetensors(folder) and bool(pickle_files(folder))
    files = pickle_files(folder) if pickled else weight_files(folder)
    tensors = (
        _pickled_tensors(files, decoder, config_path)
        if pickled
        else read_all_tensors(folder, files)
    )
    count = len(tensors)
    embedding = find_embedding(tensors, folder, decoder)
    prefix = decoder_prefix(embedding)
    head = find_tensor(tensors, HEAD_NAMES)
    if composite and not pickled:
        tensors = language_tensors(tensors, prefix, nested=decoder is not config)
    stored = stored_dims(tensors, embedding, prefix)
    prequantized = _prequantized(config, config_path)
    if not pickled:
        check_dims(decoder, stored, config_path, packed=prequantized is not None)
    check_bounds(config, stored, count, config_path)
    tied = is_tied(config, has_head=head is not None)
    if tied is None and not has_other_head(tensors, embedding):
        raise ModelUnavailable(
            f"{config_path}: tie_word_embeddings is false, but the weights have no output matrix "
            f"({' or '.join(HEAD_NAMES)}). Set tie_word_embeddings: true there if the model's "
            "output matrix is its input embedding; otherwise the weights are incomplete"
        )
    return Header(
        format="pickle" if pickled else "safetensors",
        architecture=_architecture(config),
        config=config,
        dims=dims_from_config(decoder, config_path, stored),
        tensors=tensors,
        files=files,
        vocab=tensors[embedding].shape[0],
        embedding=embedding,
        prefix=prefix,
        head=None if tied else head,
        dtype=_dtype({**config, **decoder}, tensors),
        prequantized=prequantized,
        composite=composite,
    )


def _gguf(path: Path) -> Header:
    gguf = read_gguf(path)
    parts = gguf.metadata.get("split.count", 0)
    if type(parts) is int and parts > 1:
        raise ModelUnavailable(
            f"{path}: one of {parts} parts of a model; join them first with: "
            "llama-gguf-split --merge FIRST_PART OUTPUT"
        )
    pretokenizer_of(gguf.metadata, path)  # refuses an unknown one before any conversion
    embedding = find_embedding(gguf.tensors, path, {})
    dims = dims_from_gguf(gguf.metadata, path)
    stored = stored_dims(gguf.tensors, embedding, "")
    check_gguf_layers(dims.num_layers, stored, path)
    return Header(
        format="gguf",
        architecture=str(gguf.metadata.get("general.architecture")),
        config=gguf.metadata,
        dims=dims,
        tensors=gguf.tensors,
        files=(path,),
        vocab=gguf.tensors[embedding].shape[0],
        embedding=embedding,
        prefix="",
        head=_GGUF_HEAD if _GGUF_HEAD in gguf.tensors else None,
        dtype="float32",
        prequantized=None,  # the conversion unpacks its blocks
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else config.get("model_type")
    return str(first)


def _dtype(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """The dtype of unquantized weights: from config.json, else that of the first float tensor.

    transformers does the same with `dtype` (`torch_dtype` before version 5).
    """
    for key in ("dtype", "torch_dtype"):
        declared = config.get(key)
        if isinstance(declared, str) and declared in ("float16", "bfloat16", "float32", "float64"):
            return declared
    return next((info.dtype for info in tensors.values() if info.floating), "float32")


def _prequantized(config: Mapping[str, Any], source: Path) -> str | None:
    """The method by which the stored weights are quantized; None for floats."""
    found = config.get("quantization_config") or config.get("quantization")
    if not isinstance(found, dict):
        if not (source.parent / _MODELOPT).is_file():
            return None
        raise _foreign_format(source, f"{_MODELOPT} beside it is a file of NVIDIA's ModelOpt")
    method = found.get("quant_method")
    if isinstance(method, str):
        return method
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    raise _foreign_format(source, "its quantization names no quant_method, which is typical of MLX")


def _foreign_format(source: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{source}: the weights are quantized in a format that transformers does not read: {why}. "
        "Give the original checkpoint, with model.quantization: int4 or int8"
    )


def _pickled_tensors(
    files: tuple[Path, ...], config: Mapping[str, Any], source: Path
) -> dict[str, TensorInfo]:
    """Placeholders for the tensors of torch archives, of the right total size.

    A torch file is a zip archive with one entry per storage. Its directory gives the bytes of each
    storage, but not the tensor. config.json gives the sizes of embedding and head; the tensor
    `rest` represents all others.
    """
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = _DTYPE_BYTES.get(dtype, 4)
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
    """Check that there is a storage for each layer, and one large enough for the embedding."""
    layers = declared(config, LAYERS, source) or 0
    if layers > len(storages):
        raise ModelUnavailable(
            f"{source}: {layers:,} layers, but the weights have {len(storages):,} tensors; "
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
    """The size in bytes of every storage in a torch archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            return [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename]
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelUnavailable(f"{file}: not a readable torch archive ({error})") from error
