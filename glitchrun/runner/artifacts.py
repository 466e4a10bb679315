"""The files that a run writes besides its report, and the description of its environment."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from glitchrun import __version__
from glitchrun.events import Artifact
from glitchrun.ledger import RunRecord
from glitchrun.spec.types import Experiment

FILES = "artifacts"
"""The folder of the files of a step, in that of its attempt."""
_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "mlflow",
    "numpy",
)


def write_inputs(record: RunRecord, experiment: Experiment) -> None:
    """Writes spec.yaml, spec.resolved.yaml and environment.json.

    Raises:
        OSError: a file cannot be written.
    """
    folder = record.artifacts
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(experiment.text, encoding="utf-8")
    resolved = yaml.safe_dump(dict(record.spec), sort_keys=False, allow_unicode=True, width=100)
    (folder / "spec.resolved.yaml").write_text(resolved, encoding="utf-8")
    text = json.dumps(record.environment, indent=2) + "\n"
    (folder / "environment.json").write_text(text, encoding="utf-8")


def write_artifact(artifact: Artifact, *folders: Path) -> None:
    """Writes a file that a step yielded, into each of the folders.

    Raises:
        OSError: the file cannot be written.
    """
    for folder in folders:
        path = folder / artifact.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(artifact.text, encoding="utf-8")


def copy_artifacts(step: Path, record: RunRecord) -> None:
    """Copies the files that a reused step yielded; `step` is the folder of its attempt.

    Raises:
        OSError: a file cannot be read or written.
    """
    if (step / FILES).is_dir():
        shutil.copytree(step / FILES, record.artifacts, dirs_exist_ok=True)


def environment(spec_path: Path) -> dict[str, Any]:
    """Versions, platform, devices and the git state of the spec's folder; contains no secrets."""
    return {
        "glitchrun": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": _threads(),
        "devices": _devices(),
        "git": _git(spec_path.resolve().parent),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _threads() -> int | None:
    torch = sys.modules.get("torch")  # None if no step has needed it
    return torch.get_num_threads() if torch else None


def _devices() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ["cpu"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit and whether tracked files differ from it; None outside a repository."""
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _ask_git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
