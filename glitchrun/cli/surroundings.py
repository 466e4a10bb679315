"""What `glitchrun doctor` looks at: each check is a function that returns its findings."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import glitchrun
from glitchrun.checkpoint.model_cache import CACHE_VARIABLE, cache_folder, size_of
from glitchrun.cli.render_plan import size
from glitchrun.errors import PreflightError
from glitchrun.plan.devices import main_memory, visible_gpus

_EXTRA = "run"
_STORE_TIMEOUT = 5.0
_LEAST_DISK = 5_000_000_000
"""Bytes for a small model converted, its store and its reports; a large model takes more."""
_ASK_TORCH = """
import json, torch
print(json.dumps({"threads": torch.get_num_threads(), "cuda": torch.version.cuda,
  "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    check: str
    status: str
    """ok, note (worth knowing), or missing (the main job cannot run)."""
    detail: str
    remedy: str | None = None
    """The command or the change that would help."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def all_findings(root: Path) -> Iterator[Finding]:
    """Every finding, cheap checks first. `root` is the tracking root."""
    for check in CHECKS:
        yield from check(root)


def python(root: Path) -> Iterator[Finding]:
    """The interpreter and glitchrun itself."""
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    remedy = "install Python 3.11 or newer" if old else None
    yield Finding("python", "missing" if old else "ok", f"{version} ({sys.executable})", remedy)
    yield Finding("glitchrun", "ok", glitchrun.__version__)


def packages(root: Path) -> Iterator[Finding]:
    """Every package of the extra `run`, by its metadata: nothing is imported."""
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        command = f"pip install '{requirement}'"
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install 'glitchrun[{_EXTRA}]'")
            continue
        fits = _satisfies(installed, requirement)
        detail = installed if fits else f"{installed}, wanted {requirement}"
        yield Finding(name, "ok" if fits else "missing", detail, None if fits else command)


def _requirements() -> list[str]:
    """The requirements of the extra, from the installed package or from the source beside it."""
    try:
        declared = importlib.metadata.requires("glitchrun") or []
    except importlib.metadata.PackageNotFoundError:
        source = Path(glitchrun.__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        return list(project["optional-dependencies"][_EXTRA])
    mark = re.compile(rf"""extra\s*==\s*['"]{_EXTRA}['"]""")
    return [line.partition(";")[0].strip() for line in declared if mark.search(line)]


def _satisfies(installed: str, requirement: str) -> bool:
    """Whether a version keeps the >= and < bounds of a requirement."""
    have = _numbers(installed)
    bounds = re.findall(r"(>=|<)\s*([\d.]+)", requirement)
    return all(have >= _numbers(v) if sign == ">=" else have < _numbers(v) for sign, v in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13) of `2.13.0+cpu`: trailing zeros dropped, so that 2 equals 2.0."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in match[0].split(".")] if match else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def processor(root: Path) -> Iterator[Finding]:
    """Cores and main memory, and whether the CPU multiplies bfloat16 by itself."""
    free, total, source = main_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{cores} cores, {size(free)} of {size(total)} free ({source})"
    yield Finding("cpu", "ok", detail)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        yield Finding("bfloat16", "ok", "AVX512_BF16: faster than float32 on this CPU")
    else:
        detail = "no AVX512_BF16: bfloat16 goes by way of float32 here, it saves memory, not time"
        yield Finding("bfloat16", "note", detail, "model.quantization: float32, where it fits")


def gpus(root: Path) -> Iterator[Finding]:
    """NVIDIA devices that a run could use."""
    found = visible_gpus()
    for gpu in found:
        detail = f"{gpu.source}, {size(gpu.free)} of {size(gpu.total)} free"
        yield Finding(gpu.device, "ok", detail)
    if not found:
        yield Finding("gpu", "note", "none that torch could use: runs go to the CPU")


def torch_works(root: Path) -> Iterator[Finding]:
    """Imports torch in a process of its own: a broken installation shows only there."""
    if not _installed("torch"):
        return
    answer = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = "pip install --force-reinstall torch"
        yield Finding("torch runs", "missing", f"it cannot be imported: {last}", remedy)
        return
    seen = json.loads(answer.stdout.splitlines()[-1])
    build = f"CUDA {seen['cuda']}" if seen["cuda"] else "a CPU build"
    devices = f", sees {', '.join(seen['gpus'])}" if seen["gpus"] else ""
    yield Finding("torch runs", "ok", f"{build}, {seen['threads']} threads{devices}")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def disk(root: Path) -> Iterator[Finding]:
    """Whether the tracking root can be written, and the room there."""
    place = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = f"make {place} writable, or work in another folder"
        detail = f"{place} cannot be written ({error.strerror})"
        yield Finding("tracking root", "missing", detail, remedy)
        return
    free = shutil.disk_usage(place).free
    low = free < _LEAST_DISK
    detail = f"{root} can be written, {size(free)} free"
    yield Finding("tracking root", "note" if low else "ok", detail, "make room" if low else None)


def model_cache(root: Path) -> Iterator[Finding]:
    """The cache folder of converted models, and its size."""
    try:
        folder = cache_folder()
    except PreflightError as error:
        yield Finding("model cache", "missing", str(error), f"export {CACHE_VARIABLE}=FOLDER")
        return
    held = size_of(folder)
    remedy = "glitchrun doctor --clear-cache" if held else None
    yield Finding("model cache", "ok", f"{folder}, {held / 1e6:,.0f} MB", remedy)


def store(root: Path) -> Iterator[Finding]:
    """Whether the MLflow store answers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        detail = f"MLFLOW_TRACKING_URI is not a valid address ({error})"
        yield Finding("store", "missing", detail, "correct or unset it")
        return
    if parts.scheme in ("http", "https"):
        yield _server(uri)
    elif parts.scheme == "sqlite":
        yield _database(Path(uri.removeprefix("sqlite:///")))
    else:
        detail = f"{parts.scheme or 'a folder'}: not checked"
        yield Finding("store", "note", detail, "MLFLOW_TRACKING_URI=sqlite:///... or http://...")


def _server(uri: str) -> Finding:
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    request = urllib.request.Request(f"{shown}{parts.path.rstrip('/')}/health")
    try:
        with urllib.request.urlopen(request, timeout=_STORE_TIMEOUT):
            return Finding("store", "ok", f"{shown} answers")
    except urllib.error.HTTPError as error:
        return Finding("store", "note", f"{shown} answers with {error.code}")
    except OSError as error:
        remedy = "start the server, or unset MLFLOW_TRACKING_URI to use SQLite under mlruns/"
        return Finding("store", "missing", f"{shown} does not answer ({error})", remedy)


def _database(path: Path) -> Finding:
    if not path.exists():
        return Finding("store", "ok", f"{path} will be created by the first run")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            count = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        remedy = f"move {path} away; `glitchrun sync` fills a new one from the ledger"
        return Finding("store", "missing", f"{path} is no MLflow store ({error})", remedy)
    return Finding("store", "ok", f"{path}, {count} runs")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    python,
    packages,
    processor,
    gpus,
    torch_works,
    disk,
    model_cache,
    store,
)
