"""Executes one run:

1. check that the model's files are those that were planned;
2. lock the run's folder, and open its ledger or create it;
3. load the model, detect its template, check the lengths of prompts;
4. run each step: every batch is written to the ledger, then shown and delivered;
5. evaluate the gates, write the report, and deliver the rest.
"""

from __future__ import annotations

import gc
import os
import socket
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glitchrun.errors import ExitCode, GlitchrunError, PreflightError, file_access
from glitchrun.events import Artifact, Batch, Measured, batch_to_json
from glitchrun.ledger import (
    Journal,
    RunRecord,
    current_attempt,
    hold,
    latest_attempt,
    run_document,
    run_folder,
)
from glitchrun.ledger.files import now
from glitchrun.ledger.record import ModelRecord, RunIdentity
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.build import PlannedRun
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import refuse_unscreened
from glitchrun.prompts.detect import detect
from glitchrun.prompts.template import Template
from glitchrun.report import write_report
from glitchrun.runner import gates
from glitchrun.runner.artifacts import environment, write_artifact, write_inputs
from glitchrun.runner.lengths import beyond_training, too_long
from glitchrun.runner.models import Models, check_unchanged
from glitchrun.runner.progress import Display
from glitchrun.runner.resolved import empty_scope_reason
from glitchrun.runner.signals import Interrupt, Stopped
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Experiment, Spec, Step
from glitchrun.strategies.context import Context, check_embedding_rows
from glitchrun.strategies.prompt_lengths import PromptLengths
from glitchrun.tracking.address import shown
from glitchrun.tracking.tracker import MlflowTracker
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.token_features import row_norms


@dataclass(frozen=True)
class Session:
    """State shared by the runs of one `apply`."""

    experiment: Experiment
    root: Path
    """Tracking root."""
    tracking_uri: str
    """The MLflow store, with credentials."""
    parent: str | None
    """Key of the parent run; None for a single run."""
    models: Models
    display: Display
    interrupt: Interrupt
    fresh: bool
    """Whether to start a new attempt instead of resuming one."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    record: RunRecord
    exit_code: ExitCode
    undelivered: str | None = None
    """Why MLflow does not have all of the run; None if it does."""


def execute(planned: PlannedRun, session: Session) -> Outcome:
    """Starts or resumes a run, and executes it until it ends or is stopped.

    Raises:
        GlitchrunError: the run failed; its finished part is in the ledger.
        Stopped: a second signal stopped the run immediately.
    """
    spec = planned.cell.spec
    check_unchanged(spec.model, planned.fingerprint)
    folder = _folder(planned, session)
    with _writable(folder), hold(folder), _journal(folder, planned, session) as journal:
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


def _journal(folder: Path, planned: PlannedRun, session: Session) -> Journal:
    """Opens the ledger to resume, or creates a new one."""
    number = latest_attempt(folder)
    starts = session.fresh or not number
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
    if starts:
        return Journal.create(attempt, identity, spec.document, _origins(spec))
    journal = Journal(attempt, run_document(identity, spec.document, _origins(spec)))
    if journal.repaired:
        session.display.say(f"damaged: {journal.repaired}")
    return journal


def _origins(spec: Spec) -> dict[str, str]:
    return {path: str(origin) for path, origin in spec.origins.items()}


class _Run:
    """A run whose lock is held and whose ledger is open."""

    def __init__(self, planned: PlannedRun, session: Session, journal: Journal) -> None:
        self._spec = planned.cell.spec
        self._planned = planned
        self._session = session
        self._journal = journal
        self._tracker = MlflowTracker(session.tracking_uri, session.root)
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
        context = self._load()
        self._session.interrupt.check()
        for index, step in enumerate(self._spec.steps):
            self._step(step, replace(context, path=f"steps[{index}]"))
            self._session.models.check_files()
        self._journal.append("model", model=asdict(self._measured(context)))
        results = gates.evaluate(self._spec.gates, self._journal.record.metrics, self._spec.origins)
        self._journal.append("gates", gates=[asdict(result) for result in results])

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
        facts = (batch.token_facts for some in self._earlier().values() for batch in some)
        return vocabulary.tally(wanted=any(facts))

    def _step(self, step: Step, context: Context) -> None:
        record = next(known for known in self._journal.record.steps if known.id == step.id)
        if record.finished:
            return
        self._journal.append("step", step=step.id)
        strategy = STRATEGIES[step.strategy]
        history = [timed.batch for timed in record.batches]
        with self._session.display.step(step.id) as shown:
            shown.resume(history)
            context = replace(context, earlier=self._earlier(), announce=shown.begin)
            events = strategy.run(strategy.configure(step.params), context, history)
            with closing(events):  # type: ignore[type-var]
                for event in events:
                    self._store(step, event)
                    if isinstance(event, Batch):
                        shown.show(event)
                        self._session.interrupt.check()
        self._journal.append("step_done", step=step.id)
        self._tracker.update(self._journal.record)

    def _store(self, step: Step, event: Batch | Measured | Artifact) -> None:
        """Writes an event to the disk, then passes the record to the tracker."""
        match event:
            case Batch():
                self._journal.append("batch", step=step.id, **batch_to_json(event))
                self._tracker.update(self._journal.record)
            case Measured():
                self._journal.append("measured", step=step.id, **asdict(event))
            case Artifact():
                write_artifact(self._journal.record, event)

    def _earlier(self) -> dict[str, Sequence[Batch]]:
        return {
            step.id: [timed.batch for timed in step.batches] for step in self._journal.record.steps
        }

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
