"""The language part of multimodal models: logits, bytes and planned bytes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.errors import ModelUnavailable
from glitchrun.model import LoadedModel, load, tokenizer_of
from glitchrun.plan.weight_bytes import weights
from glitchrun.probing.backend_selection import best_backend
from glitchrun.spec.types import ModelSpec
from tests.support import composites
from tests.support import raw_checkpoints as raw

IDS = torch.arange(24).view(2, 12) * 7 % 380 + 5


@pytest.fixture(scope="module", params=list(composites.FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return composites.save(request.param, tmp_path_factory.mktemp(request.param))


def _load(folder: Path, quantization: str = "none") -> LoadedModel:
    return load(ModelSpec(str(folder), quantization=quantization, device="cpu"), Path("unused"))


def test_the_language_part_gives_the_logits_of_the_whole_model(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="glitchrun"):
        part = _load(folder)
    assert not caplog.records
    with torch.no_grad():
        whole = composites.load_whole(folder)(input_ids=IDS).logits
        found = part.module(input_ids=IDS).logits
    assert whole.std() > 0.1
    torch.testing.assert_close(found, whole)
    assert part.vocab_size == composites.VOCAB == tokenizer_of(str(folder))[1]
    assert part.config.get_text_config() is part.config
    assert part.architecture.endswith("ForConditionalGeneration")


@pytest.mark.parametrize("quantization", ["none", "bfloat16", "int8", "int4"])
def test_the_plan_counts_only_the_language_part(folder: Path, quantization: str) -> None:
    loaded = _load(folder, quantization)
    header = read_header(resolve(str(folder)))
    assert header.composite
    with torch.no_grad():
        assert loaded.module(input_ids=IDS).logits.isfinite().all()
    quantized = quantization in ("int8", "int4")
    assert quantized == any(kind in loaded.bytes_by_dtype for kind in ("int4", "int8"))
    assert weights(header, quantization).total == pytest.approx(loaded.bytes, rel=0.02)
    assert not [name for name in loaded.unquantized if "router" not in name and "gate" not in name]


def test_the_fast_path_supports_a_known_decoder(tmp_path: Path) -> None:
    _, why = best_backend(_load(composites.save("llava", tmp_path)))
    assert why.startswith("fast: same logits")


def test_missing_settings_are_derived_from_the_weights(tmp_path: Path) -> None:
    """LLaVA's published text_config names neither widths nor layers."""
    text = {"model_type": "llama", "vocab_size": 10}
    config = {"model_type": "llava", "text_config": text, "vision_config": {}}
    tensors = {f"language_model.{name}": value for name, value in raw.TENSORS.items()}
    tensors |= {"vision_tower.layers.7.mlp.fc1.weight": ("BF16", (4, 4))}
    header = read_header(resolve(str(raw.folder(tmp_path, config=config, tensors=tensors))))
    assert (header.dims.hidden_size, header.dims.num_layers, header.vocab) == (8, 1, 10)
    assert (header.prefix, header.head) == (
        "language_model.model.",
        "language_model.lm_head.weight",
    )
    assert len(header.tensors) == len(raw.TENSORS)


def test_a_talker_is_not_the_language_part(tmp_path: Path) -> None:
    text = {**raw.LLAMA, "model_type": "qwen2_5_omni_text"}
    config = {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": text}}
    tensors = {f"thinker.{name}": value for name, value in raw.TENSORS.items()}
    tensors |= {"talker.model.embed_tokens.weight": ("BF16", (20, 4))}
    header = read_header(resolve(str(raw.folder(tmp_path, config=config, tensors=tensors))))
    assert header.embedding == "thinker.model.embed_tokens.weight"


def test_a_bidirectional_model_is_rejected(tmp_path: Path) -> None:
    vision = {**composites._VISION, "model_type": "siglip_vision_model"}
    made = ("PaliGemmaForConditionalGeneration", {"model_type": "gemma"}, {"vision_config": vision})
    composites.FAMILIES["paligemma"] = made
    try:
        composites.save("paligemma", tmp_path)
    finally:
        del composites.FAMILIES["paligemma"]
    with pytest.raises(ModelUnavailable, match=r"PaliGemmaFor.*both directions"):
        _load(tmp_path)
