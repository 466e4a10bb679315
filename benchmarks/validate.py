"""How fast `glitchrun validate` is, in paired and interleaved runs.

    python benchmarks/validate.py [--pairs N]

- specs: `glitchrun validate specs/` against `check-jsonschema` on the same files; target: the
  median of the pairs' ratios is at most 0.5.
- many: 1,000 specs against one; target: at most 30 times the time.

Prints one JSON document; exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
GLITCHRUN = [sys.executable, "-m", "glitchrun", "validate"]
REFERENCE = [
    str(Path(sys.executable).with_name("check-jsonschema")),
    "--schemafile",
    "schemas/experiment.schema.json",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    specs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "specs").rglob("*.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        one = write_copies(Path(folder) / "one", 1)
        many = write_copies(Path(folder) / "many", 1000)
        results = {
            "specs": compare([*GLITCHRUN, "specs"], [*REFERENCE, *specs], pairs, 0.5),
            "many": compare([*GLITCHRUN, many], [*GLITCHRUN, one], max(3, pairs // 3), 30),
        }
    print(json.dumps({"files": len(specs), **results}, indent=2))
    return 0 if all(result["met"] for result in results.values()) else 1


def compare(
    candidate: Sequence[str], reference: Sequence[str], pairs: int, target: float
) -> dict[str, object]:
    """Median seconds of both and of their ratio over `pairs` pairs, the order alternating."""
    seconds(candidate), seconds(reference)  # warm the file cache
    first: list[float] = []
    second: list[float] = []
    for index in range(pairs):
        commands = [(candidate, first), (reference, second)]
        for command, times in commands if index % 2 else reversed(commands):
            times.append(seconds(command))
    ratio = median(a / b for a, b in zip(first, second, strict=True))
    return {
        "seconds": round(median(first), 4),
        "reference_seconds": round(median(second), 4),
        "ratio": round(ratio, 3),
        "target": target,
        "met": ratio <= target,
    }


def seconds(command: Sequence[str]) -> float:
    """Wall time of one run, which must succeed."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def write_copies(folder: Path, count: int) -> str:
    """`count` copies of the quickstart spec under their own names."""
    folder.mkdir()
    text = (ROOT / "specs" / "smollm2-quickstart.yaml").read_text(encoding="utf-8")
    for index in range(count):
        copy = text.replace("smollm2-quickstart", f"smollm2-{index:04}")
        (folder / f"{index:04}.yaml").write_text(copy, encoding="utf-8")
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
