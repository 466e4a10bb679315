"""The arithmetic of products: chosen by times that are given here, and remembered per machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from glitchrun.model.loading import load
from glitchrun.probing import arithmetic
from glitchrun.probing.arithmetic import (
    Arithmetic,
    Int8Linear,
    Int8Rows,
    by_seconds,
    choose,
    converted,
    matrix_shapes,
    measured,
)
from glitchrun.probing.fast.llama_layout import recognize
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.spec.types import ModelSpec

AMX = {"float32": 10.0, "bfloat16": 1.4, "int8": 2.0}
VNNI = {"float32": 10.0, "bfloat16": 20.0, "int8": 3.0}
BF16 = {"float32": 10.0, "bfloat16": 5.0, "int8": 2.5}
EVEN = {"float32": 10.0, "bfloat16": 9.5, "int8": 9.5}


@pytest.mark.parametrize(
    ("seconds", "dtype", "passes", "screen"),
    [
        (AMX, "bfloat16", "bfloat16", "bfloat16"),
        (AMX, "float32", "float32", "bfloat16"),
        (VNNI, "bfloat16", "float32", "int8"),
        (VNNI, "float32", "float32", "int8"),
        (BF16, "bfloat16", "bfloat16", "int8"),
        (BF16, "float16", "float32", "int8"),
        (EVEN, "bfloat16", "float32", "float32"),
        ({**AMX, "bfloat16": 8.0}, "bfloat16", "float32", "int8"),  # near-ties would cost the rest
    ],
)
def test_the_fastest_arithmetic_is_chosen(
    seconds: Mapping[str, float], dtype: str, passes: str, screen: str
) -> None:
    found = by_seconds(seconds, getattr(torch, dtype), convertible=True)
    assert (found.passes, found.screen) == (getattr(torch, passes), screen)
    assert f"products in {passes}, those of a screen in {screen}" in found.why
    kept = by_seconds(seconds, getattr(torch, dtype), convertible=False)
    assert (kept.passes, kept.screen) == (found.passes, passes)


def test_the_spec_overrides_the_measurement(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, cpu = recognize(load(ModelSpec(str(llama_folder))).module), torch.device("cpu")
    small = choose(layout, torch.bfloat16, cpu)
    assert small.passes == torch.float32
    assert "small" in small.why
    monkeypatch.setattr(arithmetic, "_SMALL", 0)
    monkeypatch.setattr(arithmetic, "measured", lambda shapes: VNNI)
    assert choose(layout, torch.bfloat16, cpu).passes == torch.float32
    forced = choose(layout, torch.bfloat16, cpu, "weights")
    assert (forced.passes, forced.screen) == (torch.bfloat16, "int8")
    monkeypatch.setattr(arithmetic, "measured", lambda shapes: AMX)
    wide = choose(layout, torch.bfloat16, cpu, "float32")
    assert (wide.passes, wide.screen) == (torch.float32, "float32")
    assert choose(layout, torch.bfloat16, torch.device("cuda")).passes == torch.bfloat16


def test_a_machine_is_measured_once(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = matrix_shapes(recognize(load(ModelSpec(str(llama_folder))).module))
    monkeypatch.setenv("GLITCHRUN_CACHE", str(tmp_path))
    first = measured(shapes)
    assert set(first) == {"float32", "bfloat16", "int8"}
    assert min(first.values()) > 0
    monkeypatch.setattr(arithmetic, "time_products", lambda given: AMX)
    assert measured(shapes) == first
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # another machine, as it were
    assert measured(shapes) == AMX
    for file in tmp_path.rglob("*.json"):
        file.write_text("{")
    assert measured(shapes) == AMX


def test_int8_products_have_a_scale_for_each_row() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(24, 64), torch.randn(7, 64)
    weight[3] *= 1000
    x[2] *= 1e-3
    x[4] = 0
    rows = Int8Rows()
    coarse = Int8Linear(weight, rows)
    exact = x @ weight.t()
    error = (coarse(x) - exact).abs() / (x.norm(dim=1)[:, None] * weight.norm(dim=1)).clamp(1e-9)
    assert float(error.max()) < 5e-3
    x.mul_(2)  # what is remembered of x is of no use any more
    assert torch.allclose(coarse(x), 2 * Int8Linear(weight, Int8Rows())(x / 2))


@pytest.mark.parametrize("format_", ["bfloat16", "int8"])
def test_a_screen_in_another_format_has_nearly_the_same_scores(
    format_: str, llama_folder: Path
) -> None:
    model = load(ModelSpec(str(llama_folder), quantization="float32"))
    layout = recognize(model.module)
    backend = FastBackend(model, layout, Arithmetic(torch.float32, format_, ""))
    tokens = torch.arange(3, 60)
    exact = backend.screen(backend.freeze([1, 2], [5, 6, 7], tokens[:8]), tokens)
    frozen = backend.freeze([1, 2], [5, 6, 7], tokens[:8], coarse=True)
    coarse = backend.screen(frozen, tokens)
    assert frozen.layout is not layout
    assert not torch.equal(coarse, exact)
    assert float((coarse - exact).abs().max()) < 0.1 * float(exact.abs().max())
    assert converted(layout, format_).embedding is layout.embedding
