"""Loading in float dtypes, and the errors for damaged checkpoints."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glitchrun.errors import DoesNotFit, ModelUnavailable, PreflightError
from glitchrun.model import LoadedModel, load, load_tokenizer
from glitchrun.model.library_messages import METHOD_PACKAGES
from glitchrun.model.memory_use import bytes_by_device
from glitchrun.prompts.tokenizer import encode
from glitchrun.spec.types import ModelSpec
from tests.support.tiny_models import (
    bpe_tokenizer,
    mistral_tokenizer,
    tiny_llama,
    tiny_mixtral,
    tiny_qwen,
)

CACHE = Path("unused")  # folders need no conversion


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return tiny_llama(bpe_tokenizer(folder, chat_template="{{ messages }}"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixtral(tmp_path_factory.mktemp("mixtral"), shard_size="200KB")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def _load(folder: Path, **settings: object) -> LoadedModel:
    return load(ModelSpec(str(folder), **{"device": "cpu", **settings}), CACHE)  # type: ignore[arg-type]


def _logits(model: LoadedModel) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12) + 4
    with torch.no_grad():
        logits: torch.Tensor = model.module(input_ids=ids).logits
    return logits


def test_a_folder_loads_frozen_and_as_stored(llama: Path) -> None:
    model = _load(llama)
    assert (model.dtype, model.quantization) == ("float32", "none")
    assert model.architecture == "LlamaForCausalLM"
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.input_embeddings.shape == (400, 64)
    assert model.output_embeddings is not model.input_embeddings
    assert model.vocab_size == len(model.tokenizer) == 400
    assert model.tokenizer.chat_template == "{{ messages }}"
    assert model.peak_bytes >= model.bytes > 0
    assert model.unquantized == ()


def test_logits_are_those_of_transformers(llama: Path, mixtral: Path) -> None:
    for folder in (llama, mixtral):
        ids = torch.arange(24).view(2, 12) + 4
        with torch.no_grad():
            reference = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        torch.testing.assert_close(_logits(_load(folder)), reference)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_float_dtypes(llama: Path, dtype: str) -> None:
    model = _load(llama, quantization=dtype)
    assert model.dtype == dtype
    # Rotary frequencies stay in float32 in every dtype.
    held = model.bytes_by_dtype[dtype] - (64 if dtype == "float32" else 0)
    assert held == 125_248 * getattr(torch, dtype).itemsize


def test_a_padded_vocabulary_has_more_rows_than_tokens(tmp_path: Path) -> None:
    model = _load(tiny_qwen(tmp_path))
    assert model.vocab_size == 408 > len(model.tokenizer)
    assert model.output_embeddings is model.input_embeddings  # tied


def test_tied_weights_are_counted_once(tmp_path: Path) -> None:
    model = _load(tiny_llama(tmp_path, tied=True))
    distinct = {p.data_ptr(): p.nbytes for p in model.module.parameters()}
    distinct |= {b.data_ptr(): b.nbytes for b in model.module.buffers()}
    assert model.bytes == sum(distinct.values())


def test_a_missing_gpu(llama: Path) -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(PreflightError, match=f"{absent}.*usable CUDA devices"):
        _load(llama, device=absent)


def test_a_model_is_distributed_over_memory_and_disk(tmp_path: Path) -> None:
    """A model on two small devices gives the logits of one large device."""
    folder = tiny_llama(tmp_path / "deep", layers=6)
    whole = _load(folder)
    limits = {"cpu": int(whole.bytes * 0.6), "disk": "1GB"}
    shared = _load(folder, max_memory=limits)
    places = set(shared.module.hf_device_map.values())
    assert places == {"cpu", "disk"}
    in_memory = bytes_by_device(shared.module)["cpu", "float32"]
    assert in_memory <= limits["cpu"] < whole.bytes
    assert shared.bytes == pytest.approx(whole.bytes, rel=0.01)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        pair = [model.module(input_ids=ids).logits for model in (whole, shared)]
    assert torch.equal(*pair)
    assert torch.equal(whole.output_embeddings, shared.output_embeddings)


def test_max_memory(llama: Path) -> None:
    assert _load(llama, max_memory={"cpu": "1GB"}).device.type == "cpu"
    with pytest.raises(DoesNotFit, match=r"max_memory \{'cpu': '100KB'\}"):
        _load(llama, max_memory={"cpu": "100KB"})


def test_max_memory_with_a_missing_gpu(llama: Path) -> None:
    absent = torch.cuda.device_count()
    with pytest.raises(PreflightError, match=f"model.max_memory names the GPU {absent}"):
        _load(llama, max_memory={str(absent): "1GB", "cpu": "1GB"})


def _settings(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


_CODE = {"AutoConfig": "c.Config", "AutoModelForCausalLM": "c.Model"}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "cut short": (_cut_short, "cut short"),
    "missing layer": (
        lambda f: _without(f, "model.layers.1.mlp.up_proj.weight"),
        r"1 weights .* model.layers.1.mlp.up_proj.weight",
    ),
    "missing head": (lambda f: _without(f, "lm_head.weight"), "lm_head.weight"),
    "other shapes": (
        lambda f: _settings(f, intermediate_size=64),
        r"mlp\.\w+_proj\.weight.*128.*64",
    ),
    "other vocabulary": (lambda f: _settings(f, vocab_size=500), "vocab_size is 500, .* 400 rows"),
    "impossible": (
        lambda f: _settings(f, num_attention_heads=3),
        "config.json.*multiple of the number",
    ),
    "another width": (lambda f: _settings(f, hidden_size=63), "hidden_size is 63, .* 64 columns"),
    "fewer layers": (
        lambda f: _settings(f, num_hidden_layers=1),
        "num_hidden_layers is 1, .* 2 layers",
    ),
    "unknown": (lambda f: _settings(f, model_type="wonder"), "config.json.*'wonder'"),
    "code": (
        lambda f: _settings(f, model_type="wonder", auto_map=_CODE),
        "model.trust_remote_code: true",
    ),
    "no language model": (lambda f: _settings(f, model_type="t5"), "not a causal language model"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "tokenizer cannot"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"a":'), "tokenizer cannot"),
    "bad generation": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json",
    ),
    "pickle": (_as_pickle, "model.allow_pickle: true"),
}


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints(copy: Path, damage: str, quantization: str) -> None:
    harm, said = DAMAGE[damage]
    harm(copy)
    with pytest.raises(ModelUnavailable, match=said):
        _load(copy, quantization=quantization)


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_another_number_of_experts(mixtral: Path, tmp_path: Path, quantization: str) -> None:
    folder = Path(shutil.copytree(mixtral, tmp_path / "copy"))
    _settings(folder, num_local_experts=5)
    with pytest.raises(ModelUnavailable, match=r"num_local_experts is 5, .* 4 experts"):
        _load(folder, quantization=quantization)


def test_a_missing_shard(mixtral: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixtral, tmp_path / "copy"))
    (folder / "model-00003-of-00008.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"model-00003-of-00008\.safetensors"):
        _load(folder)


def test_allowed_pickle(llama: Path, copy: Path) -> None:
    _as_pickle(copy)
    model = _load(copy, allow_pickle=True)
    torch.testing.assert_close(_logits(model), _logits(_load(llama)))


def test_code_beside_a_known_architecture_is_not_run(copy: Path) -> None:
    _settings(copy, auto_map=_CODE)
    (copy / "c.py").write_text("raise SystemExit('ran')")
    assert _load(copy).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_attn_implementation": "someone/kernels"}, "_attn_implementation names code of the hub"),
        ({"attn_implementation": {"": "a/b@c:d"}}, "set model.trust_remote_code: true"),
        ({"vision": {"experts_implementation": "a/b"}}, "which the model would run; remove it"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes quantized the weights, but they have no scales",
        ),
    ],
)
def test_config_that_names_other_code_or_weights_is_refused(
    copy: Path, settings: dict[str, Any], message: str
) -> None:
    _settings(copy, **settings)
    with pytest.raises(ModelUnavailable, match=message):
        _load(copy)


def test_unused_weights_are_reported(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.draft.weight"] = torch.zeros(2)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        _load(copy)
    assert "1 tensors are not used, such as model.draft.weight" in caplog.text


def test_loading_prints_nothing(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for quantization in ("none", "int4"):
        _load(llama, quantization=quantization)
    assert capfd.readouterr() == ("", "")


def test_sentencepiece_keeps_its_leading_space(tmp_path: Path) -> None:
    """transformers 5 itself loads a Mixtral's tokenizer.model into a class that loses it."""
    tiny_mixtral(mistral_tokenizer(tmp_path), vocab=32_000, hidden=8, intermediate=8, layers=1)
    assert load_tokenizer(tmp_path)("Hello world").input_ids == [1, 22557, 1526]


_METHODS = {
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128, "zero_point": True},
    "compressed-tensors": {"format": "float-quantized", "config_groups": {}},
    "hqq": {"quant_config": {}},
    "quanto": {"weights": "int8"},
    "aqlm": {"in_group_size": 8},
    "wonder": {},
}


@pytest.mark.parametrize("method", _METHODS)
def test_weights_quantized_by_a_missing_package(copy: Path, method: str) -> None:
    _settings(copy, quantization_config={"quant_method": method, **_METHODS[method]})
    known = method in METHOD_PACKAGES
    remedy = f"pip install {METHOD_PACKAGES[method]}" if known else "give the unquantized"
    with pytest.raises(ModelUnavailable, match=re.escape(remedy)):
        _load(copy)


def test_a_head_that_is_neither_stored_nor_tied(copy: Path) -> None:
    _without(copy, "lm_head.weight")
    config = json.loads((copy / "config.json").read_text())
    del config["tie_word_embeddings"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="Set tie_word_embeddings: true there if"):
        _load(copy)


@pytest.mark.parametrize("kind", [NotImplementedError, AttributeError, ImportError, IndexError])
def test_any_error_of_transformers_while_loading_is_explained(
    copy: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise kind("deep inside")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", fails)
    with pytest.raises(ModelUnavailable, match=f"{kind.__name__}: deep inside"):
        _load(copy)


def test_a_tokenizer_that_fails_on_a_text_is_explained() -> None:
    class Fails:
        def encode(self, text: str, **_: object) -> list[int]:
            raise KeyError(text)

    with pytest.raises(ModelUnavailable, match="the model's tokenizer fails on a text"):
        encode(Fails(), "a")  # type: ignore[arg-type]
