"""Registries: built-in objects, entry points of other packages, and what is wrong with these."""

from __future__ import annotations

from pathlib import Path

import pytest

from glitchrun.errors import PreflightError
from glitchrun.spec.registry import Registry


def installed(folder: Path, name: str, module: str, entry_point: str) -> None:
    """Writes a package of one module, and what an installer would write about it."""
    (folder / f"{name}.py").write_text(module)
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[glitchrun.{name}]\n{entry_point}\n")


def registry(name: str, built_in: dict[str, int]) -> Registry[int]:
    return Registry("number", f"glitchrun.{name}", int, built_in)


def test_entry_points_follow_the_built_in_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    installed(tmp_path, "outside_three", "NUMBER = 3", "three = outside_three:NUMBER")
    found = registry("outside_three", {"one": 1, "two": 2})
    assert dict(found) == {"one": 1, "two": 2, "three": 3}
    assert found.built_in == {"one": 1, "two": 2}
    assert found["three"] == 3
    assert "four" not in found


@pytest.mark.parametrize(
    ("module", "entry_point", "message"),
    [
        ("import nonexistent_module", "four = {name}:NUMBER", "ModuleNotFoundError"),
        ("raise ValueError('odd')", "four = {name}:NUMBER", "ValueError: odd"),
        ("", "four = {name}:NUMBER", "AttributeError"),
        ("", "four = another_nonexistent:NUMBER", "ModuleNotFoundError"),
        ("NUMBER = 'text'", "four = {name}:NUMBER", "must be an instance of builtins.int"),
        ("NUMBER = 1", "one = {name}:NUMBER", "has a name that is taken"),
    ],
)
def test_a_faulty_entry_point_is_named_with_its_package(
    module: str, entry_point: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"outside_{len(module)}_{len(entry_point)}_{len(message)}"
    monkeypatch.syspath_prepend(tmp_path)
    installed(tmp_path, name, module, entry_point.format(name=name))
    with pytest.raises(PreflightError, match=message) as error:
        list(registry(name, {"one": 1}))
    assert f"of the package {name} 1.0" in str(error.value)
    assert f"pip uninstall {name}" in str(error.value)
