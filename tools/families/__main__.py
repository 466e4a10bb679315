"""Writes docs/models.md, or tries the families named by their `model_type` and prints them.

python -m tools.families            all of them, to docs/models.md
python -m tools.families lfm2 rwkv  these, to the terminal
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import transformers

from tools.families.page import page
from tools.families.small import families
from tools.families.trial import trial

_PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def main(asked: list[str]) -> int:
    """Exit code 1 where a family runs to other numbers than its plain forward pass."""
    warnings.simplefilter("ignore")
    results = []
    for family in families():
        if asked and family.kind not in asked:
            continue
        results.append(trial(family))
        last = results[-1]
        print(f"{last.kind}: {last.outcome} {last.engine} {last.reason}", flush=True)
    if not asked:
        _PAGE.write_text(page(results, transformers.__version__), encoding="utf-8")
    return int(any(result.outcome == "wrong" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
