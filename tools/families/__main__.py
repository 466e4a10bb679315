"""Tests the families and writes docs/models.md, or prints the results of given `model_type`s.

python -m tools.families            tests all and writes docs/models.md
python -m tools.families lfm2 rwkv  tests these and prints the results
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


def main(kinds: list[str]) -> int:
    """Test families; the exit code is 1 if one gives other numbers than its plain forward pass."""
    warnings.simplefilter("ignore")
    results = []
    for family in families():
        if kinds and family.kind not in kinds:
            continue
        results.append(trial(family))
        last = results[-1]
        print(f"{last.kind}: {last.outcome} {last.engine} {last.reason}", flush=True)
    if not kinds:
        _PAGE.write_text(page(results, transformers.__version__), encoding="utf-8")
    return int(any(result.outcome == "wrong" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
