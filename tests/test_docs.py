"""The documentation, held to the program it describes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from glitchrun.cli import COMMANDS, main
from glitchrun.errors import ExitCode
from glitchrun.spec.loading import check_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECTIONS = dict(re.findall(r"^### glitchrun (\w+)([^\n]*\n.*?)(?=^##|\Z)", REFERENCE, re.M | re.S))
# What a part of a spec needs around it to be one.
_REST = {
    "apiVersion": "apiVersion: glitchrun/v1\n",
    "kind": "kind: Experiment\n",
    "metadata": "metadata: {name: example}\n",
    "model": "model: {path: org/model}\n",
    "steps": "steps: [{id: mine, strategy: mine}]\n",
}


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
    assert isinstance(found, click.Command)
    return found


def test_the_reference_has_a_section_for_every_command_and_no_other() -> None:
    assert sorted(_SECTIONS) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_in_the_readme_with_its_options_in_the_reference(name: str) -> None:
    assert re.search(rf"^\| .*`(?:glitchrun )?{name}\b.* \|$", README, re.MULTILINE)
    options = [p for p in command(name).params if isinstance(p, click.Option)]
    named = re.findall(r"^\| (`-[^|]*) \|", _SECTIONS[name], re.MULTILINE)
    assert sorted(", ".join(f"`{word}`" for word in o.opts) for o in options) == sorted(named)
    for option in options:
        if isinstance(option.type, click.Choice):
            assert all(f"`{choice}`" in _SECTIONS[name] for choice in option.type.choices)


def test_the_reference_lists_every_exit_code() -> None:
    table = REFERENCE.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(",")} == {int(c) for c in ExitCode}


@pytest.mark.parametrize("page", ["README.md", "docs/spec.md", "docs/measuring.md"])
def test_the_specs_shown_are_valid(page: str, tmp_path: Path) -> None:
    shown = _YAML.findall((ROOT / page).read_text(encoding="utf-8"))
    assert shown
    for text in shown:
        rest = [line for key, line in _REST.items() if not re.search(rf"^{key}:", text, re.M)]
        path = tmp_path / "shown.yaml"
        path.write_text(text + "".join(rest), encoding="utf-8")
        problems, _ = check_files([path], environ={})
        assert problems == [], text


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or target.startswith("docs/images/"), target
