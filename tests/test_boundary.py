"""Whose exception it is: a library's becomes a message, a defect of glitchrun keeps its trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from glitchrun import boundary
from glitchrun.boundary import foreign_errors, install_command, is_out_of_memory
from glitchrun.cli import main
from glitchrun.errors import ModelUnavailable, RunError


def _explained(error: Exception) -> ModelUnavailable:
    return ModelUnavailable(f"told: {type(error).__name__}")


def test_library_error_is_explained_and_chained() -> None:
    raised = pytest.raises(ModelUnavailable, match="told: ParserError")
    with raised as caught, foreign_errors(_explained):
        yaml.safe_load("[")
    assert isinstance(caught.value.__cause__, yaml.YAMLError)


def test_an_error_with_a_message_of_its_own_passes() -> None:
    with pytest.raises(RunError, match="ours"), foreign_errors(_explained):
        raise RunError("ours")


@pytest.mark.parametrize(
    "line", ["{}['absent']", "int('x')", "__import__('json').loads('{')", "open('/nowhere/x')"]
)
def test_failing_line_of_glitchrun_is_a_defect(line: str) -> None:
    """Also where it fails inside the standard library that the line called."""
    own = compile(f"def fails():\n    {line}\n", str(Path(boundary.__file__)), "exec")
    names: dict[str, object] = {}
    exec(own, names)
    with pytest.raises((KeyError, ValueError, OSError)), foreign_errors(_explained):
        names["fails"]()  # type: ignore[operator]


def test_glitchrun_called_back_by_a_library_is_still_glitchrun() -> None:
    own = compile("def hook(pairs):\n    return 1 / 0\n", str(Path(boundary.__file__)), "exec")
    names: dict[str, object] = {}
    exec(own, names)
    with pytest.raises(ZeroDivisionError), foreign_errors(_explained):
        json.loads("{}", object_pairs_hook=names["hook"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (ImportError("It needs x (`pip install x>=1.2`)."), "pip install x>=1.2"),
        (ImportError("Please run: pip install 'a-b[gpu]'."), 'pip install "a-b[gpu]"'),
        (ModuleNotFoundError("No module named 'some_thing'", name="some_thing.x"), "some-thing"),
        (ImportError("no"), None),
    ],
)
def test_the_command_that_adds_what_is_missing(error: ImportError, command: str | None) -> None:
    found = install_command(error)
    assert found is command if command is None else command in (found or "")


Panic = type("PanicException", (BaseException,), {})
"""Libraries written in Rust raise a class of this name that cannot be imported."""


def test_panic_of_a_library_is_explained() -> None:
    with pytest.raises(ModelUnavailable, match="told"), foreign_errors(_explained):
        raise Panic("index out of bounds")


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (Panic("ThreadPoolBuildError { kind: IOError }"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
        (Panic("index out of bounds"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error: BaseException, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_command_without_memory_says_so(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("glitchrun.cli.validate.check_files", fail)
    done = CliRunner().invoke(main, ["validate", __file__])
    assert (done.exit_code, "glitchrun: memory ran out; close" in done.stderr) == (1, True)
    assert "Traceback" not in done.output
