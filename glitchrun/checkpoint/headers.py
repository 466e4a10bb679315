"""What a checkpoint's headers say: architecture, sizes, and every tensor's dtype and shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glitchrun.checkpoint.gguf_header import read_gguf
from glitchrun.checkpoint.gguf_splits import split_of
from glitchrun.checkpoint.pickled import pickle_files, sized_tensors
from glitchrun.checkpoint.resolve import SHARD_INDEX, SINGLE_FILE, Checkpoint
from glitchrun.checkpoint.safetensors_header import read_safetensors
from glitchrun.checkpoint.shape import Shape, shape_from_config, shape_from_gguf
from glitchrun.checkpoint.tensors import TensorInfo
from glitchrun.errors import ModelUnavailable, file_access

# Input embeddings and output heads by the last parts of their names, over the families of models.
EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "token_embd.weight",
)
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
_GGUF_HEAD = "output.weight"
_MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Header:
    """A checkpoint without its weights."""

    format: Literal["safetensors", "gguf", "pickle"]
    architecture: str
    """Class name from config.json (`MixtralForCausalLM`), or GGUF's name (`llama`)."""
    config: Mapping[str, Any]
    """config.json, or the GGUF file's metadata."""
    shape: Shape
    tensors: Mapping[str, TensorInfo]
    """By name; of pickled weights only stand-ins of the right total size."""
    files: tuple[Path, ...]
    """The weight files, in the order of their names."""
    vocab: int
    """Rows of the input embedding."""
    embedding: str
    """Name of the input embedding."""
    head: str | None
    """Name of the output matrix; None where it is the input embedding itself (tied)."""
    dtype: str
    """What `quantization: none` loads: the dtype as stored; float32 for a GGUF file."""
    prequantized: str | None
    """The method that weights on disk are already quantized with, such as `bitsandbytes`."""


def read_header(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> Header:
    """The header of a checkpoint whose files are on this machine.

    Raises ModelUnavailable for files that are missing, cut short or unsound, and for weights that
    are only there as pickle, unless `allow_pickle`; even then no pickle is run.
    """
    if checkpoint.path is None:
        raise ModelUnavailable(
            f"model.path {checkpoint.source!r}: this hub model is not on this machine yet"
        )
    with file_access(checkpoint.path, error=ModelUnavailable):
        if checkpoint.kind == "gguf":
            return _gguf(checkpoint.path)
        return _folder(checkpoint.path, allow_pickle)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint folder; raises ModelUnavailable where one is missing.

    One file `model.safetensors`, or else the shards that the index names.
    """
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    index = folder / SHARD_INDEX
    if not index.is_file():
        raise ModelUnavailable(_no_weights(folder))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelUnavailable(f"{index}: there is no weight_map in it; fetch the file again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelUnavailable(f"{index}: the shard {name!r} is not a file name")
        if not (folder / name).is_file():
            raise ModelUnavailable(f"{folder / name}: this shard is missing; fetch it again")
    return tuple(folder / name for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of sane size. Raises ModelUnavailable naming the file."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelUnavailable(f"{path}: too large to be what its name says")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ModelUnavailable(f"{path}: holds no JSON object; fetch it again")
    return value


def _no_weights(folder: Path) -> str:
    pickles = pickle_files(folder)
    if pickles:
        return (
            f"{folder}: the weights are there only as pickle ({pickles[0].name}), which runs code "
            "when it is read. Convert them to safetensors, or set model.allow_pickle: true if you "
            "trust where they come from"
        )
    return f"{folder}: there are no weights: neither {SINGLE_FILE} nor {SHARD_INDEX}"


def _folder(folder: Path, allow_pickle: bool) -> Header:
    config_path = folder / "config.json"
    config = read_json(config_path)
    # Models of text and images keep the decoder's sizes one level down.
    text = config.get("text_config")
    decoder = {**config, **text} if isinstance(text, dict) else config
    shape = shape_from_config(decoder, config_path)
    pickled = allow_pickle and not _has_safetensors(folder) and bool(pickle_files(folder))
    files = pickle_files(folder) if pickled else weight_files(folder)
    tensors = sized_tensors(files, decoder, shape) if pickled else _all_tensors(folder, files)
    embedding = _embedding(tensors, folder)
    return Header(
        format="pickle" if pickled else "safetensors",
        architecture=_architecture(config),
        config=config,
        shape=shape,
        tensors=tensors,
        files=files,
        vocab=tensors[embedding].shape[0],
        embedding=embedding,
        head=None if _tied(decoder, tensors) else _named(tensors, HEAD_NAMES),
        dtype=_dtype(decoder, tensors),
        prequantized=_prequantized(config),
    )


def _has_safetensors(folder: Path) -> bool:
    return (folder / SINGLE_FILE).is_file() or (folder / SHARD_INDEX).is_file()


def _all_tensors(folder: Path, files: tuple[Path, ...]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        found = read_safetensors(file)
        twice = tensors.keys() & found.keys()
        if twice:
            raise ModelUnavailable(f"{file}: the tensor {min(twice)!r} is in another shard too")
        tensors |= found
    index = folder / SHARD_INDEX
    if files[0].name != SINGLE_FILE:
        absent = read_json(index)["weight_map"].keys() - tensors.keys()
        if absent:
            raise ModelUnavailable(f"{index}: no shard holds the tensor {min(absent)!r}")
    return tensors


def _gguf(path: Path) -> Header:
    gguf = read_gguf(path)
    parts = gguf.metadata.get("split.count", 0)
    if type(parts) is int and parts > 1:
        raise ModelUnavailable(
            f"{path}: one of {parts} parts of a model; join them first with: "
            "llama-gguf-split --merge FIRST_PART OUTPUT"
        )
    split_of(gguf.metadata, path)  # an unknown one is refused before anything is converted
    embedding = _embedding(gguf.tensors, path)
    return Header(
        format="gguf",
        architecture=str(gguf.metadata.get("general.architecture")),
        config=gguf.metadata,
        shape=shape_from_gguf(gguf.metadata, path),
        tensors=gguf.tensors,
        files=(path,),
        vocab=gguf.tensors[embedding].shape[0],
        embedding=embedding,
        head=_GGUF_HEAD if _GGUF_HEAD in gguf.tensors else None,
        dtype="float32",
        prequantized=None,  # its blocks are unpacked when it is converted
    )


def _embedding(tensors: Mapping[str, TensorInfo], source: Path) -> str:
    name = _named(tensors, EMBEDDING_NAMES)
    if name is None or len(tensors[name].shape) != 2:
        raise ModelUnavailable(
            f"{source}: none of its {len(tensors)} tensors is an input embedding "
            f"({', '.join(EMBEDDING_NAMES)}); it is not a decoder-only language model"
        )
    return name


def _named(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> str | None:
    """The shortest tensor name that is one of the endings, or ends in a dot and one of them.

    The shortest, because a vision tower or a draft layer repeats the endings further down.
    """
    matches = [n for n in tensors if any(n == end or n.endswith(f".{end}") for end in endings)]
    return min(matches, key=lambda name: (len(name), name), default=None)


def _tied(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether input embedding and head are one matrix: as the config says, else as stored."""
    declared = config.get("tie_word_embeddings")
    return declared if isinstance(declared, bool) else _named(tensors, HEAD_NAMES) is None


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else config.get("model_type")
    return str(first)


def _dtype(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """The dtype that the weights load in unquantized: what the config names, else the first float.

    transformers reads the config's `dtype` (before version 5 `torch_dtype`) the same way.
    """
    for key in ("dtype", "torch_dtype"):
        declared = config.get(key)
        if isinstance(declared, str) and declared in ("float16", "bfloat16", "float32", "float64"):
            return declared
    return next((info.dtype for info in tensors.values() if info.floating), "float32")


def _prequantized(config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config")
    return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else None
