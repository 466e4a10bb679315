"""Compares the engine with one plain forward pass at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from glitchrun.probing import verifier as verifier_module
from glitchrun.probing.backend import Backend
from glitchrun.probing.logit_statistics import entropy, measure
from glitchrun.probing.model_call import Float32Arithmetic
from glitchrun.probing.verifier import Verifier
from glitchrun.strategies.context import Context
from tests.support import tiny_models
from tests.support.engine import context, one_at_a_time

SHAPES = {
    "llama": tiny_models.tiny_llama,
    "mixtral": tiny_models.tiny_mixtral,
    "gpt2": tiny_models.tiny_gpt2,
    "gemma": tiny_models.tiny_gemma,
    "qwen": tiny_models.tiny_qwen,
    "qwen_moe": tiny_models.tiny_qwen_moe,
}


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_verifier_agrees_with_one_forward_pass_at_a_time(shape: str, tmp_path: Path) -> None:
    build: Callable[..., Path] = SHAPES[shape]
    probed = context(build(tmp_path / "model"))
    prompts = probed.prompts("strict")
    ids = list(range(4, 60, 3))
    results = Verifier(probed.backend, prompts, rows=8).verify(ids)
    for token_id, by_probe in zip(ids, results, strict=True):
        for name, prompt in prompts.items():
            logits = one_at_a_time(probed, prompt.ids(token_id))
            expected = logits.softmax(-1)
            found = by_probe[name]
            assert found.argmax == int(logits.argmax())
            own, rounding = logits[token_id], 1e-5 * float(logits.abs().max())
            assert found.rank > int((logits > own + rounding).sum())
            assert found.rank <= int((logits > own - rounding).sum())
            assert found.p == pytest.approx(float(expected[token_id]), rel=1e-4, abs=1e-9)
            assert found.gap == pytest.approx(float(logits.max() - logits[token_id]), abs=1e-3)
            assert found.passed == (found.argmax == token_id)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_verdicts_do_not_depend_on_batch_or_order(llama: Context, rows: int) -> None:
    prompts = llama.prompts(("repeat",))
    ids = list(range(4, 40))
    straight = Verifier(llama.backend, prompts, rows=8).verify(ids)
    other = Verifier(llama.backend, prompts, rows=rows).verify(ids[::-1])[::-1]
    for a, b in zip(straight, other, strict=True):
        assert a["repeat"].argmax == b["repeat"].argmax
        assert a["repeat"].passed == b["repeat"].passed
        assert a["repeat"].p == pytest.approx(b["repeat"].p, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_selected_rows_continue_like_their_source_rows(shape: str, tmp_path: Path) -> None:
    backend = context(SHAPES[shape](tmp_path / "model")).backend
    ids = torch.tensor([[30, 31], [40, 41], [50, 51]])
    _, cache = backend.step(ids, backend.start((5, 6, 7), 3))
    chosen = backend.select(cache, torch.tensor([2, 0, 2]))
    again = backend.select(cache, torch.tensor([1]))
    forked, _ = backend.step(torch.tensor([[8], [9], [10]]), chosen)
    kept, _ = backend.step(torch.tensor([[11]]), again)
    for found, text in zip(
        [*forked, *kept], ([50, 51, 8], [30, 31, 9], [50, 51, 10], [40, 41, 11]), strict=True
    ):
        expected = backend.logits_alone([5, 6, 7, *text])
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_full_batch_and_a_padded_one_give_the_same_bits(llama: Context) -> None:
    prompts = llama.prompts(("repeat",))
    full = Verifier(llama.backend, prompts, rows=16).verify(list(range(10, 26)))
    padded = Verifier(llama.backend, prompts, rows=16).verify([10, 11, 12])
    assert padded == full[:3]


def test_a_near_tie_is_re_evaluated_alone(llama: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verifier_module.ROUNDING, torch.float32, 1e3)  # everything is a near-tie
    verifier = Verifier(llama.backend, llama.prompts(("repeat",)), rows=8)
    results = verifier.verify([20, 21, 22])
    assert verifier.counters["rechecked"] == 3
    assert verifier.counters["forwards"] == 1 + 3
    for token_id, found in zip([20, 21, 22], results, strict=True):
        prompt = llama.prompts(("repeat",))["repeat"]
        alone = one_at_a_time(llama, prompt.ids(token_id)).softmax(-1)[token_id]
        assert found["repeat"].p == pytest.approx(float(alone), rel=1e-6)


def test_verification_continues_with_half_the_batch_when_memory_runs_out(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Backend.last_logits

    def too_small(self: Backend, prefix: object, suffixes: torch.Tensor, **kw: bool) -> object:
        if len(suffixes) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 GiB")
        return whole(self, prefix, suffixes, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(Backend, "last_logits", too_small)
    verifier = Verifier(llama.backend, llama.prompts(("repeat",)), rows=16)
    results = verifier.verify(list(range(10, 30)))
    assert len(results) == 20
    assert verifier.counters["batch_halvings"] == 2
    assert verifier.rows == 4


def test_other_runtime_errors_do_not_halve_the_batch(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Backend, "last_logits", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Verifier(llama.backend, llama.prompts(("repeat",)), rows=8).verify([10])


def test_bfloat16_verdicts_equal_float32_verdicts_on_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verifier_module.ROUNDING, torch.bfloat16, 5.0)
    folder = tiny_models.tiny_llama(tmp_path / "narrow", dtype=torch.bfloat16)
    narrow, wide = context(folder, generic=True), context(folder, quantization="float32")
    ids = list(range(4, 120))
    prompts = narrow.prompts(("repeat",))
    verifier = Verifier(narrow.backend, prompts, rows=16)
    found = verifier.verify(ids)
    rechecked = [r["repeat"] for r in found if r["repeat"].decided_in == "float32"]
    expected = Verifier(wide.backend, prompts, rows=16).verify(ids)
    assert verifier.counters["rechecked"] == len(rechecked) > 10
    for a, b in zip(found, expected, strict=True):
        assert a["repeat"].passed == b["repeat"].passed
        if a["repeat"].decided_in == "float32":
            assert a["repeat"].p == pytest.approx(b["repeat"].p, rel=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_float32_arithmetic_keeps_quantized_weights(tmp_path: Path, quantization: str) -> None:
    folder = tiny_models.tiny_mixtral(tmp_path / "mixtral")
    probed = context(folder, quantization=quantization)
    prompt = probed.prompts(("repeat",))["repeat"]
    ids = torch.tensor([[30, *prompt.suffix_ids]])
    narrow = probed.backend.last_logits(prompt.prefix_ids, ids)
    wide = probed.backend.last_logits(prompt.prefix_ids, ids, float32=True)
    original = context(folder, quantization="float32").backend.last_logits(prompt.prefix_ids, ids)
    assert float((narrow - wide).abs().max()) < 0.1 * float(wide.abs().max())
    assert float((narrow - wide).abs().max()) < float((original - wide).abs().max())


def test_float32_arithmetic_widens_and_leaves_integers_alone() -> None:
    weight = torch.randn(4, 4, dtype=torch.bfloat16)
    with Float32Arithmetic():
        assert torch.nn.functional.linear(weight, weight).dtype == torch.float32
        assert weight.dtype == torch.float32
        assert weight.to(torch.bfloat16).dtype == torch.float32
        assert torch.arange(3).dtype == torch.int64
    assert weight.dtype == torch.bfloat16


def test_statistics_on_known_logits() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    found = measure(logits, torch.tensor([2]))
    p = np.exp([0.0, 2.0, 1.0, 2.0]) / np.exp([0.0, 2.0, 1.0, 2.0]).sum()
    assert float(found.p) == pytest.approx(p[2])
    assert int(found.rank) == 3
    assert int(found.argmax) == 1  # the lower id of two equal ones
    assert float(found.gap) == pytest.approx(1.0)
    assert float(found.margin) == pytest.approx(1.0)
    assert float(found.entropy) == pytest.approx(-(p * np.log(p + 1e-6)).sum(), rel=1e-5)
    tied = measure(logits, torch.tensor([3]))
    assert int(tied.rank) == 1
    assert not bool(tied.passed)
    assert bool(tied.near_ties(1e-4))


def test_gradient_agrees_with_finite_differences(llama: Context) -> None:
    prompt = llama.prompts(("repeat",))["repeat"]
    value, gradient = llama.backend.gradient(prompt.ids(30), prompt.position, entropy)
    module = llama.backend.model.module
    direction = torch.nn.functional.normalize(gradient, dim=0)
    values = []
    for step in (-1e-2, 1e-2):
        embeds = module.get_input_embeddings()(torch.tensor([prompt.ids(30)])).clone()
        embeds[0, prompt.position] += step * direction
        with torch.no_grad():
            values.append(float(entropy(module(inputs_embeds=embeds).logits[0, -1])))
    slope = (values[1] - values[0]) / 2e-2
    assert value == pytest.approx(sum(values) / 2, abs=1e-2)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)
