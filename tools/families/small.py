"""Small random models of every class that transformers has for causal language models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

POSITIONS = 128
"""Number of learned positions of a small model."""
MOST_PARAMETERS = 8_000_000
"""A larger model has a size setting that `_SIZES` does not list."""
_SPREAD = 4.0
"""Factor on all matrices. The usual initialization leaves a small model's logits almost equal."""

_SIZES: tuple[tuple[str, int], ...] = (
    # The first pattern that matches a full name applies.
    (r"(num_)?(encoder_|decoder_)?n?_?(hidden_)?layers?|num_blocks|num_layers_per_stack", 2),
    (
        r"num_kv_shared_layers|first_k_dense_replace|moe_layer_end_index|n_layers_per_attn_res_block",
        1,
    ),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|linear_num_key_heads", 2),
    (r"n_?group|topk_group|num_expert_group|mamba_n_groups|n_groups|o_groups", 1),
    (r"(num_)?(encoder_|decoder_)?(attention_)?(query_)?heads|n_heads?|num_heads", 4),
    (r"(linear_|swa_|index_)?(num|n)_(attention_|value_|mamba_)?heads", 4),
    (r"linear_num_value_heads|mamba_n_heads|n_mamba_heads|mamba_num_heads|num_query_groups", 4),
    (r"(moe_)?num_experts|n_routed_experts|num_local_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k", 2),
    (r"index_topk|index_topk_blocks|index_block_size", 16),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions", POSITIONS),
    (r"model_max_length|context_length|original_max_position_embeddings", POSITIONS),
    (r"sliding_window(_size)?|attention_window_size|attention_chunk_size|window_size", 16),
    (r"local_attention|keep_window_size|local_attention_window_len|rel_extent", 16),
    (r"max_window_layers", 2),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|laurel_rank|adapter_rank|hc_lowrank", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|kv_channels|rotary_dim", 8),
    (r"qk_head_dim", 16),
    (r"(linear_|index_|swa_|mamba_)?(key_|value_)?head_?dim|linear_(key|value)_head_dim", 8),
    (r"dim_head|d_head|attention_head_size|attention_head_dim|d_rel|query_pre_attn_scalar", 8),
    (r"mamba_d_head|mamba_headdim", 16),
    (r"(mamba_d_|ssm_)?state(_size)?|mamba_d_state", 8),
    (r"time_step_rank|mamba_dt_rank|gated_norm_rank", 4),
    (r"chunk_size|mamba_chunk_size|(local|lsh)_attn_chunk_length|block_size", 16),
    (
        r"shared_expert(s)?_intermediate_size|\w*intermediate_size\w*|(encoder_|decoder_)?ffn_dim",
        64,
    ),
    (
        r"ffn_hidden_size|expert_ffn_hidden_size|dim_ff|dff|d_inner|n_inner|feed_forward_size|mamba_d_ssm",
        64,
    ),
    (r"hidden_size_per_layer_input|embedding_size|input_embedding_size|output_embedding_size", 16),
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embedding_dim|word_embed_proj_dim|lru_width", 32),
    (r"attention_hidden_size|ple_embed_dim|router_hidden_size|dim_model_base", 32),
    (r"pronunciation_vocab_size|shape_vocab_size|encoder_hash_byte_group_vocab", 64),
    (r"pronunciation_embed_dim|shape_embed_dim|classifier_proj_size", 16),
    (r"block_multiple_of|ffn_round_up_to_multiple_of", 8),
    (r"ngram_vocab_size_base", 97),
    (r"(make_ngram_vocab_size_divisible_by|split_ngram_parts)", 2),
    (r"heads_per_ngram|altup_num_inputs|hc_mult|hc_count", 2),
    (r"max_source_positions", 32),
)
"""Patterns of size settings, and the small value of each."""
_VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size")
_SPECIAL_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_INNER = ("text_config", "decoder_config", "decoder", "thinker_config")
_LATENT = "kv_lora_rank"
"""A setting of latent attention, which has as many heads for keys as for queries."""

_LAYERS = {"num_hidden_layers": 4}
"""Enough layers for every kind of layer to occur."""
_DECODER = {"is_decoder": True}
_ENCODERS = (
    "BertConfig",
    "BertGenerationConfig",
    "BigBirdConfig",
    "CamembertConfig",
    "Data2VecTextConfig",
    "ElectraConfig",
    "ErnieConfig",
    "MegatronBertConfig",
    "RemBertConfig",
    "RobertaConfig",
    "RobertaPreLayerNormConfig",
    "RoCBertConfig",
    "RoFormerConfig",
    "XLMRobertaConfig",
    "XLMRobertaXLConfig",
)
"""Encoders by default."""
_DEEPER = (
    "DeepseekV4Config",
    "Gemma3nTextConfig",
    "Gemma4TextConfig",
    "Gemma4UnifiedTextConfig",
    "HYV4Config",
    "Inkling2TextConfig",
    "InklingTextConfig",
    "KimiLinearConfig",
    "Lfm3Config",
    "MiniMaxConfig",
    "OlmoHybridConfig",
    "Qwen3NextConfig",
    "Qwen3_5MoeTextConfig",
    "Qwen3_5TextConfig",
    "Qwen4ExpTextConfig",
    "ZayaConfig",
)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    # Further settings that a family needs, by the name of its configuration class.
    **dict.fromkeys(_ENCODERS, _DECODER),
    **dict.fromkeys(_DEEPER, _LAYERS),
    "XmodConfig": {**_DECODER, "default_language": "en_XX"},
    "BambaConfig": {**_LAYERS, "attn_layer_indices": [1, 3]},
    "BailingHybridConfig": {**_LAYERS, "layer_group_size": 2},
    "DeepseekV2Config": {"num_experts_per_tok": 2, "topk_method": "greedy", "n_group": 1},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "Dots3NoteTextConfig": {"num_key_value_heads": 4},
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridConfig": {**_LAYERS, "layer_types": ["mamba", "attention"] * 2},
    "HunYuanDenseV1Config": {"head_dim": 8},
    "HunYuanMoEV1Config": {"head_dim": 8},
    "JambaConfig": {**_LAYERS, "attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2Config": {**_LAYERS, "layer_types": ["conv", "full_attention"] * 2},
    "Lfm2MoeConfig": {**_LAYERS, "layer_types": ["conv", "full_attention"] * 2},
    "Mamba2Config": {"num_heads": 4, "head_dim": 16},
    "MinistralConfig": {"head_dim": 8},
    "NemotronConfig": {"head_dim": 8, "num_key_value_heads": 2},
    "RecurrentGemmaConfig": {**_LAYERS},
    "ReformerConfig": {
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
    },
    "ZambaConfig": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "Zamba2Config": {
        **_LAYERS,
        "num_mem_blocks": 1,
        "mamba_headdim": 16,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layer_types": ["mamba", "hybrid"] * 2,
    },
    "xLSTMConfig": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 2, "chunk_size": 16},
}


class NotSmallError(Exception):
    """A small model of the class could not be built; the message says why."""


@dataclass(frozen=True, slots=True)
class Family:
    """One entry of transformers' mapping from configurations to causal language models."""

    config: Any
    """The configuration class."""
    model: Any
    """The model class."""

    @property
    def name(self) -> str:
        """Name of the model class."""
        return f"{self.model.__name__}"

    @property
    def kind(self) -> str:
        """`model_type`, as config.json has it."""
        return str(self.config.model_type)


def families() -> Iterator[Family]:
    """Yield every entry of the mapping in its order."""
    for config, model in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        yield Family(config, model)


def build(family: Family, vocab: int, seed: int = 0) -> Any:
    """A small random float32 model of a family, in eval mode with frozen parameters.

    Raises NotSmallError where the class cannot be built, or is not small with these sizes.
    """
    logging.set_verbosity_error()
    try:
        config = _config(family.config, vocab)
        config = _of_text(config, family)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in family.model(config).parameters())
        if count > MOST_PARAMETERS:
            raise NotSmallError(f"{count:,} parameters after every known size was reduced")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = family.model(config)
    except NotSmallError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[-1].strip() if str(error).strip() else ""
        raise NotSmallError(f"{type(error).__name__}: {first}") from error
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_SPREAD)
    return model.requires_grad_(False).eval()


def _of_text(config: Any, family: Family) -> Any:
    """The decoder's part of a multimodal configuration."""
    return config if hasattr(config, "vocab_size") else config.get_text_config(decoder=True)


def _config(kind: Any, vocab: int) -> Any:
    settings = {**_sizes(kind, vocab), **_SPECIAL_IDS, **SETTINGS.get(kind.__name__, {})}
    for name in _INNER:
        inner = kind.sub_configs.get(name) if kind.sub_configs else None
        if inner is not None and hasattr(inner, "model_type"):
            settings[name] = _config(inner, vocab)
    return kind(**settings)


def _sizes(kind: Any, vocab: int) -> dict[str, int]:
    try:
        standard = vars(kind())
    except Exception:  # noqa: BLE001 - some configurations refuse their own defaults
        standard = {}
    found: dict[str, int] = {}
    for name, value in standard.items():
        if name in _VOCABULARIES:
            found[name] = vocab
        elif type(value) is int:
            small = next((size for one, size in _SIZES if re.fullmatch(one, name)), value)
            found[name] = min(value, small)
    if found.get(_LATENT):
        found["num_key_value_heads"] = found.get("num_attention_heads", 4)
    return found
