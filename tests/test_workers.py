"""Steps in workers: they equal those of one process, whoever is lost."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from glitchrun.events import Batch, Event, Measured, Stage
from glitchrun.events_json import batch_to_json
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.workers import staff_of
from glitchrun.runner import ray_pool
from glitchrun.runner.engine import Executor, InThisProcess, StepTask
from glitchrun.runner.models import Models
from glitchrun.runner.options import Options, make_plan
from glitchrun.runner.signals import Interrupt
from glitchrun.spec.experiment_loading import load_experiment

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: tiny}
model: {path: MODEL}
seed: 3
tokens: {categories: [normal, byte, special, undecodable, unused, unreachable]}
steps:
  - {id: scan, strategy: scan, batch_size: 16, probes: strict, controls: 4}
  - {id: asr, strategy: validate, tokens: {from: scan}, attempts: 2, max_new_tokens: 3}
  - {id: cascade, strategy: mine, search: cascade, controls: 8}
  - {id: order, strategy: mine, search: low-norm, budget: 100, batch_size: 8}
  - {id: walk, strategy: mine, search: gradient, budget: 16}
  - {id: test, strategy: test, tokens: {ids: [300, 20, 310, 30]}, probes: strict, sequential: true}
  - id: next
    strategy: predict
    prompts: [{text: hello, expected: w}, {text: abc}, {text: good}]
execution: {engine: ray, workers: 3}
"""


class Watch:
    """Keeps what a step shows."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.workers: list[int] = []

    def begin(self, stage: Stage) -> None:
        self.stages.append(stage)

    def staff(self, workers: int) -> None:
        self.workers.append(workers)


class Steps:
    """Executes the steps of a run one after the other, without a ledger."""

    def __init__(self, planned: PlannedRun, executor: Executor) -> None:
        self.spec = planned.cell.spec
        self.executor = executor
        self.batches: dict[str, list[Batch]] = {}
        self.metrics: dict[str, list[Event]] = {}
        self.watch = Watch()

    def run(self, name: str) -> Iterator[Event]:
        """Yields the events of a step, each when it is stored."""
        step = next(step for step in self.spec.steps if step.id == name)
        own = self.batches[name] = []
        self.metrics[name] = []
        task = StepTask(step, "", dict(self.batches), {}, lambda: list(own))
        for event in self.executor.events(task, self.watch):
            (own if isinstance(event, Batch) else self.metrics[name]).append(event)  # type: ignore[arg-type]
            yield event

    def facts(self, name: str) -> list[dict[str, Any]]:
        """The facts of a step as a ledger stores them, digit for digit."""
        return [fact for batch in self.batches[name] for fact in batch_to_json(batch)["facts"]]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> PlannedRun:
    folder = tmp_path_factory.mktemp("workers")
    (folder / "spec.yaml").write_text(SPEC.replace("MODEL", str(llama_folder)))
    experiment = load_experiment(folder / "spec.yaml", ())
    (run,) = make_plan(experiment, folder / "mlruns", Options()).runs
    return run


@pytest.fixture(scope="module")
def alone(planned: PlannedRun) -> Steps:
    """All steps in this process."""
    executor = InThisProcess(Models(lambda text: None)).executor(planned, _ignore, Interrupt())
    steps = Steps(planned, executor)
    for step in planned.cell.spec.steps:
        list(steps.run(step.id))
    return steps


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def workers(planned: PlannedRun, said: list[str]) -> Iterator[Steps]:
    """The same run with three workers, all of which have loaded the model."""
    staff = staff_of([planned])
    assert staff is not None
    assert staff.workers == 3
    with ray_pool.RayEngine(replace(staff, cpus=1)) as engine:
        executor = engine.share(0, 1).executor(planned, said.append, Interrupt())
        import ray  # it reads its settings when it is imported

        addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
        assert addresses == {"127.0.0.1"}
        payload = pickle.dumps((executor._run,))
        ray.get([m.actor.call.remote("prepare", payload) for m in executor._members])
        yield Steps(planned, executor)


def _ignore(text: str) -> None:
    """Says nothing."""


def _kill(member: Any) -> None:
    """Kills the process of a worker at once."""
    import ray

    os.kill(ray.get(member.actor.process.remote()), signal.SIGKILL)


def test_workers_find_what_one_process_finds_though_some_are_killed(
    alone: Steps, workers: Steps, said: list[str]
) -> None:
    executor: Any = workers.executor
    first, helper, _ = executor._members
    for number, event in enumerate(workers.run("scan")):
        assert isinstance(event, Batch | Measured)
        if number == 1:
            _kill(helper)
        if number == 4:
            _kill(first)
    assert executor._leader is not first
    assert any(text.startswith("lost the worker on") for text in said)
    for step in workers.spec.steps[1:]:
        list(workers.run(step.id))
    for step in workers.spec.steps:
        assert workers.facts(step.id) == alone.facts(step.id), step.id
        assert _lasting(workers.metrics[step.id]) == _lasting(alone.metrics[step.id])
    assert max(workers.watch.workers) > 1
    stages = [stage for stage in alone.watch.stages if stage.name != "verification"]
    assert stages[0] in workers.watch.stages


def _lasting(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Measured)]
