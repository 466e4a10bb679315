"""Executes one run:

1. check that the model's files are those that were planned;
2. lock the run's folder, and open its ledger or create it;
3. for each step: reuse what the store of steps has of it (`runner/steps.py`), or
   a. load the model unless it is loaded, detect its template, check the lengths of prompts;
   b. run the step: every batch is written to the step's ledger, then shown and delivered;
   c. compute the step's metrics with the run's thresholds;
4. evaluate the gates, write the report, and deliver the rest.
"""

from __future__ import annotations

import gc
import os
import shlex
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from glitchrun.errors import ExitCode, GlitchrunError, PreflightError, file_access
from glitchrun.events import Artifact, Batch, Event
from glitchrun.ledger import Journal, RunRecord, current_attempt, hold, run_folder
from glitchrun.ledger.files import now
from glitchrun.ledger.record import ModelRecord, StepRecord
from glitchrun.ledger.step_journal import StepJournal
from glitchrun.ledger.steps import StepFold, verified
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.step_keys import StepKey
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import refuse_unscreened
from glitchrun.prompts.detect import detect
from glitchrun.prompts.template import Template
from glitchrun.report import write_report
from glitchrun.runner import gates
from glitchrun.runner.artifacts import (
    FILES,
    copy_artifacts,
    environment,
    write_artifact,
    write_inputs,
)
from glitchrun.runner.lengths import beyond_training, too_long
from glitchrun.runner.models import check_unchanged
from glitchrun.runner.resolved import empty_scope_reason
from glitchrun.runner.session import Outcome, Session
from glitchrun.runner.signals import Stopped
from glitchrun.runner.steps import Steps, metrics, open_journal
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Step
from glitchrun.strategies.context import Context, check_embedding_rows
from glitchrun.strategies.prompt_lengths import PromptLengths
from glitchrun.tracking.tracker import MlflowTracker
from glitchrun.verdicts import near_limit
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.token_features import row_norms


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
        self._context: Context | None = None
        self._beyond: tuple[str, ...] = ()

    def execute(self) -> Outcome:
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
            raise
        return self._end("FINISHED", gates.exit_code(self._journal.record.gates))

    def _work(self) -> None:
        self._session.interrupt.check()
        for key in self._planned.keys:
            self._step(key)
            if self._context is not None:
                self._session.models.check_files()
        if self._context is not None:
            self._journal.append("model", model=asdict(self._measured(self._context)))
        results = gates.evaluate(self._spec.gates, self._journal.record.metrics, self._spec.origins)
        self._journal.append("gates", gates=[asdict(result) for result in results])

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
        context = replace(self._loaded(), path=path, earlier=self._earlier(key))
        with self._steps.journal(key) as store:
            store.begin(self._journal.record.identity)
            store.use(self._measured(context))
            self._journal.append("uses", **self._steps.reference(key, store.facts, reused=False))
            self._journal.follow(step.id, store.facts)
            try:
                self._run(step, context, store)
            except Stopped as stopped:
                if not stopped.at_once:
                    self._say_how_to_go_on(step, store)
                raise
            store.use(self._measured(context))
            store.finish(key.extent)
        return store.facts

    def _say_how_to_go_on(self, step: Step, store: StepJournal) -> None:
        """After Ctrl-C in a search: how to continue it, and how to end it here."""
        strategy = STRATEGIES[step.strategy]
        done = verified(timed.batch for timed in store.facts.batches)
        count = strategy.stop_at(strategy.configure(step.params), done)
        if count:
            cell = f" --only {shlex.quote(self._planned.cell.name)}" if self._session.parent else ""
            self._session.display.say(
                f"{step.id}: stopped after {done:,} verifications. To continue the search, apply "
                "again. To end it here and go on with the next step, apply with "
                f"--until {step.id}={count}{cell}"
            )

    def _run(self, step: Step, context: Context, store: StepJournal) -> None:
        strategy = STRATEGIES[step.strategy]
        record = next(one for one in self._journal.record.steps if one.id == step.id)
        history = [timed.batch for timed in record.batches]
        with self._session.display.step(step.id) as shown:
            shown.resume(history)
            context = replace(context, announce=shown.begin)
            events = strategy.run(strategy.configure(step.params), context, history)
            with closing(events):  # type: ignore[type-var]
                for event in events:
                    self._store(event, store)
                    if isinstance(event, Batch):
                        shown.show(event)
                        self._session.interrupt.check()

    def _store(self, event: Event, store: StepJournal) -> None:
        """Writes an event to the disk, then passes the record to the tracker."""
        if isinstance(event, Artifact):
            write_artifact(event, self._journal.record.artifacts, store.facts.folder / FILES)
            return
        store.add(event)
        if isinstance(event, Batch):
            self._tracker.update(self._journal.record)

    def _conclude(self, step: Step, key: StepKey, facts: StepFold) -> None:
        for metric in metrics(step, key, facts, self._record_of(key)):
            self._journal.append("measured", step=step.id, **asdict(metric))
        self._journal.append("step_done", step=step.id)
        self._tracker.update(self._journal.record)

    def _record_of(self, key: StepKey) -> StepRecord:
        return next(known for known in self._journal.record.steps if known.id == key.id)

    def _loaded(self) -> Context:
        """The loaded model; it is loaded when the first step needs it."""
        if self._context is None:
            self._context = self._load()
            self._session.interrupt.check()
        return self._context

    def _load(self) -> Context:
        model = self._session.models.get(self._spec.model, self._planned.fingerprint)
        tokenizer = model.tokenizer
        spec = self._spec
        template = detect(
            spec.template, tokenizer, model.config, spec.model.path, spec.template_variables
        )
        self._session.display.say(f"template: {template.name} ({template.rule})")
        vocabulary = Vocabulary(tokenizer, row_norms(model.input_embeddings))
        if refusal := empty_scope_reason(spec, vocabulary):
            raise PreflightError(refusal)
        self._check_lengths(model, template)
        backend, self._engine = best_backend(model)
        self._session.display.say(f"engine: {self._engine}")
        searches = (str(step.params.get("search")) for step in spec.steps)
        if any(name in SEARCHES and SEARCHES[name].screened for name in searches):
            refuse_unscreened(backend)
        context = Context(
            spec=self._spec,
            backend=backend,
            vocabulary=vocabulary,
            template=template,
            free_bytes=self._session.models.free_bytes(),
            earlier={},
            estimate=self._planned.estimate.to_json() if self._planned.estimate else None,
            results=self._planned.digests["results"],
        )
        check_embedding_rows(context, self._spec.steps)
        self._journal.append("model", model=asdict(self._measured(context)))
        return context

    def _check_lengths(self, model: LoadedModel, template: Template) -> None:
        """Refuses texts longer than the model's positions; warns of those longer than trained."""
        limit = model.positions
        if limit is None:
            return
        given = PromptLengths(self._spec, template, model.tokenizer, model.config)
        if limit.fixed and (reason := too_long(given, limit)):
            raise PreflightError(reason)
        self._beyond = beyond_training(given, limit)
        for note in self._beyond:
            self._session.display.say(f"warning: {note}")

    def _measured(self, context: Context) -> ModelRecord:
        model: LoadedModel = context.backend.model
        return ModelRecord(
            load_seconds=0.0 if self._session.models.reused else model.load_seconds,
            bytes=model.bytes,
            peak_bytes=self._session.models.peak_bytes(),
            device=str(model.device),
            dtype=model.dtype,
            quantization=model.quantization,
            architecture=model.architecture,
            vocabulary_size=model.vocab_size,
            census=model.bytes_by_dtype,
            unquantized=model.unquantized,
            template=context.template.name,
            template_rule=context.template.rule,
            engine=self._engine,
            tokenizer=model.tokenizer_note,
            excluded=len(context.excluded(context.spec.tokens.categories)),
            categories=self._categories(context.vocabulary),
            beyond_training=self._beyond,
        )

    def _categories(self, vocabulary: Vocabulary) -> dict[str, int]:
        """Vocabulary rows by category, if a step has results about tokens."""
        steps = self._journal.record.steps
        facts = (timed.batch.token_facts for step in steps for timed in step.batches)
        return vocabulary.tally(wanted=any(facts))

    def _earlier(self, key: StepKey) -> dict[str, Sequence[Batch]]:
        """The batches of the steps that a step reads, by step id."""
        steps = (step for step in self._journal.record.steps if step.id in key.reads)
        return {step.id: [timed.batch for timed in step.batches] for step in steps}

    def _end(self, status: str, code: ExitCode, error: str | None = None) -> Outcome:
        # The report is written before the entry that ends the run, so that every finished run has
        # its report.
        ending = replace(self._journal.record, status=status, ended_at=now(), error=error)
        write_report(ending)
        self._journal.append("ended", status=status, error=error)
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
