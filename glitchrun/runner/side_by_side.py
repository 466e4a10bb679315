"""Executes runs one after the other, or several at the same time, each in its share of the workers.

Side by side, each run has a thread here, which writes its ledger and its report, and a share of the
workers, which do the work. Figures and new MLflow runs are made one at a time (`Session.serial`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Lock

from glitchrun.errors import GlitchrunError
from glitchrun.plan.build import PlannedRun
from glitchrun.runner.engine import Engine, Outcome, Session
from glitchrun.runner.signals import Stopped

Result = Outcome | GlitchrunError | Stopped
"""How a run ended."""
Execute = Callable[[PlannedRun, Session], Outcome]
Continues = Callable[[PlannedRun, Result], bool]
"""Whether another run may begin after one that ended so."""
_POLL_SECONDS = 0.2


def in_turn(
    runs: Sequence[PlannedRun], session: Session, execute: Execute, continues: Continues
) -> list[tuple[PlannedRun, Result]]:
    """Executes the runs in order. Stops after a result that forbids others, or after a signal."""
    results: list[tuple[PlannedRun, Result]] = []
    for run in runs:
        if session.interrupt.exit_code is not None:  # it came while the last run was ending
            break
        results.append((run, _result(run, session, execute)))
        if not continues(*results[-1]):
            break
    return results


def side_by_side(
    runs: Sequence[PlannedRun],
    shares: Sequence[Engine],
    session: Session,
    execute: Execute,
    continues: Continues,
) -> list[tuple[PlannedRun, Result]]:
    """As `in_turn`, with a run in each of the `shares` at a time. Returns the results in the order
    of the runs. A run that has begun is finished even if another fails, except after a second
    signal. No thread uses the shares when this returns or raises.

    Raises:
        Stopped: a second signal came.
    """
    lanes = _Lanes(runs, session, execute, continues)
    pool = ThreadPoolExecutor(len(shares), thread_name_prefix="runs")
    try:
        waiting = {pool.submit(lanes.work, share) for share in shares}
        while waiting:  # with a limit, so that this thread can handle signals
            ended, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            for future in ended:
                future.result()
    finally:
        lanes.close()
        pool.shutdown(wait=True)
    return [(run, lanes.results[run.key]) for run in runs if run.key in lanes.results]


class _Lanes:
    """The runs that wait, and the results."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        session: Session,
        execute: Execute,
        continues: Continues,
    ) -> None:
        self.results: dict[str, Result] = {}
        """By the key of the run."""
        self._waiting = list(runs)
        self._executed: list[PlannedRun] = []
        self._session = session
        self._execute = execute
        self._continues = continues
        self._lock = Lock()

    def work(self, share: Engine) -> None:
        """Executes runs that wait, in one share of the workers."""
        while (run := self._next()) is not None:
            display = self._session.display.of_cell(run.cell.name)
            own = replace(self._session, engine=share, display=display)
            result = _result(run, own, self._execute)
            with self._lock:
                self._executed.remove(run)
                self.results[run.key] = result
                if not self._continues(run, result):
                    self._waiting.clear()

    def close(self) -> None:
        """Prevents other runs from beginning."""
        with self._lock:
            self._waiting.clear()

    def _next(self) -> PlannedRun | None:
        """The next run. One that shares a step with a run that is executed now would wait for it,
        so it comes after the others."""
        with self._lock:
            if self._session.interrupt.exit_code is not None or not self._waiting:
                return None
            busy = {step.key.key for run in self._executed for step in run.steps}
            free = (run for run in self._waiting if busy.isdisjoint(s.key.key for s in run.steps))
            run = next(free, self._waiting[0])
            self._waiting.remove(run)
            self._executed.append(run)
            return run


def _result(run: PlannedRun, session: Session, execute: Execute) -> Result:
    try:
        return execute(run, session)
    except (GlitchrunError, Stopped) as ended:
        return ended
