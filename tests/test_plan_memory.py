"""The memory estimate: its parts and its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.memory_estimate import MemoryEstimate, estimate
from glitchrun.plan.passes import CACHE_HEADROOM
from glitchrun.spec.strategy import Workload
from tests.support import raw_checkpoints as raw

GB = 1_000_000_000


@pytest.fixture
def header(tmp_path: Path) -> Header:
    """One layer, 2 key/value heads of 4, a vocabulary of 10, in bfloat16."""
    return read_header(resolve(str(raw.folder(tmp_path))))


def _device(free: int, name: str = "cpu") -> DeviceMemory:
    return DeviceMemory(name, free, free, "test")


def _estimate(
    header: Header, *loads: Workload, free: int = 8 * GB, quantization: str = "none"
) -> MemoryEstimate:
    return estimate(header, quantization, loads, _device(free))


def test_the_key_value_cache_by_hand(header: Header) -> None:
    # 4 rows, one layer and a copy of it, keys and values, 2 heads of 4, 100 positions, 4 bytes: on
    # a CPU narrow weights may be multiplied in float32.
    load = Workload("s", 4, 100)
    assert _estimate(header, load).kv_cache_bytes == 4 * 2 * 2 * 2 * 4 * 100 * 4
    on_gpu = estimate(header, "none", [load], _device(8 * GB, "cuda:0"))
    assert on_gpu.kv_cache_bytes == 4 * 2 * 2 * 2 * 4 * 100 * 2


def test_a_growing_cache_is_copied_and_has_headroom(header: Header) -> None:
    found = _estimate(header, Workload("s", 64, 100, kind="sample"))
    assert found.kv_cache_bytes == 64 * 2 * 2 * 2 * 4 * (100 + CACHE_HEADROOM) * 4


def test_attempts_with_a_common_prompt_share_its_activations(header: Header) -> None:
    apart = _estimate(header, Workload("s", 100, 1000, kind="sample"))
    together = _estimate(header, Workload("s", 100, 1000, kind="sample", together=5))
    assert together.activation_bytes == apart.activation_bytes // 5
    one_position = _estimate(header, Workload("s", 100, 1, kind="sample"))
    many = _estimate(header, Workload("s", 100, 1000, kind="sample", together=10**6))
    assert apart.activation_bytes > many.activation_bytes > one_position.activation_bytes


LARGE = {
    "model.embed_tokens.weight": ("BF16", (262_144, 640)),
    "model.layers.0.self_attn.q_proj.weight": ("BF16", (640, 640)),
}


def _large(folder: Path) -> Header:
    """The vocabulary of Gemma 3 270M without its weights."""
    folder.mkdir()
    config = {**raw.LLAMA, "hidden_size": 640, "vocab_size": 262_144, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps(raw.entries(LARGE)).encode()
    weights = raw.safetensors_raw(folder / "model.safetensors", header, b"")
    with weights.open("r+b") as file:
        file.truncate(8 + len(header) + 2 * 640 * (262_144 + 640))
    return read_header(resolve(str(folder)))


def test_the_tables_of_a_surrogate_over_a_large_vocabulary_are_counted(tmp_path: Path) -> None:
    header = _large(tmp_path / "large")
    table = 262_144 * 640 * 4
    scan = _estimate(header, Workload("s", 8, 64))
    load = Workload("s", 8, 64, search="surrogate", verified=400)
    # The embedding in float32, its unit rows, 200 MB of features and as much to make them from.
    most = _estimate(header, load).total_bytes - scan.total_bytes
    assert 2 * table + 200_000_000 < most < 3 * table
    assert scan.runtime_bytes > 850_000_000 + 262_144 * 1_000
    float32 = _estimate(header, load, quantization="float32")
    assert float32.float32_bytes < 2 * table  # nothing is copied to widen it
    on_gpu = estimate(header, "none", [load], _device(8 * GB, "cuda:0"))
    assert (
        on_gpu.float32_bytes
        == estimate(header, "none", [Workload("s", 8, 64)], _device(8 * GB, "cuda:0")).float32_bytes
    )
    controls = _estimate(header, Workload("s", 8, 64, controls=True))
    assert controls.float32_bytes > scan.float32_bytes


def test_a_screen_computes_two_positions_of_many_rows(header: Header) -> None:
    screen = _estimate(header, Workload("s", None, 100, kind="screen"))
    verify = _estimate(header, Workload("s", 256, 100))
    assert screen.batch == 256
    assert screen.kv_cache_bytes == verify.kv_cache_bytes
    assert screen.activation_bytes < verify.activation_bytes / 10


@pytest.mark.parametrize(
    ("kind", "quantization", "batch", "device", "taken"),
    [
        ("sample", "float32", None, "cpu", 256),
        ("sample", "none", None, "cpu", 256),  # bfloat16, widened to float32
        ("sample", "float32", 4, "cpu", 4),
        ("sample", "none", 4, "cpu", 64),  # the rows of a fixed shape, should that be needed
        ("sample", "none", 4, "cuda:0", 128),
        ("sample", "float32", None, "cuda:0", 512),
        ("answer", "none", None, "cpu", 64),
        ("score", "none", None, "cpu", 8),
        ("screen", "none", None, "cuda:0", 8192),
    ],
)
def test_batch_sizes_are_those_of_the_run(
    header: Header, kind: Any, quantization: str, batch: int | None, device: str, taken: int
) -> None:
    load = Workload("s", batch, 20, kind=kind)
    assert estimate(header, quantization, [load], _device(8 * GB, device)).batch == taken


@pytest.mark.parametrize(
    ("quantization", "rows", "taken"),
    [("float32", 40, 40), ("none", 40, 64), ("float32", 900, 256)],
)
def test_rows_that_no_continuation_fills_take_no_memory(
    header: Header, quantization: str, rows: int, taken: int
) -> None:
    """In narrow arithmetic a pass may be padded to 64 rows."""
    load = Workload("s", None, 20, kind="sample", rows=rows)
    assert _estimate(header, load, quantization=quantization).batch == taken


def test_the_total_is_the_sum_of_its_parts(header: Header) -> None:
    found = _estimate(header, Workload("s", 4, 100, gradient=True))
    buffers = (
        found.kv_cache_bytes + found.activation_bytes + found.float32_bytes + found.gradient_bytes
    )
    assert min(found.kv_cache_bytes, found.activation_bytes, found.gradient_bytes) > 0
    assert found.total_bytes == found.runtime_bytes + found.weight_bytes + buffers


def test_only_a_gradient_takes_a_gradients_memory(header: Header) -> None:
    assert _estimate(header, Workload("s", 4, 100)).gradient_bytes == 0


def test_float32_needs_no_extra_memory_for_rechecks(header: Header) -> None:
    load = Workload("s", 4, 100)
    assert _estimate(header, load, quantization="float32").float32_bytes == 0
    assert _estimate(header, load, quantization="int4").float32_bytes > 0


def test_the_step_with_the_largest_need_is_named(header: Header) -> None:
    found = _estimate(header, Workload("small", 2, 50), Workload("large", 9, 200))
    assert (found.step, found.batch) == ("large", 9)
    assert found.kv_cache_bytes == _estimate(header, Workload("x", 9, 200)).kv_cache_bytes


@pytest.mark.parametrize(("share", "verdict"), [(1.3, "fits"), (1.1, "tight"), (0.99, "no")])
def test_the_verdict(header: Header, share: float, verdict: str) -> None:
    load = Workload("s", 64, 100)
    need = _estimate(header, load).total_bytes
    assert _estimate(header, load, free=int(need * share)).verdict == verdict


@pytest.mark.parametrize("quantization", ["none", "float32", "int8", "int4"])
def test_the_largest_batch_is_the_last_that_fits(header: Header, quantization: str) -> None:
    free = 950_000_000
    load = Workload("s", 1, 100, gradient=True)
    most = _estimate(header, load, free=free, quantization=quantization).largest_batch
    assert most > 1
    for rows, fits in ((most, True), (most + 1, False)):
        found = _estimate(
            header, Workload("s", rows, 100, True), free=free, quantization=quantization
        )
        assert (found.verdict != "no") is fits


def test_the_largest_batch_is_zero_if_not_one_row_fits(header: Header) -> None:
    found = _estimate(header, Workload("s", None, 100), free=0)
    assert (found.largest_batch, found.batch, found.verdict) == (0, 1, "no")


def test_auto_takes_the_largest_power_of_two_that_fits_in_half_of_the_free_memory(
    header: Header,
) -> None:
    load = Workload("s", None, 100)
    assert _estimate(header, load).batch == 64
    assert estimate(header, "none", [load], _device(8 * GB, "cuda:0")).batch == 8192
    one = _estimate(header, Workload("s", 1, 100))
    row = one.kv_cache_bytes + one.activation_bytes
    room = 2 * 20 * row
    free = one.runtime_bytes + one.weight_bytes + room
    assert _estimate(header, load, free=free).batch == 16
