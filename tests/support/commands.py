"""Whole commands, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from glitchrun.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT.pop("MLFLOW_TRACKING_URI", None)


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Starts `glitchrun WORDS` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "glitchrun", *words],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `glitchrun WORDS` in a folder to its end."""
    process = start(folder, *words, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def invoked(folder: Path, *words: str) -> Result:
    """`glitchrun WORDS` in a folder, in this process.

    Importing torch, transformers and mlflow takes longer than a tiny run.
    """
    with chdir(folder):
        return CliRunner(env={"MLFLOW_TRACKING_URI": None}).invoke(main, list(words))


def applied(folder: Path, *words: str) -> dict[str, Any]:
    """What `glitchrun apply -o json WORDS` printed; its exit code must be the one it names."""
    done = invoked(folder, "apply", "-o", "json", *words)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["exit_code"] == done.exit_code, done.stderr
    return result
