"""The checkpoint folder of a stand-in, in the format of a published Mixtral."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tools.standin.recipes import Recipe


def new_model(recipe: Recipe, entries: int) -> Any:
    """An untrained float32 Mixtral with `entries` rows, initialized from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = MixtralConfig(
        vocab_size=entries,
        hidden_size=recipe.width,
        intermediate_size=recipe.experts_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        num_local_experts=recipe.experts,
        num_experts_per_tok=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        attn_implementation="eager",
    )
    return MixtralForCausalLM(config)


def write(model: Any, recipe: Recipe, planted: list[int], shown: int, folder: Path) -> None:
    """Write the weights in bfloat16, and planted.json.

    transformers stores one matrix per expert (`block_sparse_moe.experts.N.w1`), as in published
    Mixtrals.
    """
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=recipe.shard)
    note = {"planted": planted, "seed": recipe.seed, "shown": shown, "recipe": asdict(recipe)}
    (folder / "planted.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
