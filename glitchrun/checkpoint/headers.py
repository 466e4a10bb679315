"""What a checkpoint's headers say: architecture, sizes, and every tensor's dtype and shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from glitchrun.checkpoint.adapter import (
    NO_ADAPTER,
    Adapter,
    adapter_beside,
    check_belongs,
    read_adapter,
)
from glitchrun.checkpoint.files import read_json
from glitchrun.checkpoint.gguf_header import read_gguf
from glitchrun.checkpoint.gguf_splits import split_of
from glitchrun.checkpoint.language_part import (
    is_composite,
    is_tied,
    language_tensors,
    text_settings,
)
from glitchrun.checkpoint.pickled import pickle_files, sized_tensors
from glitchrun.checkpoint.resolve import SHARD_INDEX, SINGLE_FILE, Checkpoint
from glitchrun.checkpoint.safetensors_header import read_safetensors
from glitchrun.checkpoint.shape import Shape, shape_from_config, shape_from_gguf
from glitchrun.checkpoint.stored import check, check_bounds, check_layers, stored_sizes
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
_RARER_EMBEDDING_NAMES = (
    "embeddings.weight",  # Mamba, RWKV, Nemotron-H
    "tokens_embed.weight",  # GPT of 2018
    "word_embedding.weight",  # XLNet
    "transformer.w.weight",  # CTRL
    "shared.weight",
)
"""Used only where none of the others exists: other parts of a model have these names too."""
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
_MODELOPT = "hf_quant_config.json"
_GGUF_HEAD = "output.weight"


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
    """By name; of pickled weights only stand-ins of the right total size, of a composite model only
    those of its language part."""
    files: tuple[Path, ...]
    """The weight files, in the order of their names."""
    vocab: int
    """Rows of the input embedding."""
    embedding: str
    """Name of the input embedding."""
    prefix: str
    """What the decoder's names begin with, the embedding's among them: `model.`."""
    head: str | None
    """Name of the output matrix; None where it is the input embedding itself (tied)."""
    dtype: str
    """What `quantization: none` loads: the dtype as stored; float32 for a GGUF file."""
    prequantized: str | None
    """The method that weights on disk are already quantized with, such as `bitsandbytes`."""
    composite: bool = False
    """Whether this is the language part of a model that has parts for images or sound."""
    adapter: Adapter | None = None
    """Merged into the weights when they are loaded."""


def read_header(
    checkpoint: Checkpoint, *, allow_pickle: bool = False, adapter: str | None = None
) -> Header:
    """The header of a checkpoint whose files are on this machine, with `adapter` (model.adapter).

    Raises ModelUnavailable for files that are missing, cut short or unsound, for sizes in
    config.json that the weights do not have, for an adapter that does not belong to the weights, or
    lies beside them unmentioned, and for weights that are only there as pickle, unless
    `allow_pickle`; even then no pickle is run.
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
                adapter_beside(checkpoint.path)
    if adapter is None or adapter == NO_ADAPTER:
        return header
    found = read_adapter(adapter, allow_pickle=allow_pickle)
    check_belongs(
        found, layers=header.shape.layers, vocab=header.vocab, prequantized=header.prequantized
    )
    return replace(header, adapter=found)


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
    decoder, composite = text_settings(config), is_composite(config)
    pickled = allow_pickle and not _has_safetensors(folder) and bool(pickle_files(folder))
    files = pickle_files(folder) if pickled else weight_files(folder)
    tensors = sized_tensors(files, decoder, config_path) if pickled else _all_tensors(folder, files)
    count = len(tensors)
    embedding = _embedding(tensors, folder, decoder)
    prefix = _prefix(embedding)
    head = _named(tensors, HEAD_NAMES)
    if composite and not pickled:
        tensors = language_tensors(tensors, prefix, nested=decoder is not config)
    stored = stored_sizes(tensors, embedding, prefix)
    prequantized = _prequantized(config, config_path)
    if not pickled:
        check(decoder, stored, config_path, packed=prequantized is not None)
    check_bounds(config, stored, count, config_path)
    tied = _tied(config, head is not None, composite)
    if tied is None and not _has_other_head(tensors, embedding):
        raise ModelUnavailable(
            f"{config_path}: tie_word_embeddings is false, but the weights hold no output matrix "
            f"({' or '.join(HEAD_NAMES)}). Set tie_word_embeddings: true there if the model's "
            "output matrix is its input embedding; otherwise the weights are not whole"
        )
    return Header(
        format="pickle" if pickled else "safetensors",
        architecture=_architecture(config),
        config=config,
        shape=shape_from_config(decoder, config_path, stored),
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
    embedding = _embedding(gguf.tensors, path, {})
    shape = shape_from_gguf(gguf.metadata, path)
    stored = stored_sizes(gguf.tensors, embedding, "")
    check_layers(shape.layers, stored, path)
    return Header(
        format="gguf",
        architecture=str(gguf.metadata.get("general.architecture")),
        config=gguf.metadata,
        shape=shape,
        tensors=gguf.tensors,
        files=(path,),
        vocab=gguf.tensors[embedding].shape[0],
        embedding=embedding,
        prefix="",
        head=_GGUF_HEAD if _GGUF_HEAD in gguf.tensors else None,
        dtype="float32",
        prequantized=None,  # its blocks are unpacked when it is converted
    )


def _embedding(tensors: Mapping[str, TensorInfo], source: Path, settings: Mapping[str, Any]) -> str:
    """Name of the input embedding; among several, the one whose sizes `settings` gives."""
    for endings in (EMBEDDING_NAMES, _RARER_EMBEDDING_NAMES):
        tables = {
            name: info
            for name, info in tensors.items()
            if _ends(name, endings) and len(info.shape) == 2
        }
        sizes = (settings.get("vocab_size"), settings.get("hidden_size"))
        fitting = {name: info for name, info in tables.items() if sizes == info.shape}
        name = _named(fitting or tables, endings)
        if name is not None:
            return name
    raise ModelUnavailable(
        f"{source}: no input embedding was found among its {len(tensors)} tensors, under "
        f"none of the names that language models give it ({', '.join(EMBEDDING_NAMES)}, ...). "
        "Give a causal language model whose embedding has such a name"
    )


def _prefix(embedding: str) -> str:
    """The prefix of the embedding's name: the name of its decoder."""
    decoder, dot, _ = embedding.removesuffix(".weight").rpartition(".")
    return decoder + dot


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in endings)


def _named(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> str | None:
    """The shortest tensor name that is one of the endings, or ends in a dot and one of them.

    The shortest, because a vision tower or a draft layer repeats the endings further down.
    """
    matches = [name for name in tensors if _ends(name, endings)]
    return min(matches, key=lambda name: (len(name), name), default=None)


def _tied(config: Mapping[str, Any], has_head: bool, composite: bool) -> bool | None:
    """Whether input embedding and head are one matrix: as the config says, else as stored.

    None where config.json wants a head of its own and none is stored.
    """
    if composite:
        return is_tied(config, has_head)
    declared = config.get("tie_word_embeddings")
    if declared is False and not has_head:
        return None
    return declared if isinstance(declared, bool) else not has_head


def _has_other_head(tensors: Mapping[str, TensorInfo], embedding: str) -> bool:
    """Whether there is a head with another name, or quantized: `head.weight`, `.qweight`."""
    shape = tensors[embedding].shape
    return any(
        (info.shape == shape and name != embedding) or {"lm_head", "embed_out"} & {*name.split(".")}
        for name, info in tensors.items()
    )


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


def _prequantized(config: Mapping[str, Any], source: Path) -> str | None:
    """The method that the weights are quantized with on disk.

    Raises ModelUnavailable for formats that transformers does not read.
    """
    found = config.get("quantization_config") or config.get("quantization")
    if not isinstance(found, dict):
        if not (source.parent / _MODELOPT).is_file():
            return None
        raise _foreign_format(source, f"{_MODELOPT} lies beside it, which NVIDIA's ModelOpt writes")
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
