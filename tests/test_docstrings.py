"""The docstring check, on a package with every fault and on one without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.docstrings import ROOT, faults

GOOD = '''
"""Shapes."""

from typing import Protocol
from torch import Tensor


class Search(Protocol):
    """What a search provides."""

    def propose(self) -> int:
        """The next id."""


class Ordered:
    """A fixed order."""

    def propose(self) -> int:
        return 0


def softmax(logits: Tensor) -> Tensor:
    """Probabilities `(B, V)` of `logits`, of the same shape.

    Raises:
        ValueError: B is 0.
    """
    if not len(logits):
        raise ValueError
    return _shifted(logits)


def _shifted(logits):
    return logits
'''

CONFIG = '''
"""A strategy."""


class Config:
    attempts: int = 4
    """Sampled attempts per token."""
'''


def package(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        path = folder / "example" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "example"


def messages(folder: Path, **modules: str) -> list[str]:
    return [line.partition(": ")[2] for line in faults(package(folder, **modules))]


def test_a_complete_package_has_no_faults(tmp_path: Path) -> None:
    assert messages(tmp_path, good=GOOD, strategies__mine=CONFIG) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"""Shapes."""', "", "the module has no docstring"),
        ('"""A fixed order."""', "", "Ordered has no docstring"),
        ('"""The next id."""', "...", "Search.propose has no docstring"),
        ("`(B, V)`", "", "the docstring of softmax names no shape such as `(B, T, V)`"),
        ("`(B, V)`", "(as is)", "the docstring of softmax names no shape such as `(B, T, V)`"),
        ("`(B, V)`", "`f(x, y)`", "the docstring of softmax names no shape such as `(B, T, V)`"),
        ("ValueError: ", "", "the docstring of softmax does not say that it raises ValueError"),
        ("_shifted", "shifted", "shifted has no docstring"),
    ],
)
def test_a_fault_is_reported(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in GOOD
    assert fault in messages(tmp_path, bad=GOOD.replace(old, new))


def test_an_alias_of_an_array_type_is_an_array(tmp_path: Path) -> None:
    alias = '"""Types."""\n\nFloats = NDArray[np.float64]\n'
    user = (
        '"""Uses."""\n\nfrom example.alias import Floats\n\n\n'
        'def mean(x: Floats) -> float:\n    """The mean."""\n'
    )
    fault = "the docstring of mean names no shape such as `(B, T, V)`"
    assert messages(tmp_path, alias=alias, user=user) == [fault]


def test_a_field_of_a_config_without_a_docstring_is_reported(tmp_path: Path) -> None:
    bare = CONFIG.replace('    """Sampled attempts per token."""\n', "    seed: int = 0\n")
    assert messages(tmp_path, strategies__mine=bare) == [
        "the field Config.attempts has no docstring",
        "the field Config.seed has no docstring",
    ]


@pytest.mark.parametrize(("text", "code"), [(GOOD, 0), ("def f(): ...\n", 1)])
def test_the_exit_code_says_whether_there_are_faults(tmp_path: Path, text: str, code: int) -> None:
    folder = package(tmp_path, module=text)
    command = [sys.executable, "-m", "tools.docstrings", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stdout + run.stderr
