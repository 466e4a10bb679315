"""How much main memory this process can still take."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where v2 writes "max"


def main_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int, str]:
    """Bytes of main memory that can still be taken, bytes in all, and what sets the limit.

    What the kernel calls available, but no more than the control groups of this process allow.
    """
    total, free = _whole_machine(proc)
    source = "main memory"
    for limit, used, where in _cgroup_limits(proc, cgroups):
        total = min(total, limit)
        if limit - used < free:
            free, source = max(0, limit - used), f"cgroup limit of {where}"
    return free, total, source


def _whole_machine(proc: Path) -> tuple[int, int]:
    try:
        text = (proc / "meminfo").read_text()
    except OSError:  # not Linux
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return found["MemTotal"], found["MemAvailable"]


def _cgroup_limits(proc: Path, root: Path) -> list[tuple[int, int, str]]:
    """(limit, use without reclaimable cache, folder) of this process's cgroup and those above."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        place = PurePosixPath(path)
        # In a container the path may be the host's; the mount then shows the limit at its root.
        for folder in (base / str(p).lstrip("/") for p in (place, *place.parents)):
            limit = _limit_of(folder)
            if limit is not None:
                found.append((*limit, str(folder)))
    return found


def _limit_of(folder: Path) -> tuple[int, int] | None:
    for limit_name, use_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            used = int((folder / use_name).read_text())
            stat = (folder / "memory.stat").read_text()
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return None
        cached = re.search(rf"^{cache_name} (\d+)$", stat, re.MULTILINE)
        return int(limit), max(0, used - int(cached[1]) if cached else used)
    return None
