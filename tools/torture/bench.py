"""Projects with a tiny model, `glitchrun` commands with a fault in them, and what must hold."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glitchrun.errors import GlitchrunError
from glitchrun.events_json import batch_to_json
from glitchrun.ledger import RunRecord, find_runs
from tests.support import tiny_models
from tests.support.commands import ENVIRONMENT, Command

HEAD = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: torture}
model: {path: ./model, device: cpu}
template: chatml
seed: 3
steps:
"""
_IDS = "[5, 6, 40, 41, 42, 300, 301, 302, 303, 304]"
STEPS: Mapping[str, str] = {
    "mine": """\
  - {id: mine, strategy: mine, search: gradient, iterations: 12, batch_size: 4, k: 16}
  - {id: asr, strategy: validate, tokens: {from: mine}, attempts: 3, max_new_tokens: 4}
""",
    "cascade": "  - {id: cascade, strategy: mine, search: cascade, controls: 4}\n",
    "scan": "  - {id: scan, strategy: scan, batch_size: 16, probes: strict}\n",
    "test": f"  - {{id: test, strategy: test, tokens: {{ids: {_IDS}}}, probes: [repeat]}}\n",
    "validate": f"""\
  - {{id: test, strategy: test, tokens: {{ids: {_IDS}}}}}
  - {{id: asr, strategy: validate, tokens: {{from: test}}, attempts: 4, max_new_tokens: 6}}
""",
    "predict": """\
  - {id: predict, strategy: predict, prompts: [{text: The quick, expected: " "}, {text: a dog}]}
""",
    "classify": "  - {id: classify, strategy: classify, tokens: {ids: [300, 301]}, controls: 1}\n",
    "genetic": """\
  - id: genetic
    strategy: genetic
    base_text: The quick brown
    target: 381
    pool: {ids: [300, 301, 302, 303, 304, 305]}
    population: 8
    generations: 5
""",
    "profile": "  - {id: profile, strategy: profile, workload: {new_tokens: 4, repeats: 2}}\n",
    "check": "  - {id: check, strategy: check}\n",
}
"""The steps of a spec for every strategy."""
_MEASURING = ("profile", "check")
"""Strategies whose numbers depend on the machine."""
PATIENCE = 120.0
"""Seconds after which a command counts as hanging."""
_MESSAGE = re.compile(
    r"^(glitchrun:|failed:|MLflow does not have|Usage|Error)|: error\[GR", re.MULTILINE
)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    """The exit code; the negative number of the signal that killed it."""
    out: str
    err: str
    seconds: float


@dataclass
class Outcome:
    """What a fault led to."""

    codes: list[int] = field(default_factory=list)
    """Exit codes of the command with the fault."""
    objections: list[str] = field(default_factory=list)
    """What did not hold; empty if all did."""
    skipped: str = ""
    """Why the fault could not be injected on this machine."""

    def expect(
        self, result: Result, codes: Sequence[int], says: str = "", *, defect: bool = False
    ) -> None:
        """Checks the exit code of the command with the fault, and its message.

        Args:
            result: How the command ended.
            codes: The exit codes that the contract allows.
            says: What standard error must say, a regular expression.
            defect: Whether the fault is a defect of glitchrun, which may show a traceback.
        """
        self.codes.append(result.code)
        if result.code not in codes:
            self.objections.append(f"exit code {result.code}, not {codes}: {result.err[-600:]}")
        if not defect:
            self.objections += message_objections(result)
        if says and not re.search(says, result.err):
            self.objections.append(f"the message does not say {says!r}: {result.err[-600:]}")

    def require(self, condition: bool, objection: str) -> None:
        """Notes the objection unless the condition holds."""
        if not condition:
            self.objections.append(objection)


def message_objections(result: Result) -> list[str]:
    """What is wrong with the messages of a command: a traceback, or an error without a message."""
    found = []
    if "Traceback (most recent call last)" in result.err + result.out:
        found.append(f"a traceback: {result.err[-1500:]}")
    if 0 < result.code < 128 and not _MESSAGE.search(result.err) and "gate" not in result.out:
        found.append(f"exit code {result.code} without a message: {result.err[-300:]}")
    return found


@dataclass(frozen=True)
class Facts:
    """What a finished run found, without what depends on the machine."""

    files: Mapping[str, bytes]
    """tokens.jsonl and attempts.jsonl."""
    facts: Sequence[str]
    """Every fact in its order, as JSON."""
    metrics: Mapping[str, float | None]


@dataclass
class Project:
    """A working directory with a spec and the model."""

    folder: Path
    spec: str

    def start(self, *words: str, **options: Any) -> Command[str]:
        """Starts a command; `options` are those of `Command`."""
        environment = ENVIRONMENT | {"RUST_BACKTRACE": "0"} | options.pop("environment", {})
        return Command(str, self.folder, words, environment, **options)

    def run(self, *words: str, **options: Any) -> Result:
        """Runs a command to its end."""
        began = time.monotonic()
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=PATIENCE)
        return Result(process.returncode or 0, out, err, time.monotonic() - began)

    def apply(
        self, *faults: Mapping[str, Any], words: Sequence[str] = (), **options: Any
    ) -> Result:
        """Runs `glitchrun apply` with faults to its end."""
        return self.run("apply", "spec.yaml", *words, faults=faults, **options)

    def kill_after(self, seconds: float, number: int = signal.SIGKILL, **options: Any) -> Result:
        """Starts `glitchrun apply` and sends it a signal after some time."""
        process = self.start("apply", "spec.yaml", **options)
        began = time.monotonic()
        while process.poll() is None and time.monotonic() < began + seconds:
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        return Result(process.returncode or 0, out, err, time.monotonic() - began)

    @property
    def root(self) -> Path:
        """The tracking root."""
        return self.folder / "mlruns"

    def ledgers(self) -> list[Path]:
        """The ledgers of steps, the longest first."""
        found = self.root.glob("steps/*/attempt-*/ledger.jsonl")
        return sorted(found, key=lambda path: -path.stat().st_size)

    def runs(self) -> list[RunRecord]:
        """The runs under the tracking root, the newest first."""
        return find_runs(self.root)


class Bench:
    """Makes projects and knows what each must find."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self._model = tiny_models.tiny_llama(folder / "model")
        self._references: dict[str, tuple[Facts, float]] = {}
        self._number = 0

    def project(self, spec: str = "mine", more: str = "", own_model: bool = False) -> Project:
        """A new project.

        Args:
            spec: A name in `STEPS`.
            more: Text after the spec.
            own_model: Whether it has a copy of the model instead of a link.
        """
        self._number += 1
        folder = self.folder / f"{self._number:04}-{spec}"
        folder.mkdir()
        if own_model:
            shutil.copytree(self._model, folder / "model")
        else:
            (folder / "model").symlink_to(self._model)
        (folder / "spec.yaml").write_text(HEAD + STEPS[spec] + more, encoding="utf-8")
        return Project(folder, spec)

    def reference(self, spec: str) -> tuple[Facts, float]:
        """What an undisturbed run of a spec finds, and the seconds that it takes.

        Raises:
            RuntimeError: it does not finish.
        """
        if spec not in self._references:
            project = self.project(spec)
            result = project.apply()
            if result.code:
                raise RuntimeError(f"{spec} does not run: {result.err}")
            # The first command waits for the imports of the process that it is forked from.
            seconds = (
                result.seconds if self._references else project.apply(words=["--fresh"]).seconds
            )
            self._references[spec] = (facts_of(project.runs()[0]), seconds)
            shutil.rmtree(project.folder)
        return self._references[spec]

    def finish(
        self, project: Project, outcome: Outcome, *, runs: int = 1, sync: bool = False
    ) -> None:
        """Applies again without a fault, and notes what differs from an undisturbed run.

        Args:
            project: The project after the fault.
            outcome: Receives the objections.
            runs: Number of runs that the store must have.
            sync: Whether the store may have lost runs, which `sync` delivers again.
        """
        wanted, _ = self.reference(project.spec)
        for _ in range(2 if self._number % 3 == 1 else 1):  # a second finds nothing to do
            result = project.apply()
            if result.code:
                outcome.objections.append(f"the next apply: {result.code}: {result.err[-600:]}")
            outcome.objections += message_objections(result)
        if self._number % 3 == 1:
            outcome.require("nothing to do" in result.err, "a finished run was applied again")
        if sync:
            outcome.expect(project.run("sync"), [0])
        try:
            records = project.runs()
        except GlitchrunError as error:
            outcome.objections.append(f"the runs cannot be read: {error}")
            return
        finished = [record for record in records if record.status == "FINISHED"]
        outcome.require(len(finished) == runs, f"runs: {[record.status for record in records]}")
        for record in finished:
            outcome.objections += differences(wanted, facts_of(record))
        outcome.objections += store_objections(project, finished, runs)
        if not outcome.objections:
            shutil.rmtree(project.folder, ignore_errors=True)


def facts_of(record: RunRecord) -> Facts:
    """The facts of a run."""
    names = ("tokens.jsonl", "attempts.jsonl")
    files = {
        name: (record.artifacts / name).read_bytes()
        for name in names
        if (record.artifacts / name).exists()
    }
    facts = []
    for step in record.steps:
        for timed in step.batches:
            found = batch_to_json(timed.batch)["facts"]
            if step.strategy in _MEASURING:
                found = [
                    [fact["kind"], *map(str, list(fact["cells"].values())[:1])] for fact in found
                ]
            facts += [json.dumps(fact) for fact in found]
    metrics = {
        name: metric.value
        for name, metric in record.metrics.items()
        if name != "model/peak_bytes"
        and not name.endswith(("per_second", "_seconds"))
        and not any(
            step.id == name.partition("/")[0]
            for step in record.steps
            if step.strategy in _MEASURING
        )
    }
    return Facts(files, facts, metrics)


def differences(wanted: Facts, found: Facts) -> list[str]:
    """What a run found otherwise than it should."""
    said = []
    for name in sorted({*wanted.files, *found.files}):
        if wanted.files.get(name) != found.files.get(name):
            said.append(f"{name} differs from an undisturbed run's")
    if wanted.facts != found.facts:
        said.append(f"{len(found.facts)} facts, not the {len(wanted.facts)} of an undisturbed run")
    for name in sorted({*wanted.metrics, *found.metrics}):
        if wanted.metrics.get(name) != found.metrics.get(name):
            said.append(f"{name} is {found.metrics.get(name)}, not {wanted.metrics.get(name)}")
    return said


def store_objections(project: Project, finished: Sequence[RunRecord], runs: int) -> list[str]:
    """What is wrong in the MLflow database: runs missing or doubled, points counted twice."""
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store:
        states = [
            row[0]
            for row in store.execute("SELECT status FROM runs WHERE lifecycle_stage='active'")
        ]
        points = store.execute(
            "SELECT key, step, value, count(*) FROM metrics GROUP BY run_uuid, key, step, value, "
            "timestamp HAVING count(*) > 1"
        ).fetchall()
        logged = dict(
            store.execute("SELECT key, value FROM latest_metrics WHERE NOT is_nan").fetchall()
        )
    said = []
    if states.count("FINISHED") != runs or len(states) != runs:
        said.append(f"MLflow has runs {states}, not {runs} finished")
    if points:
        said.append(f"MLflow has points twice: {points[:3]}")
    for record in finished if runs == 1 else ():
        for name, metric in record.metrics.items():
            if metric.value is not None and abs(logged.get(name, 1e99) - metric.value) > 1e-6 * abs(
                metric.value
            ):
                said.append(f"MLflow has {name} as {logged.get(name)}, not {metric.value}")
    return said


@dataclass(frozen=True)
class Fault:
    """A fault: what is injected, how often, and the function that does it once."""

    group: str
    what: str
    inject: Callable[[Bench, Outcome, int], None]
    """Injects it once; the number counts the rounds from 0."""
    rounds: int = 1
    """In the full form."""


FAULTS: dict[str, Fault] = {}
"""All faults by name, in the order of the table."""


def fault(
    name: str, group: str, what: str, rounds: int = 1
) -> Callable[[Callable[[Bench, Outcome, int], None]], Callable[[Bench, Outcome, int], None]]:
    """Adds a function to `FAULTS`."""

    def add(
        inject: Callable[[Bench, Outcome, int], None],
    ) -> Callable[[Bench, Outcome, int], None]:
        FAULTS[name] = Fault(group, what, inject, rounds)
        return inject

    return add
