"""The documentation and the CI workflow agree with the program."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from glitchrun.cli import COMMANDS, main
from glitchrun.errors import ExitCode
from glitchrun.spec.experiment_loading import check_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECTIONS = dict(re.findall(r"^### glitchrun (\w+)([^\n]*\n.*?)(?=^##|\Z)", REFERENCE, re.M | re.S))
# The keys that complete a part of a spec.
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


def test_the_reference_has_one_section_for_every_command() -> None:
    assert sorted(_SECTIONS) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_lists_a_command_and_the_reference_its_options(name: str) -> None:
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


@pytest.mark.parametrize(
    "page", ["README.md", "docs/spec.md", "docs/measuring.md", "docs/probes.md"]
)
def test_the_specs_shown_are_valid(page: str, tmp_path: Path) -> None:
    shown = _YAML.findall((ROOT / page).read_text(encoding="utf-8"))
    assert shown
    for text in shown:
        rest = [line for key, line in _REST.items() if not re.search(rf"^{key}:", text, re.M)]
        path = tmp_path / "shown.yaml"
        path.write_text(text + "".join(rest), encoding="utf-8")
        problems, _ = check_files([path], environ={})
        assert problems == [], text


def test_links_lead_to_existing_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_sections_lead_to_a_heading() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            there = (page.parent / target).read_text(encoding="utf-8") if target else text
            assert anchor in anchors(there), f"{page.name}: {target}#{anchor}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_workflow_runs_the_commands_of_the_makefile_and_of_contributing() -> None:
    commands = re.search(r"^```sh\n(.*?)^```$", CONTRIBUTING, re.DOTALL | re.MULTILINE)
    assert commands
    assert steps("test") == commands[1].splitlines() == ["make check", "make test"]
    for command in steps("test"):
        assert re.search(rf"^{command.removeprefix('make ')}:", MAKEFILE, re.MULTILINE)
    assert "make test" in README


def test_the_light_job_validates_the_specs_without_torch() -> None:
    install, absent, validate = steps("light")
    assert install == "pip install ."
    assert "find_spec('torch') is not None" in absent
    assert f"$(BIN)/{validate}\n" in MAKEFILE
    assert validate == "glitchrun validate specs"


def test_the_workflow_is_pinned_bounded_and_reads_only() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"] == {"python": ["3.11", "3.12", "3.13"]}
    for job in WORKFLOW["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def steps(job: str) -> list[str]:
    """The commands that a job of the workflow runs."""
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]
