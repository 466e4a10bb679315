"""The checks of `glitchrun doctor`: each is a function of the tracking root that yields results."""

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
from glitchrun.checkpoint.cache_folder import CACHE_VARIABLE, CONVERSIONS, cache_folder, size_of
from glitchrun.errors import PreflightError
from glitchrun.plan.devices import main_memory, visible_gpus
from glitchrun.report.formatting import counted, size

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
class CheckResult:
    """One line of the output of `doctor`."""

    check: str
    status: str
    """ok, note (a limitation), or missing (no run can start)."""
    detail: str
    remedy: str | None = None
    """The command or change that helps; None if nothing is needed."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name; JSON-ready."""
        return asdict(self)


def run_checks(root: Path) -> Iterator[CheckResult]:
    """The results of all checks, fast ones first. `root` is the tracking root."""
    for check in CHECKS:
        yield from check(root)


def python(root: Path) -> Iterator[CheckResult]:
    """Checks the versions of Python and glitchrun."""
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    remedy = "install Python 3.11 or newer" if old else None
    yield CheckResult("python", "missing" if old else "ok", f"{version} ({sys.executable})", remedy)
    yield CheckResult("glitchrun", "ok", glitchrun.__version__)


def packages(root: Path) -> Iterator[CheckResult]:
    """Checks the packages of the extra `run` by their metadata; imports none of them."""
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        command = f"pip install '{requirement}'"
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult(
                name, "missing", "not installed", f"pip install 'glitchrun[{_EXTRA}]'"
            )
            continue
        fits = _satisfies(installed, requirement)
        detail = installed if fits else f"{installed}, wanted {requirement}"
        yield CheckResult(name, "ok" if fits else "missing", detail, None if fits else command)


def _requirements() -> list[str]:
    """The requirements of the extra, from the installed package or else from pyproject.toml."""
    try:
        declared = importlib.metadata.requires("glitchrun") or []
    except importlib.metadata.PackageNotFoundError:
        source = Path(glitchrun.__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        return list(project["optional-dependencies"][_EXTRA])
    mark = re.compile(rf"""extra\s*==\s*['"]{_EXTRA}['"]""")
    return [line.partition(";")[0].strip() for line in declared if mark.search(line)]


def _satisfies(installed: str, requirement: str) -> bool:
    """Whether a version is within the >= and < bounds of a requirement."""
    have = _numbers(installed)
    bounds = re.findall(r"(>=|<)\s*([\d.]+)", requirement)
    return all(have >= _numbers(v) if sign == ">=" else have < _numbers(v) for sign, v in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13) for `2.13.0+cpu`: without trailing zeros, so that 2 equals 2.0."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in match[0].split(".")] if match else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def processor(root: Path) -> Iterator[CheckResult]:
    """Checks cores, main memory, and whether the CPU has bfloat16 instructions."""
    free, total, source = main_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{cores} cores, {size(free)} of {size(total)} free ({source})"
    yield CheckResult("cpu", "ok", detail)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        yield CheckResult("bfloat16", "ok", "AVX512_BF16: faster than float32 on this CPU")
    else:
        detail = "no AVX512_BF16: bfloat16 is converted to float32, which saves memory but no time"
        yield CheckResult(
            "bfloat16", "note", detail, "model.quantization: float32, if it fits in memory"
        )


def gpus(root: Path) -> Iterator[CheckResult]:
    """Checks for NVIDIA devices that a run could use."""
    found = visible_gpus()
    for gpu in found:
        detail = f"{gpu.source}, {size(gpu.free)} of {size(gpu.total)} free"
        yield CheckResult(gpu.device, "ok", detail)
    if not found:
        yield CheckResult("gpu", "note", "none that torch could use: runs use the CPU")


def torch_works(root: Path) -> Iterator[CheckResult]:
    """Imports torch in a separate process, which shows whether its installation works."""
    if not _installed("torch"):
        return
    answer = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = "pip install --force-reinstall torch"
        yield CheckResult("torch runs", "missing", f"it cannot be imported: {last}", remedy)
        return
    seen = json.loads(answer.stdout.splitlines()[-1])
    build = f"CUDA {seen['cuda']}" if seen["cuda"] else "a CPU build"
    devices = f", sees {', '.join(seen['gpus'])}" if seen["gpus"] else ""
    yield CheckResult("torch runs", "ok", f"{build}, {seen['threads']} threads{devices}")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def disk(root: Path) -> Iterator[CheckResult]:
    """Checks that the tracking root can be written and has enough space."""
    place = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = f"make {place} writable, or work in another folder"
        detail = f"{place} cannot be written ({error.strerror})"
        yield CheckResult("tracking root", "missing", detail, remedy)
        return
    free = shutil.disk_usage(place).free
    low = free < _LEAST_DISK
    detail = f"{root} can be written, {size(free)} free"
    yield CheckResult(
        "tracking root", "note" if low else "ok", detail, "make room" if low else None
    )


def model_cache(root: Path) -> Iterator[CheckResult]:
    """Checks the cache folder of converted models, and its size."""
    try:
        folder = cache_folder()
    except PreflightError as error:
        yield CheckResult("model cache", "missing", str(error), f"export {CACHE_VARIABLE}=FOLDER")
        return
    held = any(size_of(folder / name) for name in CONVERSIONS)
    remedy = "glitchrun doctor --clear-cache" if held else None
    yield CheckResult("model cache", "ok", f"{folder}, {size(size_of(folder))}", remedy)


def store(root: Path) -> Iterator[CheckResult]:
    """Checks that the MLflow store answers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        detail = f"MLFLOW_TRACKING_URI is not a valid address ({error})"
        yield CheckResult("store", "missing", detail, "correct or unset it")
        return
    if parts.scheme in ("http", "https"):
        yield _server(uri)
    elif parts.scheme == "sqlite":
        yield _database(Path(uri.removeprefix("sqlite:///")))
    else:
        detail = f"{parts.scheme or 'a folder'}: not checked"
        yield CheckResult(
            "store", "note", detail, "MLFLOW_TRACKING_URI=sqlite:///... or http://..."
        )


def _server(uri: str) -> CheckResult:
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    request = urllib.request.Request(f"{shown}{parts.path.rstrip('/')}/health")
    try:
        with urllib.request.urlopen(request, timeout=_STORE_TIMEOUT):  # nosec B310 # an http address
            return CheckResult("store", "ok", f"{shown} answers")
    except urllib.error.HTTPError as error:
        return CheckResult("store", "note", f"{shown} answers with {error.code}")
    except OSError as error:
        remedy = "start the server, or unset MLFLOW_TRACKING_URI to use SQLite under mlruns/"
        return CheckResult("store", "missing", f"{shown} does not answer ({error})", remedy)


def _database(path: Path) -> CheckResult:
    if not path.exists():
        return CheckResult("store", "ok", f"{path} will be created by the first run")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            count = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        remedy = f"move {path} away; `glitchrun sync` fills a new one from the ledger"
        return CheckResult("store", "missing", f"{path} is no MLflow store ({error})", remedy)
    return CheckResult("store", "ok", f"{path}, {counted(count, 'run')}")


CHECKS: tuple[Callable[[Path], Iterator[CheckResult]], ...] = (
    python,
    packages,
    processor,
    gpus,
    torch_works,
    disk,
    model_cache,
    store,
)
