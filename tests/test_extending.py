"""The recipes of CONTRIBUTING.md, followed in a copy of the tree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from glitchrun.spec.probes import PROBES, PROTOCOLS
from glitchrun.spec.schema import ENUMS, fragments, parameters
from glitchrun.spec.searches import SEARCHES
from glitchrun.strategies.mine import Config

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^   ```python\n(.*?)^   ```$", re.MULTILINE | re.DOTALL)
SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: extended}
model: {path: org/model}
steps:
  - {id: a, strategy: mine, search: longest, iterations: 3, probes: [echo, repeat]}
  - {id: b, strategy: scan, probes: [echo]}
  - {id: c, strategy: test, probes: [echo], tokens: {ids: [1]}}
  - {id: d, strategy: validate, probes: [echo], tokens: {ids: [1]}}
"""
TRY = """
import torch
from types import SimpleNamespace
from glitchrun.plan.work import step_work, workloads
from glitchrun.search import build_search
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.probes import probe_names
from glitchrun.strategies.mine import Config

spec = load_experiment("spec.yaml").cells[0].spec
words = ["a", "abc", "ab"]
space = SimpleNamespace(ids=torch.arange(3), vocabulary=SimpleNamespace(text=words.__getitem__))
search = build_search("longest", space, Config(search="longest"))
print(search.propose(3), step_work(spec, 100)[0].prompts, len(workloads(spec)))
print(probe_names("strict"))
"""


def recipe(heading: str) -> list[str]:
    """The blocks of code under a heading of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in _BLOCK.findall(section)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a search and a probe more."""
    folder = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "glitchrun", folder / "glitchrun", ignore=ignored)
    search, entry = recipe("Adding a search")
    (probe,) = recipe("Adding a probe")
    probe = f"{probe.rstrip()},\n"
    (folder / "glitchrun" / "search" / "longest.py").write_text(search)
    for name, start, more in (("searches", "_ALL = {\n", entry), ("probes", "_ALL = (\n", probe)):
        table = folder / "glitchrun" / "spec" / f"{name}.py"
        text = table.read_text()
        assert text.count(start) == 1
        table.write_text(text.replace(start, start + more))
    (folder / "spec.yaml").write_text(SPEC)
    return folder


def python(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, env=_here(tree)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _here(tree: Path) -> Mapping[str, str]:
    return {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def test_the_recipes_are_all_there_is_to_do(tree: Path) -> None:
    assert "no problems" in python(tree, "-m", "glitchrun", "validate", "spec.yaml")
    for kind, name in (("searches", "longest"), ("probes", "echo")):
        listed = json.loads(python(tree, "-m", "glitchrun", "list", kind, "-o", "json"))
        assert name in [row["name"] for row in listed]
    assert python(tree, "-c", TRY).splitlines() == [
        "[1, 2, 0] 48 4",  # 3 rounds of 8 tokens in 2 probes
        "('repeat', 'explain', 'question')",
    ]


def test_every_search_that_validates_can_be_built_and_has_a_config() -> None:
    properties = parameters("mine")
    assert properties["search"]["enum"] == list(SEARCHES)
    for name, search in SEARCHES.items():
        assert callable(SEARCHES.code(name, search.build))
        assert set(search.needs) <= set(search.reads) <= set(properties)
        assert search.description.endswith(".")
    own = {name for search in SEARCHES.values() for name in search.parameters}
    assert set(properties) - own <= set(Config.__dataclass_fields__)


def test_every_strategy_with_probes_knows_all_of_them() -> None:
    found = [
        part["properties"]["probes"]["else"]["items"]["examples"]
        for part in fragments().values()
        if "probes" in part["properties"]
    ]
    assert len(found) >= 4
    assert all(names == [*PROBES, *PROTOCOLS] for names in found)
    assert set(ENUMS) == {"searches", "probes"}
