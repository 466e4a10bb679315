"""The class that a checkpoint loads as, and the names of its tensors in that class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from glitchrun.boundary import foreign_errors
from glitchrun.checkpoint.headers import Header
from glitchrun.errors import ModelUnavailable
from glitchrun.model.text_decoder import match_whole_model, text_decoder_class
from glitchrun.spec.types import ModelSpec

_BIDIRECTIONAL = ("paligemma", "git")
"""Models that read a prompt in both directions. No token could be examined by itself, and their
decoder alone gives other logits."""
_BITSANDBYTES = (".SCB", ".absmax")
"""The ends of the names of the scales that bitsandbytes stores."""
_HEAD_STEMS = ("lm_head", "embed_out")
# Limits for the model that config.json describes, relative to the stored numbers.
_PARAMETER_FACTOR = 1.05
_EXTRA_PARAMETERS = 1_000_000
"""Parameters beyond the stored ones: computed tables."""
_BUFFER_FACTOR = 4
_EXTRA_BUFFERS = 64_000_000


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model class, its configuration, and the names of the checkpoint's tensors in it."""

    model_class: Any
    config: Any
    names: dict[str, str] | None
    """Stored name to name in the model, for the tensors to load; None for all under their stored
    names."""

    def rename(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The tensors to load, by their names in the model."""
        if self.names is None:
            return tensors
        return {self.names[name]: value for name, value in tensors.items() if name in self.names}

    def name(self, stored: str) -> str:
        """The name in the model of a stored tensor."""
        return stored if self.names is None else self.names.get(stored, stored)

    def decoder_prefix(self, header: Header) -> str:
        """The prefix of the decoder's names in the model, such as `model.`."""
        return self.name(header.embedding).removesuffix(".weight").rpartition(".")[0] + "."


def architecture(folder: Path, header: Header, spec: ModelSpec) -> Architecture:
    """The architecture of a checkpoint.

    A model for text and images, or text and audio, is loaded as its language part alone.

    Raises ModelUnavailable for settings that transformers refuses, for a model that is not a causal
    language model and has none as a part, and for sizes that disagree with the weights.
    """
    if not spec.trust_remote_code:
        _check_kernels(folder, header.config)
    config = _config(folder, header, spec)
    _check_method(folder, header)
    with foreign_errors(lambda error: _refused(folder, header, error)):
        target = _select(folder, config, header, spec)
        with torch.device("meta"):
            empty = target.model_class(target.config)
        if header.composite and target.config is not config:
            target = Architecture(target.model_class, target.config, _names(empty, header))
            _carry_quantization(config, target, header)
        _check_sizes(empty, target, header, folder)
    return target


def _config(folder: Path, header: Header, spec: ModelSpec) -> Any:
    def refused(error: Exception) -> ModelUnavailable:
        if "auto_map" in header.config and not spec.trust_remote_code:
            return ModelUnavailable(
                f"{folder / 'config.json'}: the model needs code that comes with it (auto_map); "
                "set model.trust_remote_code: true if you trust its source"
            )
        return _refused(folder, header, error)

    with foreign_errors(refused):
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
        )


def _check_kernels(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses code of the hub for a part of the model: transformers would download and run it where
    the package kernels is installed."""
    for key, value in settings.items():
        if isinstance(value, dict):
            _check_kernels(folder, value if "_implementation" not in key else {key: str(value)})
        elif "_implementation" in key and "/" in str(value):
            raise ModelUnavailable(
                f"{folder / 'config.json'}: {key} names code of the hub ({value!r:.80}), which the "
                "model would run; remove it there, or set model.trust_remote_code: true if you "
                "trust its source"
            )


def _check_method(folder: Path, header: Header) -> None:
    """Refuse a method that transformers does not know: it would load codes as floats."""
    known = {"bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING}
    if header.prequantized and header.prequantized not in known:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: the weights are quantized on disk by "
            f"{header.prequantized!r}, a method that this version of transformers does not know; "
            "give the unquantized checkpoint with model.quantization: int4 or int8"
        )
    has_scales = any(name.endswith(_BITSANDBYTES) for name in header.tensors)
    if header.prequantized == "bitsandbytes" and header.format == "safetensors" and not has_scales:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: quantization_config says that bitsandbytes quantized the "
            "weights, but they have no scales; remove it there if the weights are floats, or fetch "
            "the files again"
        )


def _refused(folder: Path, header: Header, error: Exception) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder / 'config.json'}: transformers refuses these settings of model_type "
        f"{header.config.get('model_type')!r}: {type(error).__name__}: "
        f"{' '.join(str(error).split())[:500]}; restore the config.json of these weights, or use "
        "a version of transformers that knows the model"
    )


def _select(folder: Path, config: Any, header: Header, spec: ModelSpec) -> Architecture:
    kind = str(getattr(config, "model_type", ""))
    if kind in _BIDIRECTIONAL:
        raise _no_language_model(
            folder, header, "it reads a prompt in both directions, which no causal model does"
        )
    if (
        getattr(config, "is_encoder_decoder", False)
        and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        raise _no_language_model(folder, header, "it is an encoder-decoder")
    text = config.get_text_config(decoder=True)
    if text is config and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return Architecture(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, None)
    if text is config and spec.trust_remote_code:
        return Architecture(_shipped_class(folder, config), config, None)
    part = text_decoder_class(config, text)
    if part is None:
        raise _no_language_model(folder, header, "transformers has no class for its decoder alone")
    match_whole_model(config, text, part, header)
    return Architecture(part, text, None)


def _shipped_class(folder: Path, config: Any) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = (getattr(config, "auto_map", None) or {}).get(AutoModelForCausalLM.__name__)
    if reference is None:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: its auto_map names no {AutoModelForCausalLM.__name__}; it "
            "is not a causal language model"
        )
    return get_class_from_dynamic_module(reference, folder, local_files_only=True)


def _no_language_model(folder: Path, header: Header, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder / 'config.json'}: {header.architecture} is not a causal language model: {why}. "
        "Give a model that continues a text"
    )


def _names(empty: Any, header: Header) -> dict[str, str]:
    """Names in the (empty) model of the stored tensors of the language part."""
    modules = {id(module): name for name, module in empty.named_modules()}
    table = modules[id(empty.get_input_embeddings())]
    prefix = table.rpartition(".")[0]
    head = modules.get(id(empty.get_output_embeddings()), _HEAD_STEMS[0])
    names = {}
    for name in header.tensors:
        path = name.split(".")
        stem = next((i for i, part in enumerate(path) if part in _HEAD_STEMS), None)
        if stem is not None:
            names[name] = ".".join([head, *path[stem + 1 :]])
        else:
            names[name] = f"{prefix}.{name.removeprefix(header.prefix)}"
    return names


def _carry_quantization(config: Any, target: Architecture, header: Header) -> None:
    """Copy the whole model's `quantization_config` to the language part, with renamed modules."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    inside = target.decoder_prefix(header)

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(part) for key, part in value.items()}
        if isinstance(value, list):
            return [renamed(part) for part in value]
        if isinstance(value, str) and header.prefix and value.startswith(header.prefix):
            return inside + value.removeprefix(header.prefix)
        return value

    target.config.quantization_config = renamed(found)


def _check_sizes(empty: Any, target: Architecture, header: Header, folder: Path) -> None:
    """Compare the empty model that config.json describes with the headers."""
    wanted = dict(empty.named_parameters())
    if not header.prequantized:
        for stored, info in header.tensors.items():
            parameter = wanted.get(target.name(stored))
            if parameter is not None and tuple(parameter.shape) != info.shape:
                raise ModelUnavailable(
                    f"{folder / 'config.json'}: {stored} has shape {info.shape}, the model that "
                    f"config.json describes wants {tuple(parameter.shape)}; config.json and "
                    "weights do not belong together"
                )
    held = sum(info.numel for info in header.tensors.values())
    held *= 16 if header.prequantized else 1  # codes of two bits in words of 32
    described = sum(parameter.numel() for parameter in wanted.values())
    tables = sum(buffer.numel() for buffer in empty.buffers())
    if (
        described > _PARAMETER_FACTOR * held + _EXTRA_PARAMETERS
        or tables > _BUFFER_FACTOR * held + _EXTRA_BUFFERS
    ):
        raise ModelUnavailable(
            f"{folder / 'config.json'}: it describes a model of {described + tables:,} numbers, "
            f"the weights have {held:,}; config.json and weights do not belong together"
        )
