"""Disks, permissions, memory, the clock, signals, terminals, pipes and two processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.torture.bench import (
    PATIENCE,
    Bench,
    Outcome,
    Project,
    Result,
    facts_of,
    fault,
    store_objections,
)

_NO_MOUNT = "a tmpfs cannot be mounted by this user; see `disk-limit`"


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Callable[[str], None] | None]:
    """A file system of `size` bytes in a folder. Gives a function that mounts it again with other
    options, or None where this user cannot mount."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield None
        return

    def again(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)

    try:
        yield again
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _disk(bench: Bench, outcome: Outcome, place: str, size: int, spec: str = "validate") -> None:
    project = bench.project(spec)
    bench.reference(spec)
    with _small_disk(project.folder / place, size) as again:
        if again is None:
            outcome.skipped = _NO_MOUNT
            return
        outcome.expect(
            project.apply(), [0, 1, 4], "make room|No space left|disk|^$" * (size < 9999)
        )
        again("size=64m")
        bench.finish(project, outcome)


@fault("disk-ledger", "disk full", "where the ledgers of steps are", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _disk(bench, outcome, "mlruns/steps", 4096 * (1 + bench.rng.randrange(12)))


@fault("disk-run", "disk full", "where the run's ledger and its artifacts are", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _disk(bench, outcome, "mlruns/runs", 4096 * (1 + bench.rng.randrange(60)))


@fault("disk-artifacts", "disk full", "where MLflow's artifacts are", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _disk(bench, outcome, "mlruns/artifacts", 4096 * (1 + bench.rng.randrange(40)))


@fault("disk-database", "disk full", "where the MLflow database and all else is", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _disk(bench, outcome, "mlruns", 4096 * (20 + bench.rng.randrange(500)))


@fault("disk-limit", "disk full", "for files above a random size (RLIMIT_FSIZE)", rounds=4)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    _, seconds = bench.reference("validate")
    outcome.expect(project.kill_after(bench.rng.uniform(0.3, 0.9) * seconds), [-9, 0])
    size = int(2 ** bench.rng.uniform(8, 21))
    limit = {"kind": "limit", "name": "FSIZE", "size": size}
    outcome.expect(project.apply(limit), [0, 1, 4])
    bench.finish(project, outcome)


@fault("disk-read-only", "file system read-only", "in the middle of a run", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    _, seconds = bench.reference("mine")
    with _small_disk(project.root, 64 << 20) as again:
        if again is None:
            outcome.skipped = _NO_MOUNT
            return
        process = project.start("apply", "spec.yaml")
        time.sleep(bench.rng.uniform(0.3, 0.9) * seconds)
        with suppress(subprocess.CalledProcessError):  # busy: a file is open for writing
            again("ro")
        out, err = process.communicate(timeout=PATIENCE)
        outcome.expect(Result(process.returncode or 0, out, err, 0), [0, 1, 4])
        outcome.expect(project.apply(), [0, 4])
        again("rw")
        bench.finish(project, outcome)


_PLACES = ("mlruns", "mlruns/steps", "mlruns/runs", "mlruns/artifacts", "mlruns/mlflow.db", ".")


@fault("permissions", "folder or file read-only", f"one of {', '.join(_PLACES)}", rounds=6)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    _, seconds = bench.reference("validate")
    outcome.expect(project.kill_after(0.7 * seconds), [-9, 0])
    place = project.folder / _PLACES[number % len(_PLACES)]
    if not place.exists():
        place.mkdir()
    tree = [place, *(path for path in place.rglob("*") if not path.is_symlink())]
    modes = [(path, path.stat().st_mode) for path in tree if "model" not in path.parts]
    for path, mode in modes:
        path.chmod(mode & ~0o222)
    result = project.apply({"kind": "unprivileged"})
    may_pass = place.name == "artifacts" or "nothing to do" in result.err
    codes = [0, 1, 4] if may_pass else [1, 4]
    outcome.expect(result, codes, "" if result.code == 0 else "permission|writ|read-?only|denied")
    for path, mode in modes:
        path.chmod(mode)
    bench.finish(project, outcome)


def _memory_runs_out(bench: Bench, outcome: Outcome, number: int, where: str) -> None:
    """Memory runs out while the model is loaded, and in every second round in a step. There the
    batches are halved if the error is the device's, and else the run fails."""
    project = bench.project("scan")
    bench.reference("scan")
    in_steps = bool(number % 2)
    nth = int(2 ** bench.rng.uniform(1, 7 if in_steps else 12))
    fault = {"kind": "out_of_memory", "nth": nth, "where": where, "in_steps": in_steps}
    in_a_step = [0] if where == "model" else [1]
    outcome.expect(project.apply(fault), in_a_step if in_steps else [0, 1, 4])
    if in_steps and where == "model":
        counted = [path.read_bytes() for path in project.ledgers()]
        outcome.require(any(b"batch_halvings" in one for one in counted), "no batch was halved")
    bench.finish(project, outcome)


@fault("memory-model", "out of memory", "in a random operation (torch.OutOfMemoryError)", rounds=4)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _memory_runs_out(bench, outcome, number, "model")


@fault("memory-host", "out of memory", "in a random operation (MemoryError)", rounds=4)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _memory_runs_out(bench, outcome, number, "host")


@fault("memory-limit", "out of memory", "beyond a random size (RLIMIT_AS, RLIMIT_DATA)", rounds=4)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    bench.reference("mine")
    size = int(2 ** bench.rng.uniform(19, 26))
    limit = {"kind": "limit", "name": ("AS", "DATA")[number % 2], "size": size}
    # A library in C++ or Rust may end the process, which leaves no more behind than `kill -9`.
    outcome.expect(project.apply(limit), [0, 1, 4, -signal.SIGABRT, -signal.SIGSEGV])
    bench.finish(project, outcome)


@fault("clock", "clock set", "back by an hour or a year, to 1970 or to 2100, in a run", rounds=4)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    _, seconds = bench.reference("mine")
    hour = 3600.0
    move = (-hour, -8760 * hour, 100 - time.time(), 4102444800 - time.time())[number % 4]
    outcome.expect(
        project.kill_after(0.8 * seconds, faults=[{"kind": "clock", "seconds": move, "after": 40}]),
        [-9, 0],
    )
    outcome.expect(project.apply({"kind": "clock", "seconds": move, "after": 0}), [0])
    bench.finish(project, outcome)


def _signals(bench: Bench, outcome: Outcome, number: int, code: int) -> None:
    project = bench.project("mine")
    _, seconds = bench.reference("mine")
    process = project.start("apply", "spec.yaml")
    while process.poll() is None and not _measures(project):
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    outcome.expect(Result(process.returncode or 0, out, err, 0), [code, 0])
    result = project.kill_after(bench.rng.uniform(0, 1) * seconds, number)
    # Before the run begins, the signal ends the command; a shell shows 128 + its number.
    outcome.expect(result, [code, 0, -number])
    bench.finish(project, outcome)


def _measures(project: Project) -> bool:
    """Whether a step has a fact in its ledger, after the line that names the step."""
    return any(path.read_bytes().count(b"\n") > 1 for path in project.ledgers())


@fault("sigint", "signal", "SIGINT", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _signals(bench, outcome, signal.SIGINT, 130)


@fault("sigterm", "signal", "SIGTERM", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _signals(bench, outcome, signal.SIGTERM, 143)


@fault("sighup", "signal", "SIGHUP", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    _signals(bench, outcome, signal.SIGHUP, 143)


@fault("terminal", "terminal closed", "in the middle of a run", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    _, seconds = bench.reference("mine")
    ours, theirs = os.openpty()
    process = project.start(
        "apply",
        "spec.yaml",
        faults=[{"kind": "terminal"}],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    ends = time.monotonic() + bench.rng.uniform(0.5, 1) * seconds
    while time.monotonic() < ends and process.poll() is None:
        time.sleep(0.02)
    os.close(ours)
    outcome.expect(Result(process.wait(PATIENCE), "", "", 0), [143, 0, -signal.SIGHUP])
    bench.finish(project, outcome)


@fault("pipe", "reader gone", "of standard output and standard error")
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    bench.reference("mine")
    reading, writing = os.pipe()
    process = project.start("apply", "spec.yaml", stdout=writing, stderr=writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    outcome.expect(Result(process.wait(PATIENCE), "", "", 0), [0])
    bench.finish(project, outcome)


@fault("descriptors", "no file handles", "beyond a random number (RLIMIT_NOFILE)", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    bench.reference("validate")
    limit = {"kind": "limit", "name": "NOFILE", "size": bench.rng.randint(3, 10)}
    outcome.expect(project.apply(limit), [0, 1, 3, 4])
    bench.finish(project, outcome)


def _changed_while_writing(
    bench: Bench, outcome: Outcome, change: Callable[[Project], object]
) -> Project:
    """The project of a run during which `change` was called, once the run had stored a fact."""
    project = bench.project("mine")
    bench.reference("mine")
    process = project.start("apply", "spec.yaml")
    while process.poll() is None and not _measures(project):
        time.sleep(0.005)
    change(project)
    out, err = process.communicate(timeout=PATIENCE)
    outcome.expect(Result(process.returncode or 0, out, err, 0), [0, 1, 4])
    return project


@fault("moved", "folder", "moved while a run writes into it", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    def move(project: Project) -> None:
        project.folder = project.folder.rename(project.folder.with_name(f"{project.folder.name}-b"))

    bench.finish(_changed_while_writing(bench, outcome, move), outcome)


_REMOVED = ("runs", "steps", "")


@fault("removed", "folder", "removed while a run writes into it: runs, steps, all", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    def remove(project: Project) -> None:
        shutil.rmtree(project.root / _REMOVED[number % len(_REMOVED)], ignore_errors=True)

    project = _changed_while_writing(bench, outcome, remove)
    shutil.rmtree(project.root / "artifacts", ignore_errors=True)
    for path in project.root.glob("mlflow.db*"):  # it has a run whose ledger is gone
        path.unlink()
    bench.finish(project, outcome, sync=True)


@fault("two-processes", "two processes", "apply the same spec in one store", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    bench.reference("mine")
    results = _together(project, ["spec.yaml", "spec.yaml"])
    for result in results:
        outcome.expect(result, [0, 4], "" if result.code == 0 else "another process")
    outcome.require(0 in [result.code for result in results], "none of them finished")
    bench.finish(project, outcome)


@fault("shared-steps", "three processes", "apply specs that share two steps", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    wanted, _ = bench.reference("mine")
    text = (project.folder / "spec.yaml").read_text(encoding="utf-8")
    names = ["spec.yaml"]
    for name in ("second", "third"):
        names.append(f"{name}.yaml")
        more = f"  - {{id: more, strategy: test, tokens: {{ids: [{300 + len(names)}]}}}}\n"
        changed = text.replace("name: torture", f"name: {name}") + more
        (project.folder / names[-1]).write_text(changed, encoding="utf-8")
    for result in _together(project, names):
        outcome.expect(result, [0])
    for run in project.runs():
        facts = facts_of(run).facts
        outcome.require(run.status == "FINISHED", f"{run.identity.name} is {run.status}")
        outcome.require(facts[: len(wanted.facts)] == wanted.facts, "facts differ")
    outcome.require(len(project.ledgers()) == 4, f"{len(project.ledgers())} ledgers, not 4")
    outcome.objections += store_objections(project, (), 3)


def _together(project: Project, specs: list[str]) -> list[Result]:
    processes = [project.start("apply", spec) for spec in specs]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE)
        results.append(Result(process.returncode or 0, out, err, 0))
    return results


@fault("defect", "defect", "a step that raises a ZeroDivisionError", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    bench.reference("mine")
    result = project.apply({"kind": "raising_step", "nth": bench.rng.randint(1, 10)})
    outcome.expect(result, [1], "ZeroDivisionError: a defect of a strategy", defect=True)
    (run,) = project.runs()
    outcome.require(run.status == "FAILED", f"the run is {run.status}, not FAILED")
    bench.finish(project, outcome)
