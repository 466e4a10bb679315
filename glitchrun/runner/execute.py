"""Executes one run:

1. check that the model's files are those that were planned;
2. lock the run's folder, and open its ledger or create it;
3. for each step: reuse what the store of steps has of it (`runner/steps.py`), or
   a. load the model unless it is loaded (`runner/engine.py`);
   b. run the step: every batch is written to the step's ledger, then shown and delivered;
   c. compute the step's metrics with the run's thresholds;
4. evaluate the gates, write the report, and deliver the rest.
"""

from __future__ import annotations

import gc
import os
import shlex
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from glitchrun.boundary import OUT_OF_MEMORY, is_out_of_memory
from glitchrun.errors import ExitCode, GlitchrunError, RunError, file_access
from glitchrun.events import Artifact, Batch, Event, Verified
from glitchrun.ledger import Journal, RunRecord, current_attempt, hold, run_folder
from glitchrun.ledger.files import now
from glitchrun.ledger.journal import StepJournal
from glitchrun.ledger.record import ModelRecord, StepRecord
from glitchrun.ledger.step_fold import StepFold, verified
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.step_keys import StepKey
from glitchrun.report import write_report
from glitchrun.report.indicators import indicator_metrics, keep_indicators
from glitchrun.runner import gates
from glitchrun.runner.artifacts import (
    FILES,
    copy_artifacts,
    environment,
    write_artifact,
    write_inputs,
)
from glitchrun.runner.engine import Executor, Outcome, Session, StepTask
from glitchrun.runner.models import check_unchanged
from glitchrun.runner.signals import Stopped
from glitchrun.runner.steps import Steps, metrics, open_journal, steps_anew
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Step
from glitchrun.strategies.tokens import found_tokens, has_phrases
from glitchrun.strategies.validate.attempts import Known
from glitchrun.terminal import concealed
from glitchrun.tracking.tracker import MlflowTracker
from glitchrun.verdicts import near_limit


def execute(planned: PlannedRun, session: Session) -> Outcome:
    """Starts or resumes a run, and executes it until it ends or is stopped.

    Raises:
        GlitchrunError: the run failed; its finished part is in the ledger.
        Stopped: a second signal stopped the run immediately.
    """
    spec = planned.cell.spec
    check_unchanged(spec.model, planned.fingerprint)
    folder = _folder(planned, session)
    with _writable(folder), hold(folder), open_journal(folder, planned, session) as journal:
        journal.append(
            "session",
            pid=os.getpid(),
            host=socket.gethostname(),
            plan=planned.to_json(),
            environment=environment(session.experiment.path),
            anew=sorted(steps_anew(planned.keys, session, journal.record)),
        )
        write_inputs(journal.record, session.experiment)
        return _Run(planned, session, journal).execute()


def _folder(planned: PlannedRun, session: Session) -> Path:
    """The folder of the run to resume, perhaps under a former name of the spec; else a new one."""
    name = planned.cell.spec.experiment
    attempt = None if session.fresh else current_attempt(session.root, name, planned.key)
    return attempt.parent if attempt else run_folder(session.root, name, planned.key)


def _writable(folder: Path) -> AbstractContextManager[None]:
    """Turns a full disk, missing permissions and similar errors into RunError."""
    return file_access(
        folder, "the run cannot continue", then="; apply again: the run continues where it stopped"
    )


class _Run:
    """A run whose lock is held and whose ledger is open."""

    def __init__(self, planned: PlannedRun, session: Session, journal: Journal) -> None:
        self._spec = planned.cell.spec
        self._planned = planned
        self._session = session
        self._journal = journal
        self._tracker = MlflowTracker(session.tracking_uri, session.root)
        self._steps = Steps(planned, session, journal)
        self._model: Executor | None = None

    def execute(self) -> Outcome:
        with self._session.serial:
            self._tracker.open(self._journal.record)
        try:
            self._work()
        except Stopped as stopped:
            if stopped.at_once:
                raise
            return self._end("KILLED", stopped.exit_code, error="stopped by the user")
        except GlitchrunError as exc:
            self._end("FAILED", exc.exit_code, error=str(exc))
            raise
        except BaseException as exc:
            self._end("FAILED", ExitCode.ERROR, error=f"{type(exc).__name__}: {exc}")
            if is_out_of_memory(exc):
                raise RunError(OUT_OF_MEMORY) from exc
            raise
        return self._end("FINISHED", gates.exit_code(self._journal.record.gates))

    def _work(self) -> None:
        self._session.interrupt.check()
        for key in self._planned.keys:
            self._step(key)
            if self._model is not None:
                self._model.check()
        if self._model is not None:
            self._journal.append("model", model=asdict(self._measured(self._model)))
        results = gates.evaluate(self._planned.gates, self._journal.record)
        self._journal.append("gates", gates=[result.to_json() for result in results])

    def _step(self, key: StepKey) -> None:
        """Reuses a step, or measures what is left of it."""
        if self._record_of(key).finished:
            return
        place = next(i for i, step in enumerate(self._spec.steps) if step.id == key.id)
        step = self._spec.steps[place]
        facts = self._steps.finished(key)
        if facts is None:
            with self._steps.locked(key):
                facts = self._steps.finished(key)  # another process may have finished it
                if facts is None:
                    facts = self._measure(step, key, f"steps[{place}]")
                else:
                    self._reuse(key, facts)
        else:
            self._reuse(key, facts)
        self._conclude(step, key, facts)

    def _reuse(self, key: StepKey, facts: StepFold) -> None:
        own = facts.measured_for(self._journal.record.identity)  # and was killed right after
        self._journal.append("uses", **self._steps.reference(key, facts, reused=not own))
        copy_artifacts(facts.folder, self._journal.record)
        origin = f" from {facts.origin}" if facts.origin and not own else ""
        self._session.display.say(f"{key.id}: reused{origin}")
        batches = (timed.batch for timed in self._record_of(key).batches)
        if count := near_limit(batches, self._spec.thresholds.probability):
            self._journal.append("counted", step=key.id, name="near_threshold", count=count)
            self._session.display.say(
                f"{key.id}: {count} near-ties at thresholds.probability; "
                f"--redo {key.id} re-evaluates them in float32"
            )

    def _measure(self, step: Step, key: StepKey, path: str) -> StepFold:
        known, earlier = self._steps.known(key), self._earlier(key)
        batches = None if self._steps.begun(key) else self._known_batches(step, known, earlier)
        if batches is not None:
            return self._store_known(key, batches)
        model = self._loaded()
        with self._steps.journal(key) as store:
            self._begin(key, store)
            store.use(self._measured(model))
            task = StepTask(step, path, earlier, known.samples, lambda: self._batches_of(key))
            try:
                self._run(task, model, store)
            except Stopped as stopped:
                if not stopped.at_once:
                    self._say_how_to_continue(step, store)
                raise
            store.use(self._measured(model))
            self._keep_indicators(model, store.facts)
            store.finish(key.extent)
        return store.facts

    def _begin(self, key: StepKey, store: StepJournal) -> None:
        store.begin(self._journal.record.identity)
        self._journal.append("uses", **self._steps.reference(key, store.facts, reused=False))
        self._journal.follow(key.id, store.facts)

    def _store_known(self, key: StepKey, batches: Sequence[Batch]) -> StepFold:
        """Stores a step of which nothing is left to ask the model."""
        self._session.display.say(f"{key.id}: every attempt was sampled before")
        with self._steps.journal(key) as store:
            self._begin(key, store)
            for batch in batches:
                store.add(batch)
            store.finish(key.extent)
        return store.facts

    def _known_batches(
        self, step: Step, known: Known, earlier: Mapping[str, Sequence[Batch]]
    ) -> list[Batch] | None:
        """The batches of a step whose attempts are all known; None if it needs the model."""
        source = step.params.get("tokens", {})
        if not known.samples or "from" not in source:
            return None
        if has_phrases(earlier, source):
            return None
        strategy = STRATEGIES[step.strategy]
        tokens = found_tokens(earlier, source)[: self._spec.limit]
        config = strategy.configure(step.params)
        return strategy.known_batches(config, tokens, known, self._spec.thresholds.asr)

    def _keep_indicators(self, model: Executor, facts: StepFold) -> None:
        """Writes the indicators of the verified tokens into the folder of the step's ledger."""
        verified = [
            fact
            for timed in facts.batches
            for fact in (*timed.batch.token_facts, *(c.fact for c in timed.batch.controls))
            if isinstance(fact, Verified)
        ]
        if verified and (data := model.indicators(verified)) is not None:
            keep_indicators(facts.folder, data)

    def _say_how_to_continue(self, step: Step, store: StepJournal) -> None:
        """After Ctrl-C in a search: how to continue it, and how to end it here."""
        strategy = STRATEGIES[step.strategy]
        done = verified(timed.batch for timed in store.facts.batches)
        count = strategy.stop_at(strategy.config_of(step), done)
        if count:
            cell = f" --only {shlex.quote(self._planned.cell.name)}" if self._session.parent else ""
            self._session.display.say(
                f"{step.id}: stopped after {done:,} verifications. To continue the search, apply "
                "again. To end it here and go on with the next step, apply with "
                f"--until {step.id}={count}{cell}"
            )

    def _run(self, task: StepTask, model: Executor, store: StepJournal) -> None:
        with self._session.display.step(task.step.id) as shown:
            shown.resume(task.history())
            events = model.events(task, shown)
            with closing(events):  # type: ignore[type-var]
                for event in events:
                    self._store(event, store)
                    if isinstance(event, Batch):
                        shown.show(event)
                        self._session.interrupt.check()

    def _batches_of(self, key: StepKey) -> list[Batch]:
        return [timed.batch for timed in self._record_of(key).batches]

    def _store(self, event: Event, store: StepJournal) -> None:
        """Writes an event to the disk, then passes the record to the tracker."""
        if isinstance(event, Artifact):
            write_artifact(event, self._journal.record.artifacts, store.facts.folder / FILES)
            return
        store.add(event)
        if isinstance(event, Batch):
            self._tracker.update(self._journal.record)

    def _conclude(self, step: Step, key: StepKey, facts: StepFold) -> None:
        record = self._record_of(key)
        for metric in (*metrics(step, key, facts, record), *indicator_metrics(record)):
            self._journal.append("measured", step=step.id, **asdict(metric))
        self._journal.append("step_done", step=step.id, **self._summary(key))
        if not self._record_of(key).reused:  # else delivered with what comes next
            self._tracker.update(self._journal.record)

    def _summary(self, key: StepKey) -> dict[str, Any]:
        """A summary of a step for `status` and similar readers, which then need not read its
        facts."""
        record = self._record_of(key)
        counted: Counter[str] = Counter()
        for timed in record.batches:
            counted.update(timed.batch.counters)
        return {"counters": dict(counted), "progress": record.progress}

    def _record_of(self, key: StepKey) -> StepRecord:
        return next(known for known in self._journal.record.steps if known.id == key.id)

    def _loaded(self) -> Executor:
        """The loaded model; it is loaded when the first step needs it."""
        if self._model is None:
            session = self._session
            self._model = session.engine.executor(
                self._planned, session.display.say, session.interrupt
            )
            self._journal.append("model", model=asdict(self._measured(self._model)))
            session.interrupt.check()
        return self._model

    def _measured(self, model: Executor) -> ModelRecord:
        steps = self._journal.record.steps
        facts = (timed.batch.token_facts for step in steps for timed in step.batches)
        return model.measured(with_categories=any(facts))

    def _earlier(self, key: StepKey) -> dict[str, Sequence[Batch]]:
        """The batches of the steps that a step reads, by step id."""
        steps = (step for step in self._journal.record.steps if step.id in key.reads)
        return {step.id: [timed.batch for timed in step.batches] for step in steps}

    def _end(self, status: str, code: ExitCode, error: str | None = None) -> Outcome:
        # The report is written before the entry that ends the run, so that every finished run has
        # its report.
        error = None if error is None else concealed(error)
        ending = replace(self._journal.record, status=status, ended_at=now(), error=error)
        with self._session.serial:
            try:
                write_report(ending)
                self._journal.append("ended", status=status, error=error)
            finally:  # its thread ends, even where the disk is full
                record = self._journal.record
                self._tracker.close(record)
        if self._tracker.deleted:
            self._session.display.say(f"not delivered to MLflow: {self._tracker.deleted}")
        gc.collect()
        return Outcome(record, code, self._tracker.failure)


def describe(record: RunRecord) -> dict[str, Any]:
    """A run as `apply -o json` shows it; JSON-ready."""
    return {
        "name": record.identity.name,
        "run_id": record.delivered_to.get("run_id", record.identity.key),
        "status": record.status,
        "metrics": {name: metric.value for name, metric in record.metrics.items()},
        "gates": [asdict(gate) for gate in record.gates],
        "artifacts_dir": str(record.artifacts),
    }
