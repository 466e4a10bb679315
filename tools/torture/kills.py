"""`kill -9` at random moments, and before a change to each kind of file."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tools.torture.bench import STEPS, Bench, Outcome, Project, fault

_KILLED = -signal.SIGKILL
_FEWEST, _MOST = 4, 7
"""Kills before the run may finish."""


def _kill(bench: Bench, outcome: Outcome, project: Project, seconds: float) -> None:
    """Kills an apply at a random moment; one that was faster has ended with 0."""
    result = project.kill_after(seconds)
    outcome.expect(result, [_KILLED, 0])


def kill_some(bench: Bench, outcome: Outcome, spec: str, count: int) -> None:
    """Kills `count` applies of a spec at random moments, until they finish; then others."""
    project = bench.project(spec)
    _, seconds = bench.reference(spec)
    killed = 0
    while killed < count:
        _kill(bench, outcome, project, bench.rng.uniform(0, seconds))
        killed += outcome.codes[-1] == _KILLED
        if outcome.codes[-1] == 0:  # it was faster, and has finished
            bench.finish(project, outcome)
            project = bench.project(spec)
    bench.finish(project, outcome)


def _add(spec: str) -> None:
    @fault(f"kill-{spec}", "kill -9", f"at random moments of `{spec}`", rounds=3)
    def _(bench: Bench, outcome: Outcome, number: int) -> None:
        kill_some(bench, outcome, spec, bench.rng.randint(_FEWEST, _MOST))


for _name in STEPS:
    _add(_name)


@fault("kill-start", "kill -9", "in the first 50 ms, before there is a ledger", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("test")
    bench.reference("test")
    for _ in range(6):
        _kill(bench, outcome, project, bench.rng.uniform(0, 0.05))
    bench.finish(project, outcome)


def _kill_at(
    bench: Bench, outcome: Outcome, spec: str, part: str, most: int, **options: Any
) -> None:
    """Kills three applies, each before a change to a file with `part` in its path."""
    project = bench.project(spec)
    bench.reference(spec)
    for _ in range(3):
        at = {"kind": "kill_at_file", "part": part, "nth": bench.rng.randint(1, most)}
        outcome.expect(project.apply(at, **options), [_KILLED, 0])
    bench.finish(project, outcome)


@fault("kill-ledger", "kill -9", "while ledgers and locks are made", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _kill_at(bench, outcome, "validate", ("/runs/", "/steps/")[number % 2], 12)


@fault("kill-report", "kill -9", "while report and figures are written", rounds=5)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    part = ("artifacts/", "report.html", "tokens.jsonl", "plots", "attempts")[number % 5]
    _kill_at(bench, outcome, "validate", part, 8 if part == "artifacts/" else 3, figures=True)


@fault("kill-delivery", "kill -9", "while the run is delivered to MLflow", rounds=5)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    part = ("mlruns/artifacts", "delivered.json", "mlflow.db", ".lock", "")[number % 5]
    project = bench.project("validate")
    _, seconds = bench.reference("validate")
    for _ in range(3):
        if part:
            at = {"kind": "kill_at_file", "part": part, "nth": bench.rng.randint(1, 6)}
            outcome.expect(project.apply(at), [_KILLED, 0])
        else:  # the end of a run is its delivery
            _kill(bench, outcome, project, bench.rng.uniform(0.6 * seconds, seconds))
    bench.finish(project, outcome)


@fault("kill-sync", "kill -9", "while `sync` fills an empty store again", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    result = project.apply()
    for path in _store(project):
        path.unlink()
    for nth in (1, 3, 9):
        at = {"kind": "kill_at_file", "part": "mlruns", "nth": nth + number}
        outcome.expect(project.run("sync", faults=[at]), [_KILLED, 0])
    outcome.expect(project.run("sync"), [0])
    outcome.require(result.code == 0, "the run did not finish")
    bench.finish(project, outcome)


@fault("kill-creation", "kill -9", "while MLflow creates its database", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("test")
    bench.reference("test")
    for _ in range(2):
        result = project.kill_after(0.3 + bench.rng.uniform(0, 6), creates=True)
        outcome.expect(result, [_KILLED, 0])
    bench.finish(project, outcome)


def _store(project: Project) -> list[Path]:
    """The files of the MLflow database."""
    return [path for path in project.root.glob("mlflow.db*") if path.is_file()]
