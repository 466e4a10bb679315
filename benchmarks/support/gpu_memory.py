"""Memory and time of loading and verifying a Mixtral of 22 billion random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from benchmarks.support.gpu_speed import (
    DEVICE,
    PREFIX,
    PROMPT,
    SUFFIX,
    free_bytes,
    freed,
    peak,
    reset_peak,
    seconds,
)
from benchmarks.support.page import MarkdownPage
from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.resolve import resolve
from glitchrun.model import load
from glitchrun.plan.weight_bytes import weights
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.verifier import Verifier
from glitchrun.spec.types import ModelSpec

TOKENIZER = Path(__file__).parents[2] / "tests" / "data" / "oracle" / "nowllm-0829"
MIXTRAL_22B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 15,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def write_mixtral(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes a MixtralForCausalLM of random bfloat16 weights, one file per layer."""
    config = transformers.MixtralConfig(**settings, architectures=["MixtralForCausalLM"])
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    for file in TOKENIZER.glob("*token*"):
        shutil.copy(file, folder)
    hidden, intermediate = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * (hidden // config.num_attention_heads)
    index: dict[str, str] = {}

    def store(number: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        file = f"model-{number:05}.safetensors"
        tensors = {name: _random(shape) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))

    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        moe = f"{at}block_sparse_moe."
        shapes: dict[str, tuple[int, ...]] = {
            f"{at}self_attn.q_proj.weight": (hidden, hidden),
            f"{at}self_attn.k_proj.weight": (kv, hidden),
            f"{at}self_attn.v_proj.weight": (kv, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, hidden),
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{moe}gate.weight": (config.num_local_experts, hidden),
        }
        for expert in range(config.num_local_experts):
            shapes[f"{moe}experts.{expert}.w1.weight"] = (intermediate, hidden)
            shapes[f"{moe}experts.{expert}.w2.weight"] = (hidden, intermediate)
            shapes[f"{moe}experts.{expert}.w3.weight"] = (intermediate, hidden)
        store(layer, shapes)
    vocabulary = (config.vocab_size, hidden)
    store(
        config.num_hidden_layers,
        {
            "model.embed_tokens.weight": vocabulary,
            "lm_head.weight": vocabulary,
            "model.norm.weight": (hidden,),
        },
    )
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    return (tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.03)).cpu()


def measure_memory(page: MarkdownPage, folder: Path, small: bool) -> None:
    """Writes the model to `folder`, and adds a table of loading and verifying it."""
    settings = dict(MIXTRAL_22B)
    if small:
        settings |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    folder.mkdir(parents=True, exist_ok=True)
    write_mixtral(folder, settings)
    header = read_header(resolve(str(folder)))
    billions = (weights(header, "none").parameters or 0) / 1e9
    page.add()
    page.add(f"### A Mixtral of {billions:.1f} billion random weights")
    page.table(
        ("weights", "loading", "bytes", "planned", "peak while loading", "rows", "tokens/s", "peak")
    )
    for quantization in ("bfloat16", "int8", "int4"):
        with freed():
            _load_and_verify(page, folder, quantization, weights(header, quantization).total)


def _load_and_verify(page: MarkdownPage, folder: Path, quantization: str, planned: int) -> None:
    model = load(ModelSpec(str(folder), quantization=quantization), folder / "cache")
    rows = standard_rows(model, PREFIX + SUFFIX + 1, free_bytes())
    verifier = Verifier(best_backend(model)[0], {"repeat": PROMPT}, rows)
    ids = list(range(100, 100 + rows))
    reset_peak()
    took = seconds(lambda: verifier.verify(ids), 1)
    page.row(
        quantization,
        f"{model.load_seconds:.0f} s",
        f"{model.bytes / 1e9:.2f} GB",
        f"{planned / 1e9:.2f} GB ({planned / model.bytes - 1:+.1%})",
        f"{model.peak_bytes / 1e9:.2f} GB",
        rows,
        f"{rows / took:,.0f}",
        peak(),
    )
