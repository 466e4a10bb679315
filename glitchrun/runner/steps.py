"""The steps of a run: what it reuses from the store of steps, and the ledgers that it writes."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError
from glitchrun.events import Measured, Sampled
from glitchrun.ledger import Journal, RunRecord, latest_attempt, read_run, run_document
from glitchrun.ledger.journal import StepJournal
from glitchrun.ledger.lock import wait_and_hold
from glitchrun.ledger.record import RunIdentity, StepRecord
from glitchrun.ledger.step_fold import StepFold
from glitchrun.ledger.step_store import (
    attempt_folder,
    attempts,
    current_step,
    read_step,
    step_folder,
    stored_steps,
)
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.step_keys import StepKey, question
from glitchrun.runner.engine import Session
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Spec, Step
from glitchrun.strategies.validate.attempts import Known
from glitchrun.tracking.address import shown

_COPY = "copy"
"""Name of the folder of a copied step until it is complete."""


def open_journal(folder: Path, planned: PlannedRun, session: Session) -> Journal:
    """Opens the ledger of the run to resume, or creates that of a new attempt.

    A run that an earlier version left unfinished, with the facts in its own ledger, is continued in
    a new attempt. Its facts are copied to the store of steps; the old attempt stays as it is.

    Raises:
        RunError: the run's files cannot be read, written or repaired.
    """
    number = latest_attempt(folder)
    anew = session.fresh or session.redo or not number
    former = None if anew else _of_earlier_version(folder / f"attempt-{number}")
    starts = anew or former is not None
    spec = planned.cell.spec
    identity = RunIdentity(
        experiment=spec.experiment,
        name=planned.cell.name,
        key=planned.key,
        attempt=number + 1 if starts else number,
        parent=session.parent,
        assignments=planned.cell.assignments,
        spec_path=str(session.experiment.path),
        digests={**planned.digests, "model": planned.fingerprint},
        tags=spec.tags or {},
        description=spec.description,
        tracking_uri=shown(session.tracking_uri),  # without credentials
        ledger=uuid.uuid4().hex,
    )
    attempt = folder / f"attempt-{identity.attempt}"
    if former is not None:
        _copy_facts(former, planned, session)
    if starts:
        return Journal.create(attempt, identity, spec.document, _origins(spec))
    journal = Journal(attempt, run_document(identity, spec.document, _origins(spec)))
    if journal.repaired:
        session.display.say(f"damaged: {journal.repaired}")
    return journal


def _origins(spec: Spec) -> dict[str, str]:
    return {path: str(origin) for path, origin in spec.origins.items()}


def _of_earlier_version(attempt: Path) -> RunRecord | None:
    """The run of an attempt whose own ledger contains facts; None for any other."""
    record = read_run(attempt)
    return record if any(step.batches and not step.key for step in record.steps) else None


def _copy_facts(record: RunRecord, planned: PlannedRun, session: Session) -> None:
    """Copies the facts of a run to the store of steps, where it lacks them."""
    keys = {key.id: key for key in planned.keys}
    for step in record.steps:
        key = keys[step.id]
        if not step.batches or attempts(session.root, key.key):
            continue
        with wait_and_hold(
            step_folder(session.root, key.key), lambda owner: session.interrupt.check()
        ):
            if not attempts(session.root, key.key):  # another process may have begun the step
                _copy_step(record, step, key, session.root)


def _copy_step(record: RunRecord, step: StepRecord, key: StepKey, root: Path) -> None:
    """Copies the facts of one step. A copy that is interrupted does not count."""
    folder = step_folder(root, key.key) / _COPY
    if folder.exists():
        shutil.rmtree(folder)
    with StepJournal.create(folder, key.document) as store:
        store.begin(record.identity, step.started_at)
        for timed in step.batches:
            store.add(timed.batch, timed.at)
        if step.ended_at is not None:
            for name in _only_measured(step):
                metric = step.metrics[name]
                store.add(Measured(name, metric.value, metric.n), step.ended_at)
            store.finish(key.extent, step.ended_at)
    folder.rename(attempt_folder(root, key.key, 1))


def _only_measured(step: StepRecord) -> list[str]:
    """The metrics of a step that cannot be computed from its batches."""
    strategy = STRATEGIES[step.strategy]
    batches = [timed.batch for timed in step.batches]
    config = strategy.configure(step.params)
    derived = {metric.name for metric in strategy.metrics(config, batches, ())}
    return [name for name in step.metrics if name not in derived]


class Steps:
    """The steps of one run in the store."""

    def __init__(self, planned: PlannedRun, session: Session, journal: Journal) -> None:
        self._session = session
        self._root = session.root
        self._journal = journal
        self._anew = steps_anew(planned.keys, session, journal.record)

    def finished(self, key: StepKey) -> StepFold | None:
        """The facts of a step that needs no more work; None for any other.

        Raises:
            RunError: the step's files cannot be read.
        """
        found = self._found(key)
        done = found is not None and found.finished(key.extent) and not found.damage
        return found if done else None

    def begun(self, key: StepKey) -> bool:
        """Whether some of a step is stored."""
        found = self._found(key)
        return found is not None and bool(found.batches)

    def _found(self, key: StepKey) -> StepFold | None:
        """The attempt at a step that the run uses; None if it must start one."""
        number = self._used(key) or self._session.redone.get(key.key)
        if number is not None:
            return read_step(attempt_folder(self._root, key.key, number))
        if key.id in self._anew:
            return None
        return current_step(self._root, key.key, key.extent)

    def _used(self, key: StepKey) -> int | None:
        """The attempt that the run has used before it was interrupted, if it is still there."""
        record = next(step for step in self._journal.record.steps if step.id == key.id)
        used = record.key == key.key and record.attempt in attempts(self._root, key.key)
        return record.attempt if used else None

    @contextmanager
    def locked(self, key: StepKey) -> Iterator[None]:
        """Holds the step's lock; waits while another process works on the step.

        Raises:
            Stopped: a signal came while waiting.
            PreflightError: the lock cannot be created.
        """
        told = False

        def waiting(owner: str) -> None:
            nonlocal told
            if not told:
                self._session.display.say(f"{key.id}: waiting for {owner}, which works on it")
            told = True
            self._session.interrupt.check()

        with wait_and_hold(step_folder(self._root, key.key), waiting):
            yield

    def journal(self, key: StepKey) -> StepJournal:
        """The ledger of the step to resume, or that of a new attempt.

        Raises:
            RunError: the step's files cannot be read, written or repaired.
        """
        found = self._found(key)
        if found is not None:
            journal = StepJournal(found.folder)
            if journal.repaired:
                self._session.display.say(f"damaged: {journal.repaired}")
            return journal
        number = max(attempts(self._root, key.key), default=0) + 1
        if key.id in self._anew:
            self._session.redone[key.key] = number
        return StepJournal.create(attempt_folder(self._root, key.key, number), key.document)

    def known(self, key: StepKey) -> Known:
        """The attempts that steps with the same question have sampled, the most on each token.

        Raises:
            RunError: the store cannot be read.
        """
        wanted = question(key.document)
        if wanted is None or key.id in self._anew:
            return Known()
        samples: dict[int, Sampled] = {}
        prompts: Mapping[str, tuple[str, ...]] = {}
        dropped = 0
        for folder, document in stored_steps(self._root):
            if question(document) != wanted:
                continue
            with suppress(RunError):  # a damaged step is reported where it is used
                for timed in read_step(folder).batches:
                    prompts = prompts or timed.batch.prompts
                    for fact in timed.batch.samples:
                        if not fact.continuations:  # a copy from an earlier version
                            continue
                        before = samples.get(fact.token.id)
                        if before is None or before.attempts < fact.attempts:
                            samples[fact.token.id] = fact
                    if lacking := timed.batch.counters.get("dropped_system"):
                        dropped = lacking // len(timed.batch.facts)
        return Known(samples, prompts, dropped)

    def reference(self, key: StepKey, facts: StepFold, *, reused: bool) -> dict[str, Any]:
        """The fields of the entry by which a run refers to a step."""
        return {
            "step": key.id,
            "key": key.key,
            "attempt": facts.attempt,
            "extent": key.extent,
            "reused": reused,
        }


def metrics(step: Step, key: StepKey, facts: StepFold, record: StepRecord) -> Iterator[Measured]:
    """The metrics of a finished step, judged by the run's thresholds.

    Args:
        step: The step.
        key: Its key.
        facts: What was measured.
        record: The run's view of it, with verdicts.
    """
    strategy = STRATEGIES[step.strategy]
    batches = [timed.batch for timed in record.batches]
    measured = facts.measured_at(key.extent)
    return strategy.metrics(strategy.config_of(step), batches, measured)


def steps_anew(keys: Sequence[StepKey], session: Session, record: RunRecord) -> frozenset[str]:
    """The steps of which the run reuses nothing: those that this `apply` or the one that it resumes
    measures again, and the steps that read from them."""
    if session.fresh:
        return frozenset(key.id for key in keys)
    again = session.redo | record.anew
    return frozenset(key.id for key in keys if again.intersection((key.id, *key.reads)))
