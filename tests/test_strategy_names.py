"""No module outside `glitchrun/strategies/` knows a strategy by its name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from glitchrun.spec.strategy import STRATEGIES

PACKAGE = Path(__file__).parents[1] / "glitchrun"
NO_STRATEGY = {
    ("cli/__init__.py", "validate"),  # the command
    ("cli/validate.py", "validate"),
    ("cli/init.py", "mine"),  # the default of --strategy
    ("report/machine_readable.py", "check"),  # a column of the table of checks
    ("report/summary.py", "check"),
    ("report/outcome.py", "check"),  # the word
    ("report/comparison/regressions.py", "test"),  # the word, and a key of the JSON
    ("report/study_files.py", "test"),  # the same key
    ("runner/ray_executor.py", "check"),  # a method of the worker
}
"""Texts that are a strategy's name and may stand where they do."""
LIGHT = """
import sys
from glitchrun.spec.strategy import STRATEGIES
list(STRATEGIES.built_in)
print(sorted({"torch", "transformers", "mlflow", "pandas", "numpy"} & set(sys.modules)))
"""


def test_no_other_module_names_a_strategy() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith("strategies/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in STRATEGIES.built_in:
                found.add((place, node.value))
    assert found <= NO_STRATEGY


def test_declaring_a_strategy_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
