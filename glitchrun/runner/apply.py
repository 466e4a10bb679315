"""Applies an experiment: plans it, checks what it needs, and executes its runs one after the other,
or several at the same time, each in its share of the workers.

Side by side, each run has a thread here, which writes its ledger and its report, and a share of the
workers, which do the work. Figures and new MLflow runs are made one at a time (`Session.serial`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from glitchrun.errors import (
    DoesNotFit,
    ExitCode,
    GlitchrunError,
    Interrupted,
    RunError,
    UsageError,
    file_access,
)
from glitchrun.ledger import RunRecord, current_attempt, mark_killed, read_run, unreadable_lines
from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.plan.workers import staff_of
from glitchrun.report import lacks_report, write_report
from glitchrun.runner import gates, study
from glitchrun.runner.engine import Engine, InThisProcess, Outcome, Session
from glitchrun.runner.execute import execute
from glitchrun.runner.models import Models
from glitchrun.runner.options import Options, adjusted, limited_name, make_plan
from glitchrun.runner.progress import Display
from glitchrun.runner.signals import Interrupt, Stopped, listening
from glitchrun.spec.types import Experiment
from glitchrun.tracking.address import tracking_uri
from glitchrun.tracking.store import ensure_store
from glitchrun.tracking.sync import close_dead_runs, sync


@dataclass(frozen=True)
class Applied:
    """How an experiment ended."""

    outcomes: tuple[Outcome, ...]
    failures: tuple[str, ...]
    """Messages of the runs that failed; at most one without `keep_going`."""
    exit_code: ExitCode
    study: Path | None = None
    """The folder of the study's report, for a matrix."""


def apply(
    experiment: Experiment,
    root: Path,
    options: Options,
    display: Display,
    confirm: Callable[[Plan], None] = lambda plan: None,
) -> Applied:
    """Starts, resumes or skips the runs of an experiment, as its plan says.

    Args:
        experiment: The experiment.
        root: Tracking root, with the ledgers and the default store.
        options: Options of the command line.
        display: Shows messages and progress.
        confirm: Receives the plan before anything starts; may raise to cancel.

    Raises:
        GlitchrunError: nothing was started, because a check failed.
        Interrupted: a signal came between two runs.
    """
    experiment, notes = adjusted(experiment, options)
    for note in notes:
        display.say(note)
    plan = gates.with_baselines(make_plan(experiment, root, options), root)
    chosen = _chosen(plan, options)
    _check_fits(chosen)
    uri = tracking_uri(experiment.cells[0].spec.tracking.uri, root)
    ensure_store(uri, root)
    unreadable: list[GlitchrunError] = []
    for failure in close_dead_runs(mark_killed(root, unreadable.append), root):
        display.say(f"not delivered to MLflow: {failure}")
    for line in unreadable_lines(unreadable):
        display.say(line)
    confirm(plan)
    interrupt = Interrupt()
    session = Session(
        experiment=experiment,
        root=root,
        tracking_uri=uri,
        parent=study.key_of(plan, root),
        engine=InThisProcess(Models(display.say, display.activity)),
        display=display,
        interrupt=interrupt,
        fresh=options.fresh,
        redo=options.redo,
    )
    with listening(interrupt):
        try:
            study.begin(plan, chosen, session)
            applied = _with_engine(chosen, session, options)
            stopped = applied.exit_code in (ExitCode.SIGINT, ExitCode.SIGTERM)
            if stopped or not applied.outcomes:
                return applied
            return replace(applied, study=study.write(plan, session))
        except Stopped as stopped:  # between two runs
            raise Interrupted(stopped.exit_code) from None


def _with_engine(chosen: Sequence[PlannedRun], session: Session, options: Options) -> Applied:
    staff = staff_of(chosen)
    if staff is None:
        return _execute_all(chosen, session, options)
    from glitchrun.runner.ray_pool import RayEngine

    with RayEngine(staff) as engine:
        shares = engine.shares(session.display.say, session.interrupt)
        return _execute_all(chosen, session, options, shares)


def _chosen(plan: Plan, options: Options) -> list[PlannedRun]:
    if options.only is None:
        return list(plan.runs)
    wanted = options.cell
    if options.limit is not None:
        wanted = limited_name(wanted or "", options.limit)
    chosen = [run for run in plan.runs if run.cell.name == wanted]
    if not chosen:
        names = ", ".join(repr(run.cell.name) for run in plan.runs)
        raise UsageError(f"--only {options.only!r} names no run of this spec; it has: {names}")
    return chosen


def _check_fits(runs: Sequence[PlannedRun]) -> None:
    for run in runs:
        if run.action == "blocked":
            raise DoesNotFit(f"{run.cell.name}: {run.reason}")


def _execute_all(
    runs: Sequence[PlannedRun], session: Session, options: Options, shares: Sequence[Engine] = ()
) -> Applied:
    """Executes the runs one after the other, or side by side in the `shares` of the workers."""

    def continues(run: PlannedRun, result: Result) -> bool:
        if isinstance(result, GlitchrunError):
            if options.keep_going:
                session.display.say(f"{run.cell.name}: {result}")
            return options.keep_going
        return isinstance(result, Outcome) and result.record.status != "KILLED"

    if len(shares) > 1:
        results = side_by_side(runs, shares, session, _execute_one, continues)
    else:
        alone = replace(session, engine=shares[0]) if shares else session
        results = in_turn(runs, alone, _execute_one, continues)
    outcomes = tuple(found for _, found in results if isinstance(found, Outcome))
    failures = [f"{run.cell.name}: {e}" for run, e in results if isinstance(e, GlitchrunError)]
    for _, found in results:
        if isinstance(found, Stopped):
            failures.append(str(Interrupted(found.exit_code)))
            return Applied(outcomes, tuple(failures), found.exit_code)
        if isinstance(found, GlitchrunError) and not options.keep_going:
            return Applied(outcomes, tuple(failures), found.exit_code)
    stopped = session.interrupt.exit_code if len(results) < len(runs) else None
    return Applied(outcomes, tuple(failures), stopped or _exit_code(outcomes, failures))


def _execute_one(run: PlannedRun, session: Session) -> Outcome:
    if run.action == "skip":
        return _skip(run, session)
    session.display.say(f"{run.cell.name}: {run.action}")
    return execute(run, session)


def _skip(run: PlannedRun, session: Session) -> Outcome:
    """The outcome of a finished run: its record, and the gates of the present spec."""
    spec = run.cell.spec
    attempt = current_attempt(session.root, spec.experiment, run.key)
    if attempt is None:  # the plan found a finished run
        raise RunError(f"{run.cell.name}: the run was removed meanwhile; apply again")
    record = read_run(attempt)
    results = gates.evaluate(run.gates, record)
    session.display.say(f"{run.cell.name}: nothing to do, it is finished{_renamed(run, record)}")
    if lacks_report(record):
        _write_again(record, session)
    return Outcome(record, gates.exit_code(results), _undelivered(record, session))


def _write_again(record: RunRecord, session: Session) -> None:
    """Writes the report of a finished run, whose files were lost, from its ledger."""
    try:
        with session.serial, file_access(record.artifacts, "cannot be written"):
            write_report(record)
    except GlitchrunError as error:
        session.display.say(f"its report is lost, and was not written: {error}")
    else:
        session.display.say("its report was lost, and is written again from the ledger")


def _renamed(run: PlannedRun, record: RunRecord) -> str:
    """` as NAME`, if the run is recorded under a former name of the spec."""
    own = (run.cell.spec.experiment, run.cell.name)
    recorded = (record.identity.experiment, record.identity.name)
    return "" if own == recorded else f" as {' · '.join(dict.fromkeys(recorded))}"


def _undelivered(record: RunRecord, session: Session) -> str | None:
    """Delivers a finished run that MLflow lacks. Returns the reason if that fails."""
    if record.delivered:
        return None
    (synced,) = sync([record], session.root)
    if synced.outcome == "deleted":
        session.display.say(f"not delivered to MLflow: {synced.detail}")
    return synced.detail if synced.outcome == "failed" else None


def _exit_code(outcomes: Sequence[Outcome], failures: Sequence[str]) -> ExitCode:
    """The exit code of the most severe outcome: stopped, failed, gates, not delivered."""
    codes = {outcome.exit_code for outcome in outcomes}
    for stopped in (ExitCode.SIGINT, ExitCode.SIGTERM):
        if stopped in codes:
            return stopped
    if failures:
        return ExitCode.INCOMPLETE
    for gate in (ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE):
        if gate in codes:
            return gate
    if any(outcome.undelivered for outcome in outcomes):
        return ExitCode.PREFLIGHT
    return ExitCode.DONE


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
