"""The class that a checkpoint is loaded as, and the place of its tensors in it.

A model for text and images (or sound) is loaded as its language part alone: the causal language
model that transformers has for the text settings, or, where it has none, the text decoder with the
head on top. Nothing of the other parts is read.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightConverter
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from glitchrun.boundary import foreign_errors
from glitchrun.checkpoint.headers import Header
from glitchrun.errors import ModelUnavailable
from glitchrun.spec.types import ModelSpec

BOTH_DIRECTIONS = ("paligemma", "git")
"""Models that read a prompt in both directions: no token could be examined by itself, and
their decoder alone gives other logits."""
HEAD_STEMS = ("lm_head", "embed_out")
HEAD_SETTINGS = {
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "output_multiplier": 1.0,
    "lm_head_multiplier": 1.0,
    "final_logit_softcapping": None,
}
"""Settings that scale or bound a decoder's logits, and their neutral values."""
_ROOM = 1.05
_SMALL = 1_000_000
"""Parameters that a model may have beyond the stored ones: computed tables."""
_BUFFERS = 4
_SMALL_BUFFERS = 64_000_000


@dataclass(frozen=True, slots=True)
class Architecture:
    """A class, its configuration, and the names of the checkpoint's tensors in it."""

    model_class: Any
    config: Any
    names: dict[str, str] | None
    """Stored name to name in the model, of the tensors that are loaded; None: all, as stored."""

    def placed(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The tensors to load by their names in the model."""
        if self.names is None:
            return tensors
        return {self.names[name]: value for name, value in tensors.items() if name in self.names}

    def name(self, stored: str) -> str:
        return stored if self.names is None else self.names.get(stored, stored)


def architecture(folder: Path, header: Header, spec: ModelSpec) -> Architecture:
    """The architecture of a checkpoint.

    Raises ModelUnavailable for settings that transformers does not take, for a model that is no
    causal language model and has none as a part, and for sizes that the weights do not have.
    """
    config = _config(folder, header, spec)
    _check_method(folder, header)
    with foreign_errors(lambda error: _refused(folder, header, error)):
        chosen = _chosen(folder, config, header, spec)
        with torch.device("meta"):
            empty = chosen.model_class(chosen.config)
        if header.composite and chosen.config is not config:
            chosen = Architecture(chosen.model_class, chosen.config, _names(empty, header))
            _carry_quantization(config, chosen, header)
        _check_sizes(empty, chosen, header, folder)
    return chosen


def _config(folder: Path, header: Header, spec: ModelSpec) -> Any:
    def refused(error: Exception) -> ModelUnavailable:
        if "auto_map" in header.config and not spec.trust_remote_code:
            return ModelUnavailable(
                f"{folder / 'config.json'}: the model needs code that comes with it (auto_map); "
                "set model.trust_remote_code: true if you trust where it comes from"
            )
        return _refused(folder, header, error)

    with foreign_errors(refused):
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
        )


def _check_method(folder: Path, header: Header) -> None:
    """Refuse a method that transformers would skip with a warning, taking codes for floats."""
    known = {"bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING}
    if header.prequantized and header.prequantized not in known:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: the weights are quantized on disk by "
            f"{header.prequantized!r}, a method that this version of transformers does not know; "
            "give the unquantized checkpoint with model.quantization: int4 or int8"
        )


def _refused(folder: Path, header: Header, error: Exception) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder / 'config.json'}: transformers does not take these settings of model_type "
        f"{header.config.get('model_type')!r}: {type(error).__name__}: "
        f"{' '.join(str(error).split())[:500]}; restore the config.json of these weights, or use "
        "a version of transformers that knows the model"
    )


def _chosen(folder: Path, config: Any, header: Header, spec: ModelSpec) -> Architecture:
    kind = str(getattr(config, "model_type", ""))
    if kind in BOTH_DIRECTIONS:
        raise _no_language_model(
            folder, header, "it reads a prompt in both directions, which no causal model does"
        )
    if getattr(config, "is_encoder_decoder", False) and not _has(config):
        raise _no_language_model(folder, header, "it is an encoder-decoder")
    text = config.get_text_config(decoder=True)
    if text is config and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return Architecture(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, None)
    if text is config and spec.trust_remote_code:
        return Architecture(_shipped_class(folder, config), config, None)
    part = _text_class(config, text)
    if part is None:
        raise _no_language_model(folder, header, "transformers has no class for its decoder alone")
    text.tie_word_embeddings = header.head is None
    _head_as_in_the_whole(config, text, header)
    _experts_as_in_the_whole(config, text, part)
    return Architecture(part, text, None)


def _has(config: Any) -> bool:
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def _shipped_class(folder: Path, config: Any) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = (getattr(config, "auto_map", None) or {}).get(AutoModelForCausalLM.__name__)
    if reference is None:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: its auto_map names no {AutoModelForCausalLM.__name__}; it "
            "is not a causal language model"
        )
    return get_class_from_dynamic_module(reference, folder, local_files_only=True)


def _text_class(config: Any, text: Any) -> Any:
    """The class of a composite's language part; None where it has none that stands alone."""
    if text is config or getattr(text, "is_encoder_decoder", False):
        return None
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    whole = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if whole is not None and whole.config_class is type(text):
        return whole
    decoder = MODEL_MAPPING.get(type(text), None) or _unlisted_decoder(type(text))
    if decoder is None:
        return None
    made = {"config_class": type(text), "decoder_class": decoder}
    return type("LanguagePart", (_DecoderWithHead,), made)


def _unlisted_decoder(config_class: type) -> Any:
    """The text decoder that transformers keeps beside a configuration without listing it."""
    module = importlib.import_module(
        config_class.__module__.replace(".configuration_", ".modeling_")
    )
    found = [
        part
        for part in vars(module).values()
        if isinstance(part, type)
        and issubclass(part, PreTrainedModel)
        and getattr(part, "config_class", None) is config_class
        and part.__name__.endswith("Model")
        and not part.__name__.endswith("PreTrainedModel")
    ]
    return found[0] if len(found) == 1 else None


def _head_as_in_the_whole(config: Any, text: Any, header: Header) -> None:
    """Switch off what the decoder's own class does to logits and the whole model does not.

    transformers' classes for text and images put a plain head on the decoder, but for a few which
    scale or bound the logits; these say so by reading the setting.
    """
    whole = getattr(transformers, header.architecture, None)
    if getattr(whole, "config_class", None) is not type(config):
        whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if whole is None:
        return
    source = inspect.getsource(whole)
    if "AutoModelForCausalLM" in source:  # the decoder comes with its own head
        return
    for setting, neutral in HEAD_SETTINGS.items():
        if getattr(text, setting, None) is not None and setting not in source:
            setattr(text, setting, neutral)


def _experts_as_in_the_whole(config: Any, text: Any, part: Any) -> None:
    """Give the decoder the rules by which the whole model's experts are put together.

    transformers fuses the experts of a checkpoint by rules that it keeps for each model type; for
    some families only for that of the whole.
    """
    decoder = getattr(part, "decoder_class", part)
    own = (part.__name__, decoder.__name__, text.model_type)
    if any(get_checkpoint_conversion_mapping(name) for name in own):
        return
    rules = get_checkpoint_conversion_mapping(config.model_type) or []
    fusing = [rule for rule in rules if isinstance(rule, WeightConverter)]
    if fusing:
        register_checkpoint_conversion_mapping(text.model_type, fusing)


class _DecoderWithHead(PreTrainedModel, GenerationMixin):
    """A text decoder that transformers has without a head, and the head."""

    decoder_class: type
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.decoder_class(config)
        width = self.model.get_input_embeddings().embedding_dim
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        logits_to_keep: int = 0,
        **inputs: Any,
    ) -> Any:
        """Logits (B, T, V), of the last `logits_to_keep` positions where it is not 0."""
        out = self.model(input_ids=input_ids, **inputs)
        hidden = out.last_hidden_state
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        logits = self._scaled(self.lm_head(kept))
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        read = partial(getattr, self.config)
        logits = logits * (read("output_multiplier", None) or 1.0)
        logits = logits * (read("logit_scale", None) or 1.0)
        logits = logits / (read("logits_scaling", None) or 1.0)
        bound = read("final_logit_softcapping", None)
        return logits if bound is None else torch.tanh(logits / bound) * bound


def _no_language_model(folder: Path, header: Header, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder / 'config.json'}: {header.architecture} is not a causal language model: {why}. "
        "Give a model that continues a text"
    )


def _names(empty: Any, header: Header) -> dict[str, str]:
    """Where each stored tensor of the language part belongs in the (empty) model."""
    modules = {id(module): name for name, module in empty.named_modules()}
    table = modules[id(empty.get_input_embeddings())]
    prefix = table.rpartition(".")[0]
    head = modules.get(id(empty.get_output_embeddings()), HEAD_STEMS[0])
    names = {}
    for name in header.tensors:
        path = name.split(".")
        stem = next((i for i, part in enumerate(path) if part in HEAD_STEMS), None)
        if stem is not None:
            names[name] = ".".join([head, *path[stem + 1 :]])
        else:
            names[name] = f"{prefix}.{name.removeprefix(header.prefix)}"
    return names


def _carry_quantization(config: Any, chosen: Architecture, header: Header) -> None:
    """Give the language part the whole's `quantization_config`, with the names it has there."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    inside = chosen.name(header.embedding).removesuffix(".weight").rpartition(".")[0] + "."

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(part) for key, part in value.items()}
        if isinstance(value, list):
            return [renamed(part) for part in value]
        if isinstance(value, str) and header.prefix and value.startswith(header.prefix):
            return inside + value.removeprefix(header.prefix)
        return value

    chosen.config.quantization_config = renamed(found)


def _check_sizes(empty: Any, chosen: Architecture, header: Header, folder: Path) -> None:
    """Compare the model that config.json describes with the headers, before allocating memory."""
    wanted = dict(empty.named_parameters())
    if not header.prequantized:
        for stored, info in header.tensors.items():
            parameter = wanted.get(chosen.name(stored))
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
    if described > _ROOM * held + _SMALL or tables > _BUFFERS * held + _SMALL_BUFFERS:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: it describes a model of {described + tables:,} numbers, "
            f"the weights hold {held:,}; config.json and weights do not belong together"
        )
