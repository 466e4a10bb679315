"""Adapters: how they are found, checked and merged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.fingerprint import fingerprint
from glitchrun.checkpoint.headers import read_header
from glitchrun.errors import MissingExtra, ModelUnavailable
from glitchrun.model import load
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.memory_estimate import estimate
from glitchrun.spec.strategy import Workload
from glitchrun.spec.types import ModelSpec
from tests.support import composites
from tests.support import raw_checkpoints as raw
from tests.support.tiny_adapters import save_adapter
from tests.support.tiny_models import tiny_llama, tiny_mixtral

CACHE = Path("unused")
IDS = torch.arange(24).view(2, 12) + 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    targets = ["q_proj", "down_proj"]
    return save_adapter(model, tmp_path_factory.mktemp("lora"), r=4, target_modules=targets)


def _spec(folder: Path, **settings: Any) -> ModelSpec:
    return ModelSpec(str(folder), **{"device": "cpu", **settings})


@torch.no_grad()
def _logits(module: Any) -> torch.Tensor:
    logits: torch.Tensor = module(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Lora", {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]}),
        ("Lora", {"r": 4, "target_modules": ["k_proj"], "use_dora": True, "use_rslora": True}),
        ("Lora", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("Lora", {"r": 4, "target_modules": ["embed_tokens", "o_proj"]}),
        ("IA3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("LoHa", {"r": 4, "target_modules": ["gate_proj"]}),
    ],
)
def test_the_logits_are_those_of_the_model_with_its_adapter(
    base: Path, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(base)
    plain = _logits(reference)
    adapter = save_adapter(reference, tmp_path / "adapter", kind=kind, **settings)
    loaded = load(_spec(base, adapter=str(adapter)), CACHE)
    expected = _logits(reference)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(_logits(loaded.module), expected, rtol=1e-4, atol=1e-4)
    assert loaded.architecture == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in loaded.module.named_modules())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_an_adapter_is_merged_before_the_weights_are_quantized(
    base: Path, lora: Path, tmp_path: Path, quantization: str
) -> None:
    whole = load(_spec(base, adapter=str(lora), quantization="bfloat16"), CACHE)
    merged = Path(shutil.copytree(base, tmp_path / "merged"))
    whole.module.save_pretrained(merged)
    expected = load(_spec(merged, quantization=quantization), CACHE)
    found = load(_spec(base, adapter=str(lora), quantization=quantization), CACHE)
    assert torch.equal(_logits(found.module), _logits(expected.module))
    assert found.bytes_by_dtype == expected.bytes_by_dtype


def test_an_adapter_on_a_mixture_of_experts(tmp_path: Path) -> None:
    base = tiny_mixtral(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = save_adapter(model, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    for quantization in ("none", "int4"):
        found = load(_spec(base, adapter=str(adapter), quantization=quantization), CACHE)
        assert _logits(found.module).isfinite().all()
        if quantization == "none":
            torch.testing.assert_close(_logits(found.module), _logits(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_a_composite_changes_its_language_part(tmp_path: Path) -> None:
    base = composites.save("llava", tmp_path / "base")
    model = composites.load_whole(base)
    targets = r".*language_model.*\.(q_proj|up_proj)"
    adapter = save_adapter(model, tmp_path / "adapter", r=4, target_modules=targets)
    found = load(_spec(base, adapter=str(adapter)), CACHE)
    torch.testing.assert_close(_logits(found.module), _logits(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_as_model_path_is_rejected(lora: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"an adapter, not a model.*as model\.adapter"):
        resolve(str(lora))


def test_an_adapter_beside_weights_must_be_named_or_declined(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    shutil.copytree(lora, folder, dirs_exist_ok=True)
    with pytest.raises(ModelUnavailable, match=r"adapter: none leaves it out"):
        read_header(resolve(str(folder)))
    without = read_header(resolve(str(folder)), adapter="none")
    applied = read_header(resolve(str(folder)), adapter=str(folder))
    assert without.adapter is None
    assert applied.adapter is not None
    assert applied.adapter.kind == "LORA"
    plain, changed = (
        load(_spec(folder, adapter=choice), CACHE) for choice in ("none", str(folder))
    )
    assert (_logits(plain.module) - _logits(changed.module)).abs().max() > 0.1


def test_the_fingerprint_covers_the_adapter(base: Path, lora: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(lora, tmp_path / "other"))
    tensors = load_file(other / "adapter_model.safetensors")
    first = min(tensors)
    save_file(tensors | {first: tensors[first] + 1}, other / "adapter_model.safetensors")
    copy = Path(shutil.copytree(lora, tmp_path / "copy"))
    checkpoint = resolve(str(base))

    def identity(adapter: Path | None) -> str:
        chosen = None if adapter is None else str(adapter)
        return fingerprint(checkpoint, read_header(checkpoint, adapter=chosen))

    assert identity(lora) == identity(copy)
    assert len({identity(None), identity(lora), identity(other)}) == 3


def test_the_plan_counts_the_floats_that_are_merged_first(base: Path, lora: Path) -> None:
    device = DeviceMemory("cpu", 10**10, 10**10, "told")
    load_ = [Workload("s", 1, 8)]
    plain = read_header(resolve(str(base)))
    merging = replace(plain, adapter=read_header(resolve(str(base)), adapter=str(lora)).adapter)
    assert (
        estimate(merging, "int4", load_, device).loading_bytes
        >= estimate(plain, "int4", load_, device).loading_bytes + 125_000 * 2
    )


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)


def _only_pickled(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


_MORE_ROWS = "base_model.model.model.embed_tokens.weight"
_LAYER_9 = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
FAULTS: dict[str, tuple[Any, str]] = {
    "prompts": (lambda f: _config(f, peft_type="PREFIX_TUNING"), "PREFIX_TUNING is learned keys"),
    "no kind": (lambda f: _config(f, peft_type=None), "no peft_type"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no weights"),
    "pickle": (_only_pickled, "allow_pickle: true"),
    "not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
    "vocabulary": (lambda f: _tensor(f, _MORE_ROWS, torch.zeros(401, 64)), "401 rows.* 400"),
    "other layers": (lambda f: _tensor(f, _LAYER_9, torch.zeros(4, 64)), "layer 9 .* 2 layers"),
    "no folder": (lambda f: shutil.rmtree(f), "no such folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_inapplicable_adapter_is_rejected_from_its_headers(
    base: Path, lora: Path, tmp_path: Path, fault: str
) -> None:
    folder = Path(shutil.copytree(lora, tmp_path / "adapter"))
    harm, says = FAULTS[fault]
    harm(folder)
    with pytest.raises(ModelUnavailable, match=says):
        read_header(resolve(str(base)), adapter=str(folder))


WRONG: dict[str, tuple[Any, str]] = {
    "other width": (
        lambda f: _tensor(
            f, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(4, 32)
        ),
        "cannot be merged.*size mismatch",
    ),
    "part of nothing": (
        lambda f: _tensor(f, "base_model.model.tower.q_proj.lora_A.weight", torch.zeros(4, 4)),
        "fit nothing in the model",
    ),
    "unknown kind": (lambda f: _config(f, peft_type="WONDER"), "cannot be merged"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_an_adapter_that_does_not_fit_is_rejected_while_merging(
    base: Path, lora: Path, tmp_path: Path, fault: str
) -> None:
    folder = Path(shutil.copytree(lora, tmp_path / "adapter"))
    harm, says = WRONG[fault]
    harm(folder)
    with pytest.raises(ModelUnavailable, match=says):
        load(_spec(base, adapter=str(folder)), CACHE)


def test_a_pickled_adapter_loads_if_pickle_is_allowed(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lora, tmp_path / "adapter"))
    _only_pickled(folder)
    pickled = load(_spec(base, adapter=str(folder), allow_pickle=True), CACHE)
    sound = load(_spec(base, adapter=str(lora)), CACHE)
    assert torch.equal(_logits(pickled.module), _logits(sound.module))


def test_an_adapter_for_weights_quantized_on_disk_is_rejected(lora: Path, tmp_path: Path) -> None:
    config = raw.LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(ModelUnavailable, match="already quantized on disk"):
        read_header(resolve(str(raw.folder(tmp_path, config=config))), adapter=str(lora))


def test_the_error_without_peft_names_the_extra(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"glitchrun\[peft\]"):
        load(_spec(base, adapter=str(lora)), CACHE)
