"""Sizes in config.json that the weights do not have are rejected before they cost memory."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.model import load
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.memory_estimate import estimate
from glitchrun.spec.strategy import Workload
from glitchrun.spec.types import ModelSpec
from tests.support import composites
from tests.support.config_fuzz import mutated, within
from tests.support.tiny_models import tiny_gpt2, tiny_llama, tiny_mixtral, tiny_qwen_moe

_BEYOND = 1500 * 1024**2
"""Bytes that a case may use beyond those of the process."""
_SECONDS = 60
"""Limit in seconds; a case takes a fraction of a second."""
MODELS: dict[str, Any] = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "mixtral": tiny_mixtral,
    "qwen_moe": tiny_qwen_moe,
    "gemma3": lambda folder: composites.save("gemma3", folder),
}
DEVICE = DeviceMemory("cpu", 8 * 10**9, 8 * 10**9, "told")


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = MODELS[request.param](tmp_path_factory.mktemp("sound"))
    return folder


@pytest.fixture
def limited() -> Iterator[None]:
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + _BEYOND, before[1]))
    try:
        with within(_SECONDS):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _try(folder: Path, quantization: str) -> str:
    """Runs `plan` and `apply` up to the first logits. Returns their error message or `loaded`."""
    try:
        header = read_header(resolve(str(folder)))
        estimate(header, quantization, [Workload("s", 4, 20)], DEVICE)
        spec = ModelSpec(str(folder), device="cpu", quantization=quantization)
        loaded = load(spec, Path("unused"))
    except PreflightError as refused:
        return str(refused)
    with torch.no_grad():
        loaded.module(input_ids=torch.arange(8)[None] + 5)
    return "loaded"


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("first", [100, 104])
def test_any_config_loads_or_is_rejected_with_a_message(
    model: Path, tmp_path: Path, first: int
) -> None:
    config = json.loads((model / "config.json").read_text())
    folder = Path(shutil.copytree(model, tmp_path / "wrong"))
    for seed in range(first, first + 4):
        changed, what = mutated(config, seed)
        (folder / "config.json").write_text(json.dumps(changed))
        said = _try(folder, "int4" if seed % 4 == 1 else "none")
        assert said == "loaded" or "config.json" in said or str(folder) in said, what


_LLAMA = {
    "num_hidden_layers": (30_000, "num_hidden_layers is 30,000, .* 2 layers"),
    "hidden_size": (2**30, "hidden_size is 1,073,741,824, .* 64 columns"),
    "vocab_size": (2**31 - 1, "vocab_size is 2,147,483,647, .* 400 rows"),
    "intermediate_size": (2**28, "intermediate_size is 268,435,456, .* 128 rows"),
    "num_labels": (2**31, "num_labels is 2147483648, more than 100,000"),
    "max_position_embeddings": (10**30, "max_position_embeddings is 10+, more than"),
    "sliding_window": ({"a": 1}, "sliding_window is {'a': 1}, not a whole number"),
    "vision_config": ({"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648, more than"),
    "num_attention_heads": ("many", "num_attention_heads is 'many', not a positive"),
}


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("key", _LLAMA)
def test_a_size_that_the_weights_do_not_have_is_rejected_by_the_plan(
    tmp_path: Path, key: str
) -> None:
    value, says = _LLAMA[key]
    folder = tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match=says):
        read_header(resolve(str(folder)))


@pytest.mark.usefixtures("limited")
def test_errors_in_building_the_model_are_reported_before_the_weights_are_read(
    tmp_path: Path,
) -> None:
    folder = tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"head_dim": 2**26}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match=r"_proj.weight has shape .* wants \(\d{9}, 64\)"):
        load(ModelSpec(str(folder), device="cpu"), Path("unused"))


@pytest.mark.usefixtures("limited")
def test_sizes_that_a_pickle_file_cannot_contain_are_rejected(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    model = load(ModelSpec(str(folder), device="cpu"), Path("unused")).module
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    sound = json.loads((folder / "config.json").read_text())
    assert read_header(resolve(str(folder)), allow_pickle=True).format == "pickle"
    for key, value, says in (
        ("num_hidden_layers", 30_000, "30,000 layers, .* 21 tensors"),
        ("vocab_size", 2**30, "largest tensor stored has 102,400"),
    ):
        (folder / "config.json").write_text(json.dumps(sound | {key: value}))
        with pytest.raises(ModelUnavailable, match=says):
            read_header(resolve(str(folder)), allow_pickle=True)
