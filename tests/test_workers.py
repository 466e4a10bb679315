"""Steps in workers: they equal those of one process, whoever is lost."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from glitchrun import __version__, errors
from glitchrun.cli.plan import _plan_lines, rough_duration
from glitchrun.errors import (
    ExitCode,
    MissingExtra,
    ModelUnavailable,
    PreflightError,
    RunError,
)
from glitchrun.events import Batch, Event, Measured, Stage
from glitchrun.events_json import batch_to_json
from glitchrun.ledger.lock import hold
from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.plan.workers import Staff, staff_of
from glitchrun.runner import ray_pool
from glitchrun.runner.apply import side_by_side
from glitchrun.runner.engine import Executor, InThisProcess, Outcome, StepTask
from glitchrun.runner.models import Models
from glitchrun.runner.options import Options, make_plan
from glitchrun.runner.ray_executor import Member, RayExecutor, WorkerLost
from glitchrun.runner.ray_messages import Failed, NoMemory, mismatch
from glitchrun.runner.signals import Interrupt, Stopped
from glitchrun.search import Ordered, foreseen
from glitchrun.spec.experiment_loading import load_experiment

ROOT = Path(__file__).parents[1]

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
execution: {engine: ray, workers: 2}
"""
_EXECUTED = ("scan", "asr", "cascade", "test", "next")


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
    for name in _EXECUTED:
        list(steps.run(name))
    return steps


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def workers(planned: PlannedRun, said: list[str]) -> Iterator[Steps]:
    """The same run with two workers, both of which have loaded the model."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    staff = staff_of([planned])
    assert staff is not None
    assert staff.workers == 2
    handler = signal.getsignal(signal.SIGTERM)
    with ray_pool.RayEngine(replace(staff, cpus=1)) as engine:
        (share,) = engine.shares(said.append, Interrupt())
        executor = share.executor(planned, said.append, Interrupt())
        assert signal.getsignal(signal.SIGTERM) is handler  # Slurm and Kubernetes send it

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


def test_a_worker_with_other_contents_of_the_model_is_refused_by_name(
    planned: PlannedRun, workers: Steps
) -> None:
    members = workers.executor._members  # type: ignore[attr-defined]
    changed = replace(planned, fingerprint="another")
    with pytest.raises(PreflightError) as refused:
        RayExecutor(changed, members, _ignore, Interrupt())
    assert f"the worker on {socket.gethostname()} is refused" in str(refused.value)
    assert "copy them there" in str(refused.value)
    assert refused.value.exit_code == ExitCode.PREFLIGHT


def test_workers_find_what_one_process_finds_though_some_are_killed(
    alone: Steps, workers: Steps, said: list[str]
) -> None:
    executor: Any = workers.executor
    first, helper = executor._members
    workers.batches["scan"] = alone.batches["scan"]
    for name in _EXECUTED[1:]:
        list(workers.run(name))
    workers.watch.workers.clear()
    since = 0
    for event in workers.run("scan"):
        assert isinstance(event, Batch | Measured)
        if since:
            since += 1
        elif max(workers.watch.workers) == 2:  # the helper has work
            _kill(helper)
            since = 1
        else:  # on a busy machine the leader could end before the helper has answered
            time.sleep(0.5)
        if since == 4:
            _kill(first)
    assert since >= 4, "the scan ended before both could be killed"
    assert any(text.endswith("another one continues") for text in said)
    for name in _EXECUTED:
        assert workers.facts(name) == alone.facts(name), name
        assert _lasting(workers.metrics[name]) == _lasting(alone.metrics[name])
    stages = [stage for stage in alone.watch.stages if stage.name != "verification"]
    assert stages[0] in workers.watch.stages


def _lasting(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Measured)]


# Without workers ------------------------------------------------------------------------------


class Fake:
    """An engine whose workers never start a process, and are refused at the first attempt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, staff: Staff) -> None:
        self.hired: list[Member] = []
        self.ended: list[Member] = []
        self.engine = ray_pool.RayEngine(staff)
        monkeypatch.setattr(self.engine, "_connect", lambda: None)
        monkeypatch.setattr(self.engine, "_create_actors", self._create_actors)
        monkeypatch.setattr(self.engine, "_wait", self._wait)
        monkeypatch.setattr(ray_pool, "_end_actors", self.ended.extend)

    def _create_actors(self) -> list[Member]:
        self.hired = [Member(number) for number in range(4)]
        return self.hired

    def _wait(self, hired: Sequence[Member], say: Any, interrupt: Interrupt) -> None:
        interrupt.check()
        hired[1].host = "h1"
        hired[2].host = "h2"
        if not self.ended:
            raise PreflightError("the worker on h1 is refused")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, planned: PlannedRun) -> Fake:
    staff = staff_of([planned])
    assert staff is not None
    monkeypatch.setattr(ray_pool, "require", lambda name, extra: None)
    return Fake(monkeypatch, replace(staff, workers=4, side_by_side=3))


def test_refused_workers_end_and_the_next_run_is_refused_too(fake: Fake) -> None:
    for _ in range(2):
        with pytest.raises(PreflightError, match="h1 is refused"):
            fake.engine.members(_ignore, Interrupt())
    assert fake.ended == fake.hired


def test_workers_end_if_a_signal_comes_while_they_start(fake: Fake) -> None:
    stopped = Interrupt()
    stopped.receive(signal.SIGINT, None)
    with pytest.raises(Stopped):
        fake.engine.members(_ignore, stopped)
    assert fake.ended == fake.hired


def test_every_run_has_a_worker_that_has_started(fake: Fake) -> None:
    fake.ended.append(Member("an earlier one"))
    engine = fake.engine
    shares = engine.shares(_ignore, Interrupt())
    assert len(shares) == 2  # of three: two workers are there
    members = engine.members(_ignore, Interrupt())
    dealt = [[m.actor for m in engine.share(n, 2, members)] for n in range(2)]
    assert dealt == [[1, 0], [2, 3]]
    engine._staff = replace(engine._staff, engine="local")
    assert [m.actor for m in engine.share(1, 2, members)] == [2]


def test_folders_of_killed_commands_are_removed_and_others_stay(tmp_path: Path) -> None:
    names = ("killed", "running", "young")
    killed, running, young = (tmp_path / f"glitchrun-ray-{name}" for name in names)
    other = tmp_path / "ray"
    for folder in (killed, running, young, other):
        folder.mkdir()
        (folder / "log").touch()
    with hold(running):
        for folder in (killed, running, other):
            os.utime(folder, (0, 0))
        ray_pool.remove_left_over(tmp_path)
    assert not killed.exists()
    assert all((folder / "log").exists() for folder in (running, young, other))


class Lost(RayExecutor):
    """An executor whose leader is lost after each of its events, or as often as it is asked."""

    def __init__(self, events: Sequence[Measured]) -> None:
        self._losses, self._left = 0, [*events]
        self._interrupt, self._say = Interrupt(), _ignore
        self._leader = Member(None, "h1")

    def _choose(self) -> None:
        """Another one leads."""

    def _prepare(self) -> None:
        """It has the model."""

    def _events(self, task: Any, watch: Any) -> Iterator[Event]:
        if self._left:
            yield self._left.pop(0)
        raise WorkerLost


def test_five_leaders_lost_without_a_fact_end_the_run_and_no_metric_comes_twice() -> None:
    first, second = Measured("rate", 0.5), Measured("rate", 0.25)
    found: list[Event] = []
    executor: Any = Lost([first, first, second])
    with pytest.raises(RunError, match="5 workers ended one after the other, the last on h1"):
        found.extend(executor.events(None, None))
    assert found == [first, second]


def test_only_the_item_that_a_lost_helper_worked_on_counts_as_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = pytest.importorskip("glitchrun.runner.ray_worker")
    answers: dict[str, Any] = {"a": worker.RayError(), "b": worker.RayError(), "c": "done"}

    def get(reference: str) -> Any:
        if isinstance(answers[reference], Exception):
            raise answers[reference]
        return answers[reference]

    def wait(references: Sequence[str], **options: Any) -> Any:
        return references, []

    monkeypatch.setattr(worker, "ray", SimpleNamespace(wait=wait, get=get))
    told: list[Any] = []
    spread = worker.Spread([], None, {}, told.append)
    lost, other = worker._Helper(None, "h1", helps=True), worker._Helper(None, "h2", helps=True)
    calls = worker._Calls(spread, None)
    calls._running = {"a": (lost, 3, "x"), "b": (lost, 4, "y"), "c": (other, 5, "z")}
    calls.collect(0)
    assert (calls.done, [*calls.waiting]) == ({5: "done"}, [(3, "x"), (4, "y")])
    assert calls._losses == {3: 1}
    assert [text for kind, text in told if kind == "said"] == [
        "lost the worker on h1; its share is done again"
    ]
    # One without memory is left out, and its items are done by others.
    answers["d"] = Failed.of(NoMemory())
    calls._running = {"d": (other, 6, "w")}
    calls.collect(0)
    assert (other.refused, other.helps, calls._losses) == (True, False, {3: 1})
    assert "worker on h2 is left out: memory ran out" in told[-2][1]
    assert calls.waiting[-1] == (6, "w")


def test_a_worker_says_that_its_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("glitchrun.runner.ray_worker")
    worker = module.Worker({})

    def check() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr(worker, "_check", check)
    failed = worker.call("check", b"", ())
    assert failed.kind == "NoMemory"
    assert "smaller batch_size" in str(failed.error("worker on h2: "))


def test_another_version_is_named_with_its_remedy() -> None:
    here = {"glitchrun": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
    assert mismatch(here, {**here, "torch": "2.13.0+cu128"}) == ""
    assert mismatch(here, {**here, "torch": "2.12.0"}) == (
        "it has torch 2.12.0, not 2.13.0; run there: pip install 'torch==2.13.0'"
    )
    assert mismatch(here, {**here, "glitchrun": ""}).startswith("it has no glitchrun, not 0.1.0")


def test_an_error_of_a_worker_keeps_its_kind_and_gets_its_host() -> None:
    failed = Failed.of(ModelUnavailable("model.path: no such file"))
    error = pickle.loads(pickle.dumps(failed)).error("worker on h2: ")
    assert isinstance(error, ModelUnavailable)
    assert str(error) == "worker on h2: model.path: no such file"
    assert type(Failed.of(MissingExtra("peft")).error()) is PreflightError


def test_without_ray_the_message_says_how_to_install_it(
    planned: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    staff = staff_of([planned])
    assert staff is not None
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(PreflightError, match=r"pip install 'glitchrun\[ray\]'"):
        ray_pool.RayEngine(staff)


def test_a_plan_names_the_workers_and_what_they_share(planned: PlannedRun) -> None:
    assert planned.to_json()["shared"] == ["scan", "asr", "cascade", "order", "test", "next"]
    (staff,) = [staff_of([planned])]
    assert staff is not None
    assert staff.to_json() == {
        "engine": "ray",
        "address": "local",
        "workers": 2,
        "asked": 2,
        "cpus_per_worker": staff.cpus,
        "gpus_per_worker": 0.0,
        "side_by_side": 1,
    }
    plan = Plan("shared", (planned,))
    assert planned.time is not None
    assert planned.time.likely is not None
    assert staff.share == 2
    assert replace(staff, workers=5, side_by_side=2).share == 3  # and 2 for the other run
    shared = sum(planned.time.steps[step] for step in planned.to_json()["shared"])
    best = plan.to_json()["runs"][0]["at_best"]
    assert best == pytest.approx(planned.time.likely - shared / 2)
    assert staff.at_best([planned]) == best
    assert replace(staff, workers=5, side_by_side=5).at_best([planned] * 5) == pytest.approx(
        planned.time.likely
    )
    text = "\n".join(_plan_lines(plan))
    assert f"shared by 2 workers: {rough_duration(staff.step_at_best(planned, 'asr') or 0)}" in text
    assert f"with 2 workers {rough_duration(best)} at best" in text
    assert "in one worker" in text
    together = "\n".join(_plan_lines(Plan("two", (planned, planned))))
    assert re.search(r"all runs together: likely .* in one worker, .* at best in 2", together)
    assert planned.estimate is not None
    tight = replace(planned.estimate, free_bytes=planned.estimate.total_bytes + 1)
    less = staff_of([replace(planned, estimate=tight)] * 4)
    assert less is not None
    assert (less.workers, less.side_by_side) == (1, 1)
    assert less.reduced == "1 instead of 2: more do not fit into this machine's memory"


def test_the_engine_local_has_no_more_workers_than_runs(planned: PlannedRun) -> None:
    spec = planned.cell.spec
    local = replace(spec, execution=replace(spec.execution, engine="local", workers=4))
    run = replace(planned, cell=replace(planned.cell, spec=local))
    assert staff_of([run]) is None
    staff = staff_of([run, run])
    assert staff is not None
    assert (staff.workers, staff.side_by_side, staff.reduced) == (2, 2, "")


def test_execution_changes_no_key(tmp_path: Path, llama_folder: Path, planned: PlannedRun) -> None:
    text = SPEC.replace("MODEL", str(llama_folder)).replace("engine: ray, workers: 2", "workers: 1")
    (tmp_path / "spec.yaml").write_text(text)
    experiment = load_experiment(tmp_path / "spec.yaml", ())
    plan = make_plan(experiment, tmp_path / "mlruns", Options())
    assert plan.staff is None
    assert plan.runs[0].key == planned.key
    assert plan.runs[0].keys == planned.keys


def test_rounds_of_an_order_are_foreseen_and_those_of_a_walk_are_not() -> None:
    order = Ordered(range(10))
    first = order.propose(4)
    rounds = foreseen(order, first, 4, 9)
    order.update([])  # what happens meanwhile does not matter
    assert list(rounds) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]

    class Walk:
        """Proposes what depends on verdicts."""

        def __init__(self) -> None:
            self.counters: Counter[str] = Counter()

        def propose(self, n: int) -> list[int]:
            return [1]

        def update(self, verdicts: Sequence[Any]) -> None:
            """Takes them."""

    assert list(foreseen(Walk(), [1], 4, 9)) == [[1]]


def test_runs_side_by_side_end_in_order_and_a_failure_stops_those_that_wait(
    planned: PlannedRun,
) -> None:
    runs = [replace(planned, key=f"{number}", steps=()) for number in range(5)]
    together = Barrier(2, timeout=10)

    def execute(run: PlannedRun, session: Any) -> Any:
        if run.key in "01":
            together.wait()  # both are executed at the same time
        if run.key == "2":
            raise RunError("no")
        return Outcome(run.key, ExitCode.DONE)  # type: ignore[arg-type]

    @dataclass
    class State:
        display: Any
        interrupt: Any
        engine: Any = None

    class Shown:
        """A display."""

        def of_cell(self, name: str) -> Any:
            return self

    state: Any = State(Shown(), Interrupt())
    shares: Any = ["first", "second"]
    found = side_by_side(runs[:2], shares, state, execute, lambda run, result: True)
    assert [result.record for _, result in found] == ["0", "1"]  # type: ignore[union-attr]
    found = side_by_side(
        runs[2:], shares[:1], state, execute, lambda run, result: not isinstance(result, RunError)
    )
    assert [(run.key, type(result)) for run, result in found] == [("2", RunError)]
    # A defect in one thread: the other's run is finished before it goes on to the caller.
    ended = []

    def defect(run: PlannedRun, session: Any) -> Any:
        together.wait()
        if run.key == "0":
            raise ZeroDivisionError
        time.sleep(0.05)
        ended.append(run.key)
        return Outcome(run.key, ExitCode.DONE)  # type: ignore[arg-type]

    with pytest.raises(ZeroDivisionError):
        side_by_side(runs, shares, state, defect, lambda run, result: True)
    assert ended == ["1"]
    # A run that shares a step with one that is executed now comes after the others.
    shared = [replace(runs[0], steps=planned.steps), replace(runs[2], steps=planned.steps), runs[1]]
    order = []

    def noted(run: PlannedRun, session: Any) -> Any:
        order.append(run.key)
        if run.key in "01":
            together.wait()  # 2 shares a step with 0, so 1 is executed beside it
        return Outcome(run.key, ExitCode.DONE)  # type: ignore[arg-type]

    found = side_by_side(shared, shares, state, noted, lambda run, result: True)
    assert [run.key for run, _ in found] == ["0", "2", "1"]
    assert order[2:] == ["2"]


# The files in deploy/ -------------------------------------------------------------------------

# The fields of KubeRay's ray.io/v1 (ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go).
_JOB = {*["activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate"]}
_JOB |= {
    *["metadata", "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "suspend"]
}
_JOB |= {*["entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"]}
_JOB |= {*["entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished"]}
_JOB |= {*["shutdownAfterJobFinishes"]}
_CLUSTER = {*["headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"]}
_CLUSTER |= {*["autoscalerOptions", "headServiceAnnotations", "suspend", "authOptions"]}
_HEAD = {*["serviceType", "headService", "enableIngress", "rayStartParams", "template"]}
_GROUP = {*["groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams"]}
_GROUP |= {*["template", "scaleStrategy"]}


def test_the_ray_job_has_the_fields_of_kuberay_and_the_versions_of_this_project() -> None:
    job = yaml.safe_load((ROOT / "deploy/kuberay/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for found, known in ((spec, _JOB), (cluster, _CLUSTER), (head, _HEAD), (group, _GROUP)):
        assert set(found) <= known
    assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group)
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text()
    assert cluster["authOptions"] == {"mode": "token"}  # KubeRay 1.5.1: disabled or token
    images = set()
    for one in (head, group):
        assert all(isinstance(value, str) for value in one["rayStartParams"].values())
        pod = one["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }
    assert images == {f"REGISTRY/glitchrun:{__version__}"}
    assert "RAY_USAGE_STATS_ENABLED" in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]


def test_the_slurm_script_is_one_that_bash_accepts() -> None:
    script = ROOT / "deploy/slurm/glitchrun.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    lines = script.read_text().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first = next(number for number, line in enumerate(lines) if line and line[0] != "#")
    assert max(directives) < first  # Slurm reads none after the first command
    without = subprocess.run(["bash", str(script)], check=False, capture_output=True, text=True)
    assert without.returncode != 0
    assert "usage: sbatch" in without.stderr
