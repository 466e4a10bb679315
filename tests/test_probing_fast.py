"""Compares the fast backend with the forward pass of transformers."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glitchrun.model import load
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing import backend_selection, fast_backend
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.decoding import SlotDecoder
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.probing.frozen_suffix import why_not_screenable
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.render import Prompt
from glitchrun.spec.types import ModelSpec
from tests.support import tiny_models
from tests.support.engine import CACHE, context

LLAMA_LAYOUTS: dict[str, Callable[..., Path]] = {
    "llama": tiny_models.tiny_llama,
    "mixtral": tiny_models.tiny_mixtral,
    "qwen2": tiny_models.tiny_qwen,
}


def loaded(folder: Path, quantization: str = "none") -> LoadedModel:
    return load(ModelSpec(str(folder), quantization=quantization), CACHE)


LAYER_TYPES = ["sliding_attention", "full_attention"]
GEMMA2: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 6,
    "layer_types": LAYER_TYPES,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}


def other(folder: Path, kind: str, **settings: Any) -> Path:
    """Writes a tiny model of another class of transformers."""
    shape = tiny_models._llama_shape(64, 2, 4, 2) | {"intermediate_size": 96} | settings
    return tiny_models._write(
        folder, kind, shape, vocab=None, seed=1, dtype=torch.float32, shard_size="5GB"
    )


def ids(rows: int, length: int, size: int) -> torch.Tensor:
    return torch.randint(0, size, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("quantization", ["none", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("shape", LLAMA_LAYOUTS)
def test_logits_are_those_of_transformers(shape: str, quantization: str, tmp_path: Path) -> None:
    model = loaded(LLAMA_LAYOUTS[shape](tmp_path / "model"), quantization)
    found, why = best_backend(model)
    assert isinstance(found, FastBackend)
    assert why.startswith("fast: same logits")
    generic = Backend(model)
    suffixes = ids(7, 9, model.vocab_size)
    theirs = generic.last_logits([3, 4, 5, 6], suffixes, float32=True)
    ours = found.last_logits([3, 4, 5, 6], suffixes, float32=True)
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))
    assert found.arithmetic == torch.float32  # it is small


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Mistral", {"sliding_window": 6}),
        ("Qwen3", {"head_dim": 24}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Gemma", {"head_dim": 16}),
        ("Gemma2", GEMMA2),
        ("Gemma2", {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("Gemma3Text", {"head_dim": 16, "sliding_window": 6, "layer_types": LAYER_TYPES}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_variants_of_the_layout_give_the_same_logits(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = loaded(other(tmp_path / "model", kind, **settings))
    found, why = best_backend(model)
    assert isinstance(found, FastBackend), why
    assert why_not_screenable(found) is None
    suffixes = ids(5, 11, model.vocab_size)
    theirs, their_cache = Backend(model).step(suffixes, Backend(model).start([9, 8, 7], 5))
    ours, our_cache = found.step(suffixes, found.start([9, 8, 7], 5))
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))
    for step in range(40):  # beyond the headroom of a new cache, and beyond the window
        following = ids(5, 1, model.vocab_size) + step % 3
        theirs, their_cache = Backend(model).step(following, their_cache)
        ours, our_cache = found.step(following, our_cache)
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


RAGGED: dict[str, Callable[[Path], Path]] = {
    "qwen2": tiny_models.tiny_qwen,
    "mixtral": tiny_models.tiny_mixtral,
    "gemma2": lambda folder: other(folder, "Gemma2", **GEMMA2),
    "gemma3": lambda folder: other(
        folder, "Gemma3Text", head_dim=16, sliding_window=6, layer_types=LAYER_TYPES
    ),
}


@pytest.mark.parametrize("kind", RAGGED)
def test_rows_of_different_prompts_and_lengths_decode_side_by_side(
    kind: str, tmp_path: Path
) -> None:
    """Rows join, part, leave and take the place of others; each has the logits of its own text."""
    model = loaded(RAGGED[kind](tmp_path / "model"))
    found, why = best_backend(model)
    assert isinstance(found, FastBackend), why
    prompts = [
        Prompt("a", (3, 4, 5, 6, 7, 8, 9), (10, 11), "", ""),
        Prompt("b", (), (12,), "", ""),
        Prompt("c", (13,), (), "", ""),
        Prompt("d", (3, 4), (14, 15, 16, 17), "", ""),
    ]
    decoder = SlotDecoder(found, prompts, 8, 12, Counter())
    rows: list[tuple[Prompt, int, tuple[int, ...]]] = []

    def add(prompt: Prompt, *tokens: int) -> None:
        decoder.add(prompt, tokens)
        rows.extend((prompt, token, ()) for token in tokens)

    def step(*parents: int) -> None:
        logits, places = decoder.step([ids for _, _, ids in rows])
        for place, (prompt, token, ids) in zip(places, rows, strict=True):
            (alone,) = found.last_logits([], torch.tensor([[*prompt.ids(token), *ids]]))
            close = 2e-5 * float(alone.abs().max())
            assert torch.allclose(logits[place], alone, rtol=0, atol=close)
        continued = [(*rows[row][:2], (*rows[row][2], 20 + i)) for i, row in enumerate(parents)]
        rows[:] = [continued[i] for i in decoder.keep(parents)]

    add(prompts[0], 21, 22)
    add(prompts[1], 23)
    step(1, 1, 2)
    add(prompts[2], 24)
    add(prompts[3], 25, 21)
    step(0, 5, 2, 4, 4, 4)
    step(5, 3, 1, 1)
    add(prompts[0], 22, 26)
    for _ in range(3):
        step(*range(len(rows)))
    step(0)
    step()
    add(prompts[3], 25)
    step(0)
    assert len(decoder._kept_at) == 6  # the prompt c has nothing to keep


def test_only_the_newest_prompts_are_kept(llama_folder: Path) -> None:
    found, _ = best_backend(loaded(llama_folder))
    assert isinstance(found, FastBackend)
    counters: Counter[str] = Counter()
    decoder = SlotDecoder(found, [prompt := Prompt("a", (3,), (4, 5), "", "")], 2, 3, counters)
    passes = []
    for tokens in ((6, 7), (8, 9), (6, 8), (10, 6), (8,), (7,)):
        before = counters["sampling_forwards"]
        decoder.add(prompt, tokens)
        passes.append(counters["sampling_forwards"] - before)
        decoder.keep(())
    assert passes == [1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("rows", [[0, 0, 4], [3], [4, 2, 0, 1, 3, 3]])
def test_selected_rows_of_a_cache_continue_independently(
    rows: list[int], llama_folder: Path
) -> None:
    model = loaded(llama_folder)
    found, _ = best_backend(model)
    suffixes = ids(5, 4, model.vocab_size)
    _, cache = found.step(suffixes, found.start([9, 8], 5))
    chosen = found.select(cache, torch.tensor(rows))
    after = torch.full((len(rows), 1), 11)
    ours, _ = found.step(after, chosen)
    whole = torch.cat([torch.tensor([[9, 8]]).expand(len(rows), -1), suffixes[rows], after], dim=1)
    theirs = model.module(input_ids=whole).logits[:, -1]
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))
    again, _ = found.step(after, found.select(cache, torch.tensor(rows)))  # the cache is unchanged
    assert torch.equal(again, ours)
    last, _ = found.step(after, found.select(cache, torch.tensor(rows), used_up=True))
    assert torch.equal(last, ours)
    assert not cache.keys


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (tiny_models.tiny_gpt2, "the decoder has"),
        (lambda folder: other(folder, "Olmo2"), "a layer has"),
        (lambda folder: other(folder, "Granite", residual_multiplier=0.5), "logits differ by"),
        (lambda folder: other(folder, "Cohere"), "a layer has"),
        (
            lambda folder: other(folder, "Olmoe", num_experts=4, num_experts_per_tok=2),
            "q_norm is not the norm of one head",
        ),
    ],
)
def test_other_layouts_use_the_generic_backend(
    build: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    found, why = best_backend(loaded(build(tmp_path / "model")))
    assert type(found) is Backend
    assert why.startswith("generic: ")
    assert reason in why


def test_a_fast_path_with_other_logits_is_not_used(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fast_backend.cached_logits
    monkeypatch.setattr(fast_backend, "cached_logits", lambda *given: right(*given) * 1.001)
    found, why = best_backend(loaded(llama_folder))
    assert type(found) is Backend
    assert "logits differ by 0.001 of the largest" in why
    assert backend_selection.TOLERANCE < 1e-4


def test_bfloat16_arithmetic_gives_the_same_verdicts(llama_folder: Path) -> None:
    probed = context(llama_folder, quantization="bfloat16")
    prompts, tokens = probed.prompts("strict"), list(range(4, 300, 7))
    wide = Verifier(probed.backend, prompts, rows=16).verify(tokens)
    backend, _ = best_backend(probed.backend.model, "weights")
    narrow = Verifier(backend, prompts, rows=16)
    assert backend.arithmetic == torch.bfloat16
    found = narrow.verify(tokens)
    assert [r["repeat"].passed for r in found] == [r["repeat"].passed for r in wide]
    assert {r["repeat"].decided_in for r in wide} == {"float32"}
    assert "bfloat16" in {r["repeat"].decided_in for r in found} or narrow.counters["rechecked"]


def test_kernels_that_cannot_be_compiled_are_disabled(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a C compiler or Python's headers, Triton raises an error that is not torch's."""

    def compiled(*_: Any) -> None:
        raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    kernels = SimpleNamespace(gated=compiled)
    monkeypatch.setattr(fast_backend, "load_kernels", lambda *_: kernels)
    model = load(ModelSpec(path=str(llama_folder), device="cpu"), CACHE)
    backend, why = best_backend(model)
    assert isinstance(backend, FastBackend), why
    assert not backend.has_kernels
    assert "kernels for this GPU cannot be used (CalledProcessError" in caplog.text
