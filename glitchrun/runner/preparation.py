"""Loads the model of a run, and prepares what its steps share: template, vocabulary, backend.

This imports torch and transformers. `execute` imports it when the first step needs the model, so
that a run which reuses every step starts without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glitchrun.errors import PreflightError
from glitchrun.events import Event, Verified
from glitchrun.ledger.record import ModelRecord
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.build import PlannedRun
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import refuse_unscreened
from glitchrun.prompts.detect import detect
from glitchrun.prompts.template import Template
from glitchrun.report.indicators import indicator_data
from glitchrun.runner.engine import StepTask, Watch
from glitchrun.runner.lengths import beyond_training, too_long
from glitchrun.runner.models import Models
from glitchrun.runner.resolved import empty_scope_reason
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Spec
from glitchrun.strategies.context import Context, check_embedding_rows
from glitchrun.strategies.prompt_lengths import PromptLengths
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import Indicators, row_norms
from glitchrun.vocabulary.relatives import as_json


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run's model, ready for its steps."""

    context: Context
    models: Models
    engine: str
    """The forward pass that runs the model, and the reason."""
    beyond_training: tuple[str, ...]
    """A warning for each step whose texts are longer than the model was trained for."""

    def events(self, task: StepTask, watch: Watch) -> Iterator[Event]:
        """See `runner.engine.Executor`."""
        context = replace(
            self.context,
            path=task.path,
            earlier=task.earlier,
            known=task.known,
            announce=watch.begin,
            tools={},
        )
        strategy = STRATEGIES[task.step.strategy]
        yield from strategy.run(strategy.config_of(task.step), context, task.history())

    def indicators(self, verified: Sequence[Verified]) -> Mapping[str, Any] | None:
        """See `runner.engine.Executor`."""
        if self.context.indicators is None:
            return None
        ids = [fact.token.id for fact in verified]
        related = as_json(self.context.vocabulary, verified)
        return indicator_data(self.context.indicators, ids, related)

    def check(self) -> None:
        """See `runner.engine.Executor`."""
        self.models.check_files()

    def measured(self, *, with_categories: bool) -> ModelRecord:
        """The record of the model, with the peak memory so far.

        Args:
            with_categories: Whether a step has results about tokens, so that the number of
                vocabulary rows in each category is wanted.
        """
        model: LoadedModel = self.context.backend.model
        context = self.context
        return ModelRecord(
            load_seconds=0.0 if self.models.reused else model.load_seconds,
            bytes=model.bytes,
            peak_bytes=self.models.peak_bytes(),
            device=str(model.device),
            dtype=model.dtype,
            quantization=model.quantization,
            architecture=model.architecture,
            vocabulary_size=model.vocab_size,
            census=model.bytes_by_dtype,
            unquantized=model.unquantized,
            template=context.template.name,
            template_rule=context.template.rule,
            engine=self.engine,
            tokenizer=model.tokenizer_note,
            excluded=len(context.excluded(context.spec.tokens.categories)),
            categories=context.vocabulary.tally(wanted=with_categories),
            beyond_training=self.beyond_training,
            residency=model.residency,
            bytes_read=model.bytes_read[0],
        )


def prepare(planned: PlannedRun, models: Models, say: Callable[[str], None]) -> Prepared:
    """Loads the model of a run unless it is loaded.

    Raises:
        PreflightError: the spec does not suit the model: no token is in scope, or a prompt is
            longer than the model's positions.
        ModelUnavailable: the model cannot be loaded, or is not the one that was planned with.
    """
    spec = planned.cell.spec
    residency = planned.residency
    chosen = replace(spec.model, residency=residency.chosen if residency else "resident")
    if residency and residency.chosen == "streamed":
        say(f"streamed: {residency.reason}")
    model = models.get(chosen, planned.fingerprint, residency.stream if residency else None)
    tokenizer = model.tokenizer
    template = detect(
        spec.template, tokenizer, model.config, spec.model.path, spec.template_variables
    )
    say(f"template: {template.name} ({template.rule})")
    vocabulary = models.keep(
        "vocabulary", lambda: Vocabulary(tokenizer, row_norms(model.embedding_blocks()))
    )
    if refusal := empty_scope_reason(spec, vocabulary):
        raise PreflightError(refusal)
    warnings = _check_lengths(spec, model, template)
    for warning in warnings:
        say(f"warning: {warning}")
    backend, engine = best_backend(model, spec.arithmetic)
    say(f"engine: {engine}")
    searches = (str(step.params.get("search")) for step in spec.steps)
    if any(name in SEARCHES and SEARCHES[name].screened for name in searches):
        refuse_unscreened(backend)
    context = Context(
        spec=spec,
        backend=backend,
        vocabulary=vocabulary,
        template=template,
        free_bytes=models.free_bytes(),
        earlier={},
        estimate=planned.estimate.to_json() if planned.estimate else None,
        results=planned.digests["results"],
        indicators=models.keep(
            ("indicators", spec.tokens.unused),
            lambda: Indicators(
                model.head_blocks, vocabulary, tied=model.tied, unused=spec.tokens.unused
            ),
        ),
    )
    check_embedding_rows(context, spec.steps)
    return Prepared(context, models, engine, warnings)


def _check_lengths(spec: Spec, model: LoadedModel, template: Template) -> tuple[str, ...]:
    """Refuses texts longer than the model's positions; returns warnings of those longer than it was
    trained for."""
    limit = model.positions
    if limit is None:
        return ()
    given = PromptLengths(spec, template, model.tokenizer, model.config)
    if limit.fixed and (reason := too_long(given, limit)):
        raise PreflightError(reason)
    return tuple(beyond_training(given, limit))
