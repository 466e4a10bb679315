"""Measures how many of the tokens planted in a stand-in for nowllm-0829 are found.

    make nowllm-mini
    python benchmarks/standin.py [FOLDER] [--sampled 64] [--budget 800]

The first table shows, by quantization, how many planted tokens a scan of the whole vocabulary
finds, how many of the others it calls glitch tokens, and how many of both `validate` confirms. The
second shows what each search finds within a budget. Everything runs through `glitchrun apply`. It
fails if less than 95 % of the planted tokens are found or confirmed, or more than 2 % of the
others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parents[1] / ".cache" / "nowllm-mini" / "nowllm-0829"
QUANTIZATIONS = ("float32", "int8", "int4")
SEARCHES = ("random", "gradient", "surrogate", "screen", "low-norm")
FOUND, ALARMS = 0.95, 0.02
BATCH = 8
out = Console(width=110)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one step in tokens.jsonl."""

    rows: Sequence[Mapping[str, Any]]
    planted: frozenset[int]

    def share(self, verdict: str, planted: bool) -> tuple[int, int]:
        """Returns how many planted (or other) tokens have the verdict, and how many there are."""
        asked = [row for row in self.rows if (row["token_id"] in self.planted) == planted]
        return sum(bool(row[verdict]) for row in asked), len(asked)


def experiment(folder: Path, name: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "model": {"path": str(folder.resolve())},
        "template": "nowllm",
        "thresholds": {"asr": 0.7},
        "steps": list(steps),
    }


def apply(spec: Mapping[str, Any], planted: frozenset[int]) -> list[dict[str, Rows]]:
    """Applies a spec; returns the rows of each run, by step."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
        words = [sys.executable, "-m", "glitchrun", "apply", "spec.yaml", "-o", "json", "--yes"]
        done = subprocess.run(words, cwd=place, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.returncode)
        return [by_step(run, planted) for run in json.loads(done.stdout)["runs"]]


def by_step(run: Mapping[str, Any], planted: frozenset[int]) -> dict[str, Rows]:
    lines = (Path(run["artifacts_dir"]) / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        step: Rows([row for row in rows if row["step"] == step], planted)
        for step in dict.fromkeys(row["step"] for row in rows)
    }


def precisions(folder: Path, planted: frozenset[int], sampled: int) -> bool:
    """Prints the table by quantization; returns whether every figure is good enough."""
    some = sorted(planted)[:: max(1, len(planted) // sampled)][:sampled]
    others = [i for i in range(300, 300 + 400 * sampled, 400) if i not in planted][:sampled]
    steps = [
        {"id": "scan", "strategy": "scan"},
        {"id": "asr", "strategy": "validate", "tokens": {"ids": [*some, *others]}, "attempts": 3},
    ]
    spec = experiment(folder, "standin", steps) | {
        "matrix": {"axes": {"model.quantization": list(QUANTIZATIONS)}}
    }
    table = Table("quantization", "found", "false alarms", "confirmed", "falsely confirmed")
    good = True
    for name, run in zip(QUANTIZATIONS, apply(spec, planted), strict=True):
        shares = [
            run[step].share(verdict, is_planted)
            for step, verdict in (("scan", "glitch"), ("asr", "confirmed"))
            for is_planted in (True, False)
        ]
        table.add_row(name, *(f"{count:,} of {n:,}" for count, n in shares))
        parts = [count / n for count, n in shares]
        good &= min(parts[0], parts[2]) >= FOUND and max(parts[1], parts[3]) <= ALARMS
    out.print(table)
    return good


def searches(folder: Path, planted: frozenset[int], budget: int) -> None:
    steps = [
        {
            "id": name,
            "strategy": "mine",
            "search": name,
            "iterations": budget // BATCH,
            "batch_size": BATCH,
        }
        for name in SEARCHES
    ]
    spec = experiment(folder, "standin-searches", steps) | {"thresholds": {"probability": 1.0}}
    (run,) = apply(spec, planted)
    table = Table("search", "verified", "planted", "false alarms", title=f"{len(planted)} planted")
    for name in SEARCHES:
        count, n = run[name].share("glitch", True)
        wrong, ordinary = run[name].share("glitch", False)
        table.add_row(name, f"{n + ordinary:,}", f"{count:,}", f"{wrong:,}")
    out.print(table)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=FOLDER)
@click.option("--sampled", default=64, help="Planted tokens, and as many others, to validate.")
@click.option("--budget", default=800, help="Verifications per search.")
def main(folder: Path, sampled: int, budget: int) -> None:
    """Measures how many of the tokens planted in the stand-in at FOLDER are found."""
    if not (folder / "planted.json").exists():
        raise click.ClickException(f"{folder} has no planted.json: run `make nowllm-mini` first")
    note = json.loads((folder / "planted.json").read_text(encoding="utf-8"))
    planted = frozenset(note["planted"])
    good = precisions(folder, planted, sampled)
    searches(folder, planted, budget)
    if not good:
        raise SystemExit("too few planted tokens or too many others were found")


if __name__ == "__main__":
    main()
