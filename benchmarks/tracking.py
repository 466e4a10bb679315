"""What MLflow costs a run: creating the store, opening it, delivering, delivering again, following.

    python benchmarks/tracking.py [TOKENS] [BATCH]

Prints seconds for an invented run of TOKENS verified tokens (49,152: the vocabulary of SmolLM2) in
batches of BATCH. `work` is what each look at a growing run costs in Python alone, without MLflow.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from glitchrun.report import write_report
from glitchrun.tracking.address import tracking_uri
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.metric_series import points
from glitchrun.tracking.params_and_tags import run_tags
from glitchrun.tracking.store import ensure_store, open_store
from glitchrun.tracking.tracker import MlflowTracker
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


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [49_152, 64][len(given) :]))
