"""int4 and int8: bytes, predictions and gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.stream_units import why_not_streamable
from glitchrun.errors import ModelUnavailable
from glitchrun.model import LoadedModel, load, quantizer
from glitchrun.model.quantized_layers import SCHEMES, QuantizedMatrices, unpack_stored
from glitchrun.plan.weight_bytes import weights
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.spec.types import ModelSpec
from tests.support import tiny_models
from tools.families.small import build, families

CACHE = Path("unused")
IDS = torch.randint(4, 400, (6, 10), generator=torch.Generator().manual_seed(0))
RATIO = {"int4": 0.32, "int8": 0.58}
"""Maximum share of the bytes in bfloat16, for a Mixtral with 90 % of the weights in experts."""
CORRELATION = {"int4": 0.85, "int8": 0.99}
"""Minimum correlation with the logits in bfloat16; measured 0.92 and 0.996 on these weights."""
COSINE = {"int4": 0.5, "int8": 0.95}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads do not speed up tiny matrices and cost seconds on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _load(folder: Path, quantization: str) -> LoadedModel:
    return load(ModelSpec(str(folder), quantization=quantization, device="cpu"), CACHE)


def _logits(model: LoadedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.module(input_ids=ids).logits.float()
    return logits


def _gradient(model: LoadedModel) -> torch.Tensor:
    embedded = model.input_embeddings[IDS].detach().clone().requires_grad_()
    logits = model.module(inputs_embeds=embedded).logits[:, -1].float()
    logits.log_softmax(-1)[:, 7].sum().backward()
    assert embedded.grad is not None
    return embedded.grad.float().flatten()


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_mixtral(
        tmp_path_factory.mktemp("mixtral"),
        hidden=128,
        intermediate=256,
        experts=8,
        dtype=torch.bfloat16,
        shard_size="1MB",
    )


@pytest.fixture(scope="module")
def reference(mixtral: Path) -> LoadedModel:
    return _load(mixtral, "bfloat16")


@pytest.fixture(scope="module", params=["int4", "int8"])
def quantized(request: pytest.FixtureRequest, mixtral: Path) -> LoadedModel:
    return _load(mixtral, request.param)


def test_fused_experts_are_quantized(quantized: LoadedModel, reference: LoadedModel) -> None:
    parameters = dict(reference.module.named_parameters())
    experts = sum(p.numel() for name, p in parameters.items() if "experts" in name)
    assert experts / sum(p.numel() for p in parameters.values()) == pytest.approx(0.9, abs=0.02)
    assert quantized.bytes / reference.bytes <= RATIO[quantized.quantization]
    assert quantized.unquantized == ()
    linear = sum(p.numel() for n, p in parameters.items() if "proj" in n)
    width = {"int4": 0.5, "int8": 1}[quantized.quantization]
    assert quantized.bytes_by_dtype[quantized.quantization] == linear * width


def test_bytes_by_dtype_sum_up_all_storages(quantized: LoadedModel) -> None:
    tensors = [*quantized.module.parameters(), *quantized.module.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert quantized.bytes == sum(held.values())
    assert quantized.bytes_by_dtype["quantization scales"] > 0


def test_predictions_agree_with_bfloat16(quantized: LoadedModel, reference: LoadedModel) -> None:
    agreement = _correlation(_logits(quantized), _logits(reference))
    assert agreement > CORRELATION[quantized.quantization]


def test_gradients_flow_after_a_forward_pass_without_gradients(
    quantized: LoadedModel, mixtral: Path
) -> None:
    """bitsandbytes' int4 layer repacks itself in such a pass and gives zeros from then on."""
    _logits(quantized)
    gradient, exact = _gradient(quantized), _gradient(_load(mixtral, "float32"))
    assert torch.cosine_similarity(gradient, exact, dim=0) > COSINE[quantized.quantization]


def test_rows_do_not_depend_on_the_batch(quantized: LoadedModel) -> None:
    """LLM.int8() selects outlier columns over the batch, which changes logits by more than 1."""
    alone = torch.cat([_logits(quantized, row[None]) for row in IDS])
    torch.testing.assert_close(alone, _logits(quantized), atol=0.05, rtol=0.02)


def test_only_the_selected_experts_are_dequantized(
    quantized: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    experts = quantized.module.model.layers[0].mlp.experts
    kind = type(experts.down_proj)
    matrix = kind.matrix

    def spy(self: QuantizedMatrices, index: int, dtype: torch.dtype) -> torch.Tensor:
        asked.append(index)
        floats: torch.Tensor = matrix(self, index, dtype)
        return floats

    monkeypatch.setattr(kind, "matrix", spy)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    chosen = torch.tensor([[5, 2], [2, 5], [5, 2]])
    experts(x, chosen, torch.full((3, 2), 0.5))
    assert asked == [2, 2, 5, 5]


def test_experts_compute_what_transformers_computes(
    quantized: LoadedModel, reference: LoadedModel
) -> None:
    """The original module with the dequantized weights gives the same output."""
    ours = quantized.module.model.layers[0].mlp.experts
    theirs = reference.module.model.layers[0].mlp.experts
    kept = {name: getattr(theirs, name) for name in ("gate_up_proj", "down_proj")}
    x = torch.randn(5, 128)
    chosen = torch.tensor([[0, 1], [7, 3], [3, 0], [1, 2], [6, 5]])
    weights = torch.rand(5, 2)
    for name in kept:
        floats = [getattr(ours, name).matrix(e, torch.float32) for e in range(8)]
        setattr(theirs, name, nn.Parameter(torch.stack(floats)))
    expected = theirs(x, chosen, weights)
    for name, parameter in kept.items():
        setattr(theirs, name, parameter)
    torch.testing.assert_close(ours(x, chosen, weights), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cast_does_not_change_the_weights(scheme: str) -> None:
    matrices = SCHEMES[scheme].quantize(torch.randn(2, 24, 96))
    before = matrices.matrix(1, torch.float32)
    matrices.to(torch.bfloat16)
    assert torch.equal(matrices.matrix(1, torch.float32), before)


@pytest.mark.parametrize(("scheme", "worst"), [("int4", 0.2), ("int8", 0.01)])
@pytest.mark.parametrize("shape", [(1, 24, 96), (3, 7, 33), (2, 5, 1), (1, 8, 192)])
def test_quantization_error(scheme: str, worst: float, shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weights[0, 0] = 0  # a row of zeros has no scale
    matrices = SCHEMES[scheme].quantize(weights)
    back = torch.stack([matrices.matrix(i, torch.float32) for i in range(shape[0])])
    assert back.shape == weights.shape
    assert (back - weights).abs().max() <= worst * weights.abs().max()


OTHERS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "qwen3 moe": (tiny_models.tiny_qwen_moe, ()),
    # The position embedding is not quantized, and reported as such.
    "gpt2, Conv1D": (tiny_models.tiny_gpt2, ("transformer.wpe.weight",)),
    "gemma": (tiny_models.tiny_gemma, ()),
    "qwen2, biases": (tiny_models.tiny_qwen, ()),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_other_architectures(tmp_path: Path, name: str, scheme: str) -> None:
    build, left = OTHERS[name]
    folder = build(tmp_path)
    model = _load(folder, scheme)
    assert model.bytes_by_dtype[scheme] > 0
    assert model.unquantized == left
    agreement = _correlation(_logits(model), _logits(_load(folder, "float32")))
    assert agreement > {"int4": 0.9, "int8": 0.995}[scheme]


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_llama_4_s_experts_compute_what_transformers_does_with_the_same_weights(
    scheme: str,
) -> None:
    config = Llama4TextConfig(hidden_size=48, intermediate_size=32, num_local_experts=4)
    theirs, ours = Llama4TextExperts(config), Llama4TextExperts(config)
    generator = torch.Generator().manual_seed(1)
    for name in ("gate_up_proj", "down_proj"):
        weights = torch.randn(getattr(ours, name).shape, generator=generator) / 5
        quantizer._put_quantized_experts(ours, name, weights, SCHEMES[scheme])
        matrices = getattr(ours, name)
        floats = torch.stack([matrices.matrix(one, torch.float32).T for one in range(4)])
        assert (floats - weights).abs().max() < {"int4": 0.2, "int8": 0.01}[scheme]
        getattr(theirs, name).data = floats
    x = torch.randn(4, 6, 48, generator=generator)
    x[:, 2:] *= torch.tensor([0.7, 0.0, 0.0, 0.2])[:, None, None]  # router weights
    x[1, :2] = 0  # an expert that gets no position
    x = x.view(-1, 48).requires_grad_()
    wanted, found = theirs(x), ours(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), x, retain_graph=True)
    (other,) = torch.autograd.grad(wanted.sum(), x)
    rows = (x != 0).any(dim=-1)
    assert torch.allclose(gradient[rows], other[rows], atol=1e-4)


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_a_checkpoint_quantized_on_disk_loads_unchanged(tmp_path: Path, scheme: str) -> None:
    source = tiny_models.tiny_llama(tmp_path / "source")
    folder = tiny_models.prequantized(source, tmp_path / "stored", scheme)
    model, ours = _load(folder, "none"), _load(source, scheme)
    assert model.quantization == f"bitsandbytes {'nf4' if scheme == 'int4' else scheme} (as stored)"
    assert model.bytes_by_dtype == ours.bytes_by_dtype
    torch.testing.assert_close(_logits(model), _logits(ours))
    _logits(model)
    assert _gradient(model).abs().sum() > 0
    scales = {"int4": "weight.absmax", "int8": "SCB"}[scheme]
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.down_proj.{scales}"
    short = {**tensors, name: tensors[name][:-1].clone()}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    match = r"layers\.1\.mlp\.down_proj.*: its quantized weights or their scales"
    with pytest.raises(ModelUnavailable, match=match):
        _load(folder, "none")
    parts = {part.removeprefix("model.layers.1."): one for part, one in short.items()}
    parts = {part: one for part, one in parts.items() if "mlp.down_proj" in part}
    shapes = {"mlp.down_proj.weight": torch.Size((64, 128))}
    with pytest.raises(ModelUnavailable, match=match.removeprefix(r"layers\.1\.")):
        unpack_stored(dict(parts), shapes)
    del parts[f"mlp.down_proj.{scales}"]
    with pytest.raises(ModelUnavailable, match="fetch it again"):
        unpack_stored(parts, shapes)


def test_codes_stored_as_floats_are_the_same_weights(tmp_path: Path) -> None:
    """`bnb_4bit_quant_storage`, which training with FSDP needs."""
    source = tiny_models.tiny_llama(tmp_path / "source")
    folder = tiny_models.prequantized(source, tmp_path / "stored", "int4", "bfloat16")
    torch.testing.assert_close(_logits(_load(folder, "none")), _logits(_load(source, "int4")))
    header = read_header(resolve(str(folder)))
    assert (why_not_streamable(header) or "").endswith("model.quantization: int4 or int8")
    floats = weights(read_header(resolve(str(source))), "none")
    assert weights(header, "none").parameters == floats.parameters


_PEAK = """
import sys
from pathlib import Path
from glitchrun.model import load
from glitchrun.spec.types import ModelSpec
model = load(ModelSpec(sys.argv[1], quantization=sys.argv[2], device="cpu"), Path("unused"))
print(model.peak_bytes, model.bytes)
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_mixtral(
        tmp_path_factory.mktemp("sharded"),
        hidden=512,
        intermediate=1024,
        layers=4,
        experts=8,
        dtype=torch.bfloat16,
        shard_size="20MB",
    )


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_the_peak_while_loading(sharded: Path, scheme: str) -> None:
    """Resident memory of a separate process, including first allocations of libraries."""
    layer = 8 * 3 * 512 * 1024 * 2
    run = [sys.executable, "-c", _PEAK, str(sharded), scheme]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    peak, held = map(int, result.stdout.split())
    assert held < peak < held + 2 * layer


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["jamba", "lfm2_moe", "qwen3_next", "falcon_h1", "gpt_oss"])
def test_other_kinds_of_layers_are_quantized_and_run(
    kind: str, quantization: str, tmp_path: Path
) -> None:
    """States of recurrences and convolutions, and experts with biases. Jamba multiplies a weight of
    its own accord: that layer stays in floats."""
    family = next(one for one in families() if one.kind == kind)
    tiny_models.bpe_tokenizer(tmp_path)
    build(family, 400).save_pretrained(tmp_path)
    floats, model = _load(tmp_path, "bfloat16"), _load(tmp_path, quantization)
    assert quantization in model.bytes_by_dtype
    backend, _ = best_backend(model)
    found = backend.logits_alone(IDS[0].tolist(), float32=True)
    wanted = Backend(floats).logits_alone(IDS[0].tolist(), float32=True)
    assert _correlation(found, wanted) > {"int8": 0.9, "int4": 0.4}[quantization]
    assert backend.last_logits(IDS[0, :4].tolist(), IDS[:, 4:]).isfinite().all()
