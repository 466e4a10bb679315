"""Adapters in PEFT's format: small trained matrices that change the weights of a base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.resolve import ADAPTER_CONFIG, adapter_folder, read_json
from glitchrun.checkpoint.safetensors_files import TensorInfo, read_safetensors
from glitchrun.errors import ModelUnavailable

NO_ADAPTER = "none"
"""The value of `model.adapter` that ignores an adapter in the folder of the weights."""
_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
_NOT_WEIGHT_CHANGES = {
    "PROMPT_TUNING": "learned prompt vectors",
    "MULTITASK_PROMPT_TUNING": "learned prompt vectors",
    "P_TUNING": "learned prompt vectors",
    "PREFIX_TUNING": "learned keys and values before the text",
    "CARTRIDGE": "learned keys and values before the text",
    "ADAPTION_PROMPT": "learned prompts inside the layers",
    "CPT": "learned prompt vectors",
    "XLORA": "a mixture with new weights for each token",
}
"""Adapter types that cannot be merged into the weights, and what they train instead."""
_LAYER = re.compile(r"(?:layers|layer|h|blocks|block)\.(\d{1,9})\.")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, and the tensors that their headers list."""

    path: Path
    config: Mapping[str, Any]
    """The contents of adapter_config.json."""
    files: tuple[Path, ...]
    """The configuration and the weights, in this order."""
    tensors: Mapping[str, TensorInfo]
    """By name; empty for pickled weights, whose shapes cannot be read without running them."""

    @property
    def kind(self) -> str:
        """PEFT's name of the method: LORA, IA3, ..."""
        return str(self.config.get("peft_type", "unknown"))


def refuse_adapter_beside(folder: Path) -> None:
    """Raises ModelUnavailable if the folder of the weights contains an adapter. To be called only
    if `model.adapter` is not set."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelUnavailable(
            f"{folder}: there is an adapter ({ADAPTER_CONFIG}) beside the weights. State which "
            f"model to use: model.adapter: {folder} applies it, model.adapter: {NO_ADAPTER} "
            "leaves it out"
        )


def read_adapter(source: str, *, allow_pickle: bool = False) -> Adapter:
    """The adapter that `model.adapter` names.

    Raises ModelUnavailable for an adapter that is missing, damaged, pickled without `allow_pickle`,
    or of a type that changes no weights.
    """
    folder = adapter_folder(source)
    config_path = folder / ADAPTER_CONFIG
    config = read_json(config_path)
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise ModelUnavailable(f"{config_path}: it has no peft_type; fetch it again")
    if kind in _NOT_WEIGHT_CHANGES:
        raise ModelUnavailable(
            f"{config_path}: an adapter of type {kind} is {_NOT_WEIGHT_CHANGES[kind]} and "
            "changes no weights, so prompts of given token ids do not exercise it; "
            "glitchrun accepts types that can be merged, such as LORA. "
            f"model.adapter: {NO_ADAPTER} examines the model without it"
        )
    weights = folder / _WEIGHTS
    if weights.is_file():
        return Adapter(folder, config, (config_path, weights), read_safetensors(weights))
    pickled = folder / _PICKLED_WEIGHTS
    if not pickled.is_file():
        raise ModelUnavailable(f"{folder}: the adapter has no weights ({_WEIGHTS}); fetch it again")
    if not allow_pickle:
        raise ModelUnavailable(
            f"{pickled}: the adapter is only available as pickle, which runs code when it is read. "
            "Convert it to safetensors, or set model.allow_pickle: true if you trust its source"
        )
    return Adapter(folder, config, (config_path, pickled), {})


def check_belongs(
    adapter: Adapter, *, num_layers: int, vocab_size: int, prequantized: str | None
) -> None:
    """Compare an adapter with its base model: layers, vocabulary and quantization.

    Raises ModelUnavailable, naming the numbers of both.
    """
    if prequantized:
        raise ModelUnavailable(
            f"{adapter.path}: an adapter is merged into the weights, but these are already "
            f"quantized on disk ({prequantized}). Set model.path to the unquantized model, and "
            "model.quantization: int4 or int8, which is applied after merging"
        )
    for name, info in adapter.tensors.items():
        found = _LAYER.search(name)
        if found and int(found[1]) >= num_layers:
            raise ModelUnavailable(
                f"{adapter.path}: it changes layer {found[1]} ({name}), but the model has "
                f"{num_layers} layers; {_which_base(adapter)}"
            )
        rows = info.shape[0] if len(info.shape) == 2 else vocab_size
        if _replaces_table(name) and rows != vocab_size:
            raise ModelUnavailable(
                f"{adapter.path}: it changes the vocabulary: {name} has {rows:,} rows, the model "
                f"has {vocab_size:,}. Merge it with peft, save the result with its tokenizer, and "
                f"give that as model.path; or {_which_base(adapter)}"
            )


def _replaces_table(name: str) -> bool:
    """Whether a tensor replaces the model's input embedding or head."""
    path = name.split(".")
    table = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"}
    return path[-1] == "weight" and bool(table & set(path)) and "lora" not in name


def _which_base(adapter: Adapter) -> str:
    base = adapter.config.get("base_model_name_or_path")
    return f"it was trained on {base!r}" if base else "it was trained on another model"
