"""The language part of a multimodal model as a causal language model of its own.

transformers has a causal class for the text settings of some families. For the others, the text
decoder is completed by the output matrix here. The other parts of the model are not loaded.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightConverter
from transformers.modeling_outputs import CausalLMOutputWithPast

from glitchrun.checkpoint.headers import Header

_LOGIT_SETTINGS = {
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "output_multiplier": 1.0,
    "lm_head_multiplier": 1.0,
    "final_logit_softcapping": None,
}
"""Settings that scale or bound a decoder's logits, and their neutral values."""


def text_decoder_class(config: Any, text: Any) -> Any:
    """The causal class for the text settings of a model; None where its decoder has no own class.

    `config` is the configuration of the whole model, `text` that of its decoder.
    """
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
    attributes = {"config_class": type(text), "decoder_class": decoder}
    return type("LanguagePart", (DecoderWithHead,), attributes)


def _unlisted_decoder(config_class: type) -> Any:
    """The text decoder in the module of a configuration that transformers does not list."""
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


def match_whole_model(config: Any, text: Any, part: Any, header: Header) -> None:
    """Change settings of the decoder where its own class and the whole model compute differently.

    `part` is the class from `text_decoder_class`. The arguments are changed in place.
    """
    text.tie_word_embeddings = header.head is None
    _match_logits(config, text, header)
    _match_expert_fusing(config, text, part)


def _match_logits(config: Any, text: Any, header: Header) -> None:
    """Neutralize settings by which only the decoder's own class changes the logits.

    Most multimodal classes of transformers have a plain head on the decoder. A few scale or bound
    the logits; the source of these reads the setting.
    """
    whole = getattr(transformers, header.architecture, None)
    if getattr(whole, "config_class", None) is not type(config):
        whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if whole is None:
        return
    source = inspect.getsource(whole)
    if "AutoModelForCausalLM" in source:  # the decoder has its own head
        return
    for setting, neutral in _LOGIT_SETTINGS.items():
        if getattr(text, setting, None) is not None and setting not in source:
            setattr(text, setting, neutral)


def _match_expert_fusing(config: Any, text: Any, part: Any) -> None:
    """Register the whole model's rules for fusing experts for the decoder too.

    transformers fuses the experts of a checkpoint by rules per model type. Some families have
    them only for the type of the whole model.
    """
    decoder = getattr(part, "decoder_class", part)
    own = (part.__name__, decoder.__name__, text.model_type)
    if any(get_checkpoint_conversion_mapping(name) for name in own):
        return
    rules = get_checkpoint_conversion_mapping(config.model_type) or []
    fusing = [rule for rule in rules if isinstance(rule, WeightConverter)]
    if fusing:
        register_checkpoint_conversion_mapping(text.model_type, fusing)


class DecoderWithHead(PreTrainedModel, GenerationMixin):
    """A text decoder for which transformers has no causal class, with an output matrix."""

    decoder_class: type
    """Set by the subclass for each decoder."""
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
        """Logits `(B, T, V)` for ids `(B, T)`.

        With `logits_to_keep` K > 0, only those of the last K positions: `(B, K, V)`.
        """
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
