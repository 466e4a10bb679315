"""Tiny random models for text and images, or text and sound, of several families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from tests.support.tiny_models import bpe_tokenizer

VOCAB = 400
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"depth": 1, "num_heads": 4, "patch_size": 14}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_GEMMA3_VISION = {**_VISION, "model_type": "siglip_vision_model"}
_AUDIO = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        {"vision_config": _GEMMA3_VISION},
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral"},
        {"vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8}},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {"model_type": "llama"},
        {"vision_config": {**_VISION, "model_type": "clip_vision_model"}},
    ),
    "llava_granite": (  # a decoder that scales its logits, under a whole that does not
        "LlavaNextForConditionalGeneration",
        {"model_type": "granite", "logits_scaling": 8.0, "embedding_multiplier": 3.0},
        {"vision_config": {**_VISION, "model_type": "clip_vision_model"}},
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {"rope_parameters": _MROPE},
        {"vision_config": {**_QWEN_VISION, "embed_dim": 32, "hidden_size": 32}},
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        {**_EXPERTS, "rope_parameters": _MROPE},
        {
            "vision_config": {
                **_QWEN_VISION,
                "hidden_size": 32,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            }
        },
    ),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        {"model_type": "llama"},
        {"vision_config": _VISION},
    ),
    "llama4": (
        "Llama4ForConditionalGeneration",
        {"num_local_experts": 2, "intermediate_size_mlp": 64, "num_experts_per_tok": 1},
        {
            "vision_config": {
                **_VISION,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            }
        },
    ),
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        {"model_type": "qwen2"},
        {"audio_config": {**_AUDIO, "model_type": "qwen2_audio_encoder"}},
    ),
}


def save(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A whole model of `family`, saved as `save_pretrained` does, with a tokenizer."""
    transformers.utils.logging.disable_progress_bar()
    name, text, parts = FAMILIES[family]
    model_class = getattr(transformers, name)
    config = model_class.config_class(text_config=_TEXT | text, **parts)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config).to(dtype)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # see tiny_models: the usual initialization is flat
    model.save_pretrained(folder)
    return bpe_tokenizer(folder, size=VOCAB)


def load_whole(folder: Path) -> PreTrainedModel:
    """The whole model, all of its parts."""
    name = AutoConfig.from_pretrained(folder).architectures[0]
    whole: PreTrainedModel = getattr(transformers, name).from_pretrained(folder)
    return whole.eval()
