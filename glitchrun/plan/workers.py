"""How many workers execute the runs of an experiment, where, and with what. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Spec

if TYPE_CHECKING:
    from glitchrun.plan.build import PlannedRun


@dataclass(frozen=True, slots=True)
class Staff:
    """The workers of an experiment."""

    engine: str
    address: str
    """`local`, `auto` or `ray://HOST:PORT`."""
    workers: int
    asked: int
    """The workers that the spec asks for, without those that would have no run. The memory of this
    machine may allow fewer."""
    cpus: int
    """Cores and threads of each worker."""
    gpus: float
    """GPUs of each worker."""
    side_by_side: int
    """Runs that are executed at the same time."""

    @property
    def share(self) -> int:
        """The most workers of a run while as many runs as possible are executed."""
        return -(-self.workers // self.side_by_side)

    def step_at_best(self, run: PlannedRun, step: str) -> float | None:
        """The likely seconds of a step divided by the workers that share it: a bound, because no
        division is perfect. None if the step's time is not known."""
        seconds = run.time.steps.get(step) if run.time else None
        is_shared = run.cell.spec.execution.shares_steps and step in shared_steps(run.cell.spec)
        return seconds if seconds is None or not is_shared else seconds / self.share

    def run_at_best(self, run: PlannedRun) -> float | None:
        """The likely seconds of a run, loading included, with the bound of each shared step. None
        if its likely time is not known."""
        if run.time is None or run.time.likely is None:
            return None
        steps = (self.step_at_best(run, step) for step in run.time.steps)
        return run.time.start + sum(seconds for seconds in steps if seconds is not None)

    def at_best(self, runs: Sequence[PlannedRun]) -> float | None:
        """A lower bound, in seconds, on the likely time of all runs together: no worker is ever
        idle, and no run is shorter than `run_at_best`."""
        times = [self.run_at_best(run) for run in runs]
        known = [seconds for seconds in times if seconds is not None]
        if not known or len(known) < len(times):
            return None
        return max(sum(known) / self.side_by_side, *known)

    @property
    def text(self) -> str:
        """The workers in one line, such as `2 on this machine, 1 core each`."""
        where = "this machine" if self.address == "local" else f"the cluster at {self.address}"
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        cores = "1 core" if self.cpus == 1 else f"{self.cpus} cores"
        return f"{self.workers} on {where}, {cores}{gpus} each"

    @property
    def reduced(self) -> str:
        """Why there are fewer workers than the spec asks for; empty if there are as many."""
        if self.workers == self.asked:
            return ""
        return f"{self.workers} instead of {self.asked}: more do not fit into this machine's memory"

    def to_json(self) -> dict[str, Any]:
        """The workers as data, see `Plan.to_json`."""
        return {
            "engine": self.engine,
            "address": self.address,
            "workers": self.workers,
            "asked": self.asked,
            "cpus_per_worker": self.cpus,
            "gpus_per_worker": self.gpus,
            "side_by_side": self.side_by_side,
        }


def staff_of(runs: Sequence[PlannedRun]) -> Staff | None:
    """The workers of the runs that are not finished; None if this process executes them.

    With the engine `local` each run has one worker, so there are at most as many as runs. One run
    needs none.
    """
    waiting = [run for run in runs if run.action in ("start", "resume")]
    if not waiting:
        return None
    execution = waiting[0].cell.spec.execution  # that of all cells
    if not execution.uses_ray:
        return None
    asked, gpus = execution.workers, execution.gpus_per_worker
    if execution.engine == "local":
        asked = min(asked, len(waiting))
        if asked == 1:
            return None
    needed = [run.estimate for run in waiting if run.estimate is not None]
    if gpus is None:
        on_gpu = any(estimate.device.startswith("cuda") for estimate in needed)
        gpus = 1.0 if execution.is_here and on_gpu else 0.0
    workers = asked
    if execution.is_here and not gpus:
        fit = [one.free_bytes // max(1, one.total_bytes) for one in needed if one.free_bytes]
        workers = max(1, min([workers, *fit]))
    return Staff(
        engine=execution.engine,
        address="local" if execution.is_here else execution.address,
        workers=workers,
        asked=asked,
        cpus=execution.cpus_per_worker or (_cores(workers) if execution.is_here else 1),
        gpus=gpus,
        side_by_side=min(workers, len(waiting)),
    )


def shared_steps(spec: Spec) -> list[str]:
    """The ids of the steps whose work several workers can share."""
    return [
        step.id
        for step in spec.steps
        if STRATEGIES[step.strategy].spreads(STRATEGIES[step.strategy].config_of(step))
    ]


def _cores(workers: int) -> int:
    """The cores of this machine for each of the workers, within OMP_NUM_THREADS."""
    each = max(1, len(os.sched_getaffinity(0)) // workers)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(each, int(limit)) if limit.isdigit() and int(limit) else each
