"""The commands init, validate, schema and list."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glitchrun.cli import COMMANDS, main
from glitchrun.spec.probes import PROBES, PROTOCOLS
from glitchrun.spec.schema import fragments, published
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.templates import FAMILIES

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "mlflow", "matplotlib", "numpy", "importlib.metadata")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_can_be_imported_and_has_help() -> None:
    shown = run("--help").output
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "specs"], ["schema", "--check"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom glitchrun.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as exit:\n    assert exit.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("strategy", list(fragments()))
def test_init_writes_a_spec_that_validates(folder: Path, strategy: str) -> None:
    assert run("init", "first", "--strategy", strategy).exit_code == 0
    assert run("validate", "first.yaml").exit_code == 0
    text = (folder / "first.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    assert f"strategy: {strategy}" in text


@pytest.mark.parametrize("name", ["no", "12", "a b", "é", "0x1f", "a: b", "'"])
def test_init_takes_any_name(folder: Path, name: str) -> None:
    assert run("init", name).exit_code == 0
    assert run("validate", f"{name}.yaml").exit_code == 0


@pytest.mark.parametrize("name", ["my gemma", "it's", "-x", "a;b", "$HOME", "specs/a b"])
def test_the_command_that_init_prints_can_be_pasted(folder: Path, name: str) -> None:
    (folder / "specs").mkdir()
    printed = run("init", "--", name).stdout
    command = printed.rpartition("check it with: ")[2]
    words = shlex.split(command)
    assert words[:2] == ["glitchrun", "validate"]
    assert run(*words[1:]).exit_code == 0


@pytest.mark.parametrize("name", ["first", "specs/first"])
def test_init_names_the_schema_by_a_relative_path(folder: Path, name: str) -> None:
    (folder / "specs").mkdir()
    told = run("init", name).stderr
    path = folder / f"{name}.yaml"
    modeline = path.read_text(encoding="utf-8").splitlines()[0]
    schema = "schemas/experiment.schema.json"
    up = "../" * name.count("/")
    assert modeline == f"# yaml-language-server: $schema={up}{schema}"
    assert f"mkdir -p schemas && glitchrun schema > {schema}" in told
    (folder / "schemas").mkdir()
    (folder / schema).write_text("{}")
    assert run("init", f"{name}-2").stderr == ""


def test_init_never_overwrites(folder: Path) -> None:
    (folder / "mine.yaml").write_text("precious")
    result = run("init", "mine")
    assert result.exit_code == 2
    assert "mine.yaml exists" in result.stderr
    assert (folder / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments", [["a", "--strategy", "nope"], ["nowhere/a"], ["a\x01b"], ["x" * 300]]
)
def test_init_refuses_without_leaving_anything(folder: Path, arguments: list[str]) -> None:
    result = run("init", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("glitchrun: ")
    assert not list(folder.iterdir())


def test_validate_exit_codes_and_streams(folder: Path) -> None:
    run("init", "good")
    (folder / "bad.yaml").write_text("kind: Fragment\nsede: 1\n")
    good, bad = run("validate", "good.yaml"), run("validate", ".")
    assert (good.exit_code, bad.exit_code) == (0, 3)
    assert "bad.yaml:2:1: error[GR101] unknown key 'sede'" in bad.stdout
    assert "1 problem in 2 files" in bad.stderr
    missing = run("validate", "missing.yaml")
    assert missing.exit_code == 3
    assert "missing.yaml:1:1: error[GR001]" in missing.stdout


def test_validate_json_is_one_document_and_nothing_else(folder: Path) -> None:
    (folder / "bad.yaml").write_text("kind: Fragment\nsede: 1\n")
    result = run("validate", "bad.yaml", "--format", "json")
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert data["files"] == 1
    assert data["errors"][0]["file"] == "bad.yaml"
    assert result.stderr == ""


@pytest.mark.parametrize("form", ["github", "sarif", "json"])
def test_every_output_format_is_valid_without_problems(folder: Path, form: str) -> None:
    run("init", "good")
    result = run("validate", "good.yaml", "--format", form)
    assert result.exit_code == 0
    assert not result.stdout or json.loads(result.stdout)


def test_folders_are_searched_recursively_except_hidden_ones(folder: Path) -> None:
    for place in ("a/b", ".hidden"):
        (folder / place).mkdir(parents=True)
    (folder / "a" / "b" / "x.yml").write_text("seed: x\n")
    (folder / ".hidden" / "y.yaml").write_text("[")
    data = json.loads(run("validate", ".", "a/b/x.yml", "--format", "json").stdout)
    assert data["files"] == 1
    assert {error["file"] for error in data["errors"]} == {"a/b/x.yml"}


SKIPPED = [
    *(
        "venv",
        ".venv",
        "node_modules",
        ".git",
        "site-packages",
        "build",
        "dist",
        "mlruns",
        "own-env",
    ),
    *("a/node_modules", "a/.cache"),
]


def test_skipped_folders_of_code_and_runs_are_reported(folder: Path) -> None:
    for place in ("specs", *SKIPPED):
        (folder / place).mkdir(parents=True)
        (folder / place / "x.yaml").write_text("[")
    (folder / "own-env" / "pyvenv.cfg").write_text("home = /usr/bin\n")  # a virtual environment
    data = json.loads(run("validate", ".", "--format", "json").stdout)
    assert data["files"] == 1
    assert {error["file"] for error in data["errors"]} == {"specs/x.yaml"}
    told = run("validate", ".").stderr
    assert f"skipped {len(SKIPPED)} folders: .git, .venv, a/.cache, a/node_modules" in told
    assert "and 6 more; name one to check it" in told
    assert "skipped" not in run("validate", "specs").stderr


@pytest.mark.parametrize("name", SKIPPED)
def test_a_path_given_outright_is_always_read(folder: Path, name: str) -> None:
    deep = folder / name / "build"
    deep.mkdir(parents=True)
    for place in (folder / name, deep):
        (place / "x.yaml").write_text("[")
    assert run("validate", f"{name}/x.yaml").exit_code == 3
    data = json.loads(run("validate", name, "--format", "json").stdout)
    assert data["files"] == (1 if name in ("own-env", "a/.cache", ".venv", ".git") else 2)


def test_a_folder_without_specs_is_a_usage_error(folder: Path) -> None:
    (folder / "empty").mkdir()
    result = run("validate", "empty")
    assert result.exit_code == 2
    assert "no .yaml or .yml file" in result.stderr


def test_schema_prints_and_compares(folder: Path) -> None:
    assert run("schema").stdout == published()
    assert run("schema", "--check").exit_code == 1
    (folder / "schemas").mkdir()
    (folder / "schemas" / "experiment.schema.json").write_text(published(), encoding="utf-8")
    assert run("schema", "--check").exit_code == 0
    (folder / "schemas" / "experiment.schema.json").write_text("{}")
    assert run("schema", "--check").exit_code == 1


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("strategies", list(fragments())),
        ("searches", list(SEARCHES)),
        ("templates", ["auto", "tokenizer", "raw", *FAMILIES]),
        ("probes", [*PROBES, *PROTOCOLS]),
    ],
)
def test_list_prints_the_names(what: str, names: list[str]) -> None:
    rows = json.loads(run("list", what, "-o", "json").stdout)
    assert [row["name"] for row in rows] == names
    assert all(row["description"] for row in rows)
    assert all(f"{name} " in run("list", what).stdout for name in names)


def test_a_spec_problem_of_any_command_is_shown_with_its_line(folder: Path) -> None:
    (folder / "bad.yaml").write_text("kind: Fragment\nsede: 1\n")
    result = run("plan", "bad.yaml")
    assert result.exit_code == 3
    assert " 2 | sede: 1\n   | ^^^^" in result.stderr
    assert result.stdout == ""


def test_unknown_commands_are_usage_errors() -> None:
    assert run("frobnicate").exit_code == 2
    assert run("validate").exit_code == 2
    assert run("validate", "specs", "--format", "xml").exit_code == 2


@pytest.mark.parametrize("name", ["", "folder/", ".hidden", "."])
def test_init_requires_a_name_that_validate_finds(folder: Path, name: str) -> None:
    (folder / "folder").mkdir()
    assert run("init", name).exit_code == 2
    assert not list(folder.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "code"), [("kind: Fragment\nsede: 1\n", 3), ("kind: Fragment\n", 3), (None, 3)]
)
def test_apply_ends_with_one_json_document_on_errors_too(
    folder: Path, text: str | None, code: int
) -> None:
    if text is not None:
        (folder / "spec.yaml").write_text(text)
    result = run("apply", "spec.yaml", "-o", "json")
    assert result.exit_code == code
    document = json.loads(result.stdout)
    assert (document["runs"], document["exit_code"]) == ([], code)
    assert "spec.yaml:" in document["error"]
    assert "error[GR" in result.stderr


def test_an_astronomically_large_matrix_gets_a_short_count(folder: Path) -> None:
    axes = ", ".join(f"x{number}: [1, 2]" for number in range(2000))
    (folder / "huge.yaml").write_text(f"matrix: {{axes: {{{axes}}}}}\n")
    errors = json.loads(run("validate", "huge.yaml", "--format", "json").stdout)["errors"]
    (found,) = [error for error in errors if error["code"] == "GR212"]
    assert "about 10^602 cells" in found["message"]
