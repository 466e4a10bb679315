"""Free memory: main memory within control groups, GPUs through nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from glitchrun.errors import PreflightError
from glitchrun.plan import devices
from glitchrun.plan.devices import device_memory, main_memory, parse_size

GIB = 1024**3
MEMINFO = "MemTotal:       16777216 kB\nMemFree:        1 kB\nMemAvailable:    8388608 kB\n"
TWO_GPUS = """\
#!/bin/sh
echo '0, GPU-aaa, NVIDIA A, 70000, 81559, 8.0'
echo '1, GPU-bbb, NVIDIA B, 1000, 24564, [N/A]'
echo '2, GPU-ccc, NVIDIA C, [N/A], [N/A], 9.0'
"""


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup of a machine with 16 GiB, 8 of them available."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text(MEMINFO)
    return proc, cgroups


def _group(folder: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def test_available_memory_without_limits(machine: tuple[Path, Path]) -> None:
    assert main_memory(*machine) == (8 * GIB, 16 * GIB, "main memory")


def test_a_v2_limit_counts_without_the_reclaimable_cache(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("0::/user/job\n")
    _group(cgroups / "user" / "job", "max", 5 * GIB, 0)
    _group(cgroups / "user", str(4 * GIB), 3 * GIB, 2 * GIB)
    free, total, source = main_memory(proc, cgroups)
    assert (free, total) == (3 * GIB, 4 * GIB)
    assert source == f"cgroup limit of {cgroups / 'user'}"


def test_a_v1_limit_shows_at_the_mount_inside_a_container(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/docker/abc\n")
    _group(cgroups / "memory", str(2 * GIB), GIB, 0, version=1)
    assert main_memory(proc, cgroups)[:2] == (GIB, 2 * GIB)


def test_the_v1_number_for_no_limit_is_no_limit(machine: tuple[Path, Path]) -> None:
    proc, cgroups = machine
    (proc / "self" / "cgroup").write_text("4:memory:/\n")
    _group(cgroups / "memory", "9223372036854771712", GIB, 0, version=1)
    assert main_memory(proc, cgroups) == (8 * GIB, 16 * GIB, "main memory")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose nvidia-smi lists two devices, and a third without its memory."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(TWO_GPUS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "torch_has_cuda", lambda: True)
    return program


@pytest.mark.usefixtures("two_gpus")
def test_auto_takes_the_first_gpu() -> None:
    found = device_memory("auto")
    assert (found.device, found.kind, found.free) == ("cuda:0", "cuda", 70_000 * 1024**2)
    assert device_memory("cuda:1").total == 24_564 * 1024**2
    assert (found.capability, device_memory("cuda:1").capability) == (8.0, None)
    assert device_memory("auto", {"0": "1GiB", "1": "1GiB"}).capability == 8.0


def test_old_driver_names_no_compute_capability(two_gpus: Path) -> None:
    refuse = '[ "${1#*compute_cap}" = "$1" ] || exit 2\n'
    two_gpus.write_text(TWO_GPUS.replace(", 8.0", "").replace("sh\n", f"sh\n{refuse}"))
    found = device_memory("auto")
    assert (found.total, found.capability) == (81_559 * 1024**2, None)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA B"]),
        ("1,0", ["NVIDIA B", "NVIDIA A"]),
        ("GPU-bbb", ["NVIDIA B"]),
        ("0,7,1", ["NVIDIA A"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_renumbers(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = devices.visible_gpus()
    assert [gpu.source.removeprefix("nvidia-smi: ") for gpu in found] == names
    assert [gpu.device for gpu in found] == [f"cuda:{i}" for i in range(len(names))]


@pytest.mark.usefixtures("two_gpus")
def test_a_missing_gpu_has_no_free_memory_and_a_reason() -> None:
    found = device_memory("cuda:5")
    assert found.free == 0
    assert "there is no cuda:5 here: 2 CUDA devices are visible" in found.source


@pytest.mark.usefixtures("two_gpus")
def test_a_torch_without_cuda_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "torch_has_cuda", lambda: False)
    assert device_memory("auto").device == "cpu"
    assert "without CUDA" in device_memory("cuda").source


@pytest.mark.usefixtures("two_gpus")
def test_max_memory_is_the_sum_over_its_devices() -> None:
    found = device_memory("auto", {"0": "20GiB", "1": "20GiB", "cpu": "1GB", "disk": "1MB"})
    assert found.device == "cuda:0 + cuda:1 + cpu + disk"
    assert found.free == 20 * GIB + 1000 * 1024**2 + 10**9 + 10**6


@pytest.mark.usefixtures("two_gpus")
def test_a_limit_of_zero_leaves_out_a_gpu() -> None:
    assert device_memory("auto", {"0": 0, "cpu": "1GB"}).free == 10**9


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("limits", [{"5": "20GiB"}, {"0": "1GiB", "5": "1GiB", "cpu": "60GiB"}])
def test_max_memory_with_an_absent_gpu_has_no_free_memory(limits: dict[str, str]) -> None:
    found = device_memory("auto", limits)
    assert (found.device, found.free) == ("cuda:5", 0)
    assert "there is no cuda:5 here: 2 CUDA devices are visible; remove it" in found.source


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GiB", 20 * GIB), ("1.5GB", 1_500_000_000), ("512MB", 512_000_000), (123, 123)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-3GB", "20 apples"])
def test_a_value_that_is_no_size_is_rejected(text: str) -> None:
    with pytest.raises(PreflightError, match=r"model\.max_memory"):
        parse_size(text)
