"""The memory estimate: what is added up, and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.memory import MemoryEstimate, Workload, estimate
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
    found = _estimate(header, Workload("s", 4, 100))
    # 4 rows, one layer and a copy of it, keys and values, 2 heads of 4, 100 positions, 2 bytes.
    assert found.kv_cache_bytes == 4 * 2 * 2 * 2 * 4 * 100 * 2


def test_the_total_is_the_sum_of_its_parts(header: Header) -> None:
    found = _estimate(header, Workload("s", 4, 100, gradient=True))
    buffers = (
        found.kv_cache_bytes + found.activation_bytes + found.float32_bytes + found.gradient_bytes
    )
    assert min(found.kv_cache_bytes, found.activation_bytes, found.gradient_bytes) > 0
    assert found.total_bytes == found.runtime_bytes + found.weight_bytes + buffers


def test_only_a_gradient_takes_a_gradients_memory(header: Header) -> None:
    assert _estimate(header, Workload("s", 4, 100)).gradient_bytes == 0


def test_float32_needs_nothing_beside_for_rechecks(header: Header) -> None:
    load = Workload("s", 4, 100)
    assert _estimate(header, load, quantization="float32").float32_bytes == 0
    assert _estimate(header, load, quantization="int4").float32_bytes > 0


def test_the_step_that_takes_most_is_named(header: Header) -> None:
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
    free = 700_000_000
    load = Workload("s", 1, 100, gradient=True)
    most = _estimate(header, load, free=free, quantization=quantization).largest_batch
    assert most > 1
    for rows, fits in ((most, True), (most + 1, False)):
        found = _estimate(
            header, Workload("s", rows, 100, True), free=free, quantization=quantization
        )
        assert (found.verdict != "no") is fits


def test_where_not_one_row_fits_the_largest_batch_is_zero(header: Header) -> None:
    found = _estimate(header, Workload("s", None, 100), free=0)
    assert (found.largest_batch, found.batch, found.verdict) == (0, 1, "no")


def test_auto_takes_a_power_of_two_of_rows_in_half_the_room(header: Header) -> None:
    load = Workload("s", None, 100)
    assert _estimate(header, load).batch == 64
    assert estimate(header, "none", [load], _device(8 * GB, "cuda:0")).batch == 512
    one = _estimate(header, Workload("s", 1, 100))
    row = one.kv_cache_bytes + one.activation_bytes
    room = 2 * 20 * row
    free = one.runtime_bytes + one.weight_bytes + room
    assert _estimate(header, load, free=free).batch == 16
