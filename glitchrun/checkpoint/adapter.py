"""Adapters: a few trained matrices, in PEFT's format, that change the weights of a whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.files import read_json
from glitchrun.checkpoint.resolve import ADAPTER_CONFIG, adapter_folder
from glitchrun.checkpoint.safetensors_header import read_safetensors
from glitchrun.checkpoint.tensors import TensorInfo
from glitchrun.errors import ModelUnavailable

NO_ADAPTER = "none"
"""`model.adapter: none`: use the weights without the adapter beside them."""
WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
_NOT_WEIGHT_CHANGES = {
    "PROMPT_TUNING": "learned prompt vectors",
    "MULTITASK_PROMPT_TUNING": "learned prompt vectors",
    "P_TUNING": "learned prompt vectors",
    "PREFIX_TUNING": "learned keys and values in front of the text",
    "CARTRIDGE": "learned keys and values in front of the text",
    "ADAPTION_PROMPT": "learned prompts inside the layers",
    "CPT": "learned prompt vectors",
    "XLORA": "a mixture that is weighed anew for each token",
}
"""Adapter types that cannot be merged into weights, and what they train instead."""
_LAYER = re.compile(r"(?:layers|layer|h|blocks|block)\.(\d{1,9})\.")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files and the tensors that their headers list."""

    path: Path
    config: Mapping[str, Any]
    """adapter_config.json"""
    files: tuple[Path, ...]
    """The files that determine its effect: configuration and weights."""
    tensors: Mapping[str, TensorInfo]
    """By name; empty for pickled weights, whose shapes are not read without running them."""

    @property
    def kind(self) -> str:
        """PEFT's name of the method: LORA, IA3, ..."""
        return str(self.config.get("peft_type", "unknown"))


def adapter_beside(folder: Path) -> None:
    """Refuse an adapter beside weights that `model.adapter` neither names nor declines."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelUnavailable(
            f"{folder}: there is an adapter ({ADAPTER_CONFIG}) beside the weights. State which "
            f"model to use: model.adapter: {folder} applies it, model.adapter: {NO_ADAPTER} "
            "leaves it out"
        )


def read_adapter(source: str, *, allow_pickle: bool = False) -> Adapter:
    """The adapter that `model.adapter` names.

    Raises ModelUnavailable for one that is missing, corrupt, pickled without `allow_pickle`, or of
    a kind that changes no weights.
    """
    folder = adapter_folder(source)
    config_path = folder / ADAPTER_CONFIG
    config = read_json(config_path)
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise ModelUnavailable(f"{config_path}: there is no peft_type in it; fetch it again")
    if kind in _NOT_WEIGHT_CHANGES:
        raise ModelUnavailable(
            f"{config_path}: an adapter of type {kind} is {_NOT_WEIGHT_CHANGES[kind]} and "
            "changes no weights, so prompts of given token ids do not exercise it; "
            "glitchrun accepts types that can be merged, such as LORA. "
            f"model.adapter: {NO_ADAPTER} examines the model without it"
        )
    weights = folder / WEIGHTS
    if weights.is_file():
        return Adapter(folder, config, (config_path, weights), read_safetensors(weights))
    pickled = folder / PICKLED_WEIGHTS
    if not pickled.is_file():
        raise ModelUnavailable(f"{folder}: the adapter has no weights ({WEIGHTS}); fetch it again")
    if not allow_pickle:
        raise ModelUnavailable(
            f"{pickled}: the adapter is only available as pickle, which runs code when it is read. "
            "Convert it to safetensors, or set model.allow_pickle: true if you trust where it "
            "comes from"
        )
    return Adapter(folder, config, (config_path, pickled), {})


def check_belongs(adapter: Adapter, *, layers: int, vocab: int, prequantized: str | None) -> None:
    """Compare an adapter with the model that it will be merged into: layers, rows, quantization.

    Raises ModelUnavailable with both numbers.
    """
    if prequantized:
        raise ModelUnavailable(
            f"{adapter.path}: an adapter is merged into the weights, and these are already "
            f"quantized on disk ({prequantized}). Set model.path to the unquantized model, and "
            "model.quantization: int4 or int8, which is applied after merging"
        )
    for name, info in adapter.tensors.items():
        found = _LAYER.search(name)
        if found and int(found[1]) >= layers:
            raise ModelUnavailable(
                f"{adapter.path}: it changes layer {found[1]} ({name}), but the model has {layers} "
                f"layers; {_which_base(adapter)}"
            )
        rows = info.shape[0] if len(info.shape) == 2 else vocab
        if _is_whole_table(name) and rows != vocab:
            raise ModelUnavailable(
                f"{adapter.path}: it changes the vocabulary: {name} has {rows:,} rows, the model "
                f"has {vocab:,}. Merge it with peft, save the result with its tokenizer, and give "
                f"that as model.path; or {_which_base(adapter)}"
            )


def _is_whole_table(name: str) -> bool:
    """Whether it is an input embedding or a head that replaces the model's."""
    path = name.split(".")
    table = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"}
    return path[-1] == "weight" and bool(table & set(path)) and "lora" not in name


def _which_base(adapter: Adapter) -> str:
    base = adapter.config.get("base_model_name_or_path")
    return f"it was trained on {base!r}" if base else "it was trained on another model"
