"""The declaration of a strategy: the one object that tells the rest of the program about a kind of
step.

A strategy is a subclass of `Strategy`. `STRATEGIES` lists the instances by their names in the spec:
the built-in ones from `glitchrun/strategies/`, and those that other packages offer under the entry
point group `glitchrun.strategies`. The class belongs to the spec layer because every layer reads
it: the schema, the plan, the runner and the report.

Validating, listing and reporting import the module of every strategy. Such a module therefore
imports no torch, transformers, mlflow or pandas. The code that runs a step is named in `code` and
imported when a step runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from glitchrun.spec.indicators import METRICS
from glitchrun.spec.nodes import Document
from glitchrun.spec.probes import PROBES, STRICT, USUAL_POSITIONS, resolved
from glitchrun.spec.problems import Problem
from glitchrun.spec.registry import Registry, imported
from glitchrun.spec.types import Step

if TYPE_CHECKING:  # importing it takes 20 ms, which `glitchrun validate` does not need
    from glitchrun.events import Batch, Event, Measured, Token

PassKind = Literal["verify", "sample", "answer", "screen", "score"]


@dataclass(frozen=True, slots=True)
class Work:
    """Upper bounds on what a step does."""

    tokens: int | None
    """Vocabulary entries examined; None where no bound is known."""
    prompts: int = 0
    """Prompts whose next-token distribution is computed: one for each token and probe."""
    screens: int = 0
    """Tokens that the screen scores."""
    gradients: int = 0
    continuations: int = 0
    """Sampled continuations: one for each token, attempt and probe."""
    new_tokens: int = 0
    """Tokens generated in all continuations."""
    repeats: int = 0
    """Prompts and continuations that may be near-ties and then run once more. A few per cent of
    this bound were seen."""
    caveat: str | None = None
    """The condition under which the step comes near these bounds, if it usually stays far below
    them."""
    rows: int | None = None
    """Continuations of one prompt: a batch has no more rows. None where only the batch size bounds
    them."""
    found: int | None = None
    """Tokens that a later step reads with `tokens: {from: ...}`; None for all of `tokens`."""
    positions: int = 0
    """About how many positions are run to verify one token in all probes, where a probe is longer
    than usual or generates an answer; 0 where none is."""
    unit: str = "token"
    """What `tokens` counts: `token` or `phrase`."""

    @property
    def usual_prompts(self) -> int:
        """The prompts, counted in prompts of usual length."""
        if not self.positions:
            return self.prompts
        return -(-(self.tokens or 0) * self.positions // USUAL_POSITIONS)


@dataclass(frozen=True, slots=True)
class Expectation:
    """Assumptions about a step, from which the plan estimates its likely work."""

    earlier: Mapping[str, Work]
    """The likely work of each earlier step, by its id."""
    size: int
    """Tokens in scope for a step that takes them, else entries of the vocabulary."""
    glitch_share: float
    """Share of the scope that are glitch tokens by `thresholds.probability`."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The forward pass of a step that needs the most memory."""

    step: str
    """Id of the step."""
    batch: int | None
    """Rows of a forward pass; None where the run chooses them."""
    positions: int
    """Positions of a row: prompt and continuation."""
    gradient: bool = False
    kind: PassKind = "verify"
    """sample and answer: a row grows by one position a pass."""
    together: int = 1
    """Rows of a growing batch that begin as one: the attempts on a token share its prompt."""
    search: str | None = None
    """Name of the search that chooses the tokens; None where there is none."""
    verified: int | None = None
    """Tokens that the search verifies at most; None where only the vocabulary bounds them."""
    controls: bool = False
    rows: int | None = None
    """Largest number of rows that the step can fill with continuations; None where it may fill any
    batch."""
    generated: tuple[int, ...] = ()
    """For each probe that is answered greedily, the positions after the first one of the answer."""
    texts: tuple[int, ...] = ()
    """For each prompt of a step that names whole prompts, the texts that share a pass over a
    streamed model."""
    text_passes: int = 1
    """Passes that these texts take."""

    @property
    def grows(self) -> bool:
        """Whether each pass adds a position to every row."""
        return self.kind in ("sample", "answer")


@dataclass(frozen=True, slots=True)
class TextLength:
    """The length of one text that a step gives to the model, in tokens."""

    parameter: str
    """The parameter of the step that decides the length, such as `max_new_tokens`."""
    prompt: int
    new_tokens: int = 0
    """Tokens after the prompt that are run through the model."""

    @property
    def total(self) -> int:
        """Positions that the text takes."""
        return self.prompt + self.new_tokens


class Strategy:
    """One kind of step. A subclass sets what differs from the defaults here."""

    config_type: ClassVar[type[Any]]
    """Frozen dataclass of the step's parameters, with the defaults of the fragment."""
    fragment: ClassVar[Mapping[str, Any]]
    """Its part of the schema: `description`, `properties`, `required`, and the annotations
    `x-metrics`, `x-tables` and `x-headline` (see `glitchrun.spec.schema`)."""
    code: ClassVar[str]
    """`module:function` of the generator that runs a step (see `run`). It may import torch."""
    prompt_code: ClassVar[str | None] = None
    """`module:function` of the generator of the step's prompts (see `prompt_ids`); None where these
    are its `probes`."""
    example: ClassVar[str] = ""
    """Steps in YAML that `glitchrun init` writes; empty where a strategy needs no parameters."""
    figures: ClassVar[Sequence[str]] = ()
    """Figures of the report, each a `module:function` that is called with a record's steps of this
    strategy and returns a `glitchrun.report.figures.style.Drawing`, or None for no figure."""
    version: ClassVar[int] = 1
    """Raised when the facts of a step change their meaning. It belongs to the step key, so that
    facts of two versions are never mixed."""
    metrics_code: ClassVar[str | None] = None
    """`module:function` of the generator of the step's metrics (see `metrics`), without torch; None
    where `run` yields all of them."""
    verdict: ClassVar[str | None] = None
    """The threshold that decides which tokens the step finds, `probability` or `asr`; None where
    its facts are not about tokens."""
    batch_size_changes_results: ClassVar[bool] = True
    """Whether another `batch_size` may give other results. Otherwise it is left out of run keys."""
    measures_machine: ClassVar[bool] = False
    """Whether device and memory limits decide the results, and so belong to the run key."""
    searches: ClassVar[bool] = False
    """Whether it chooses tokens under a budget, which the report then explains."""
    asks: ClassVar[frozenset[str]] = frozenset()
    """Parameters that decide which attempts the step asks for, but not what the model says in one.
    Steps that differ in nothing else share their attempts, see `Context.known`; empty for none."""
    known_code: ClassVar[str | None] = None
    """`module:function` of the batches of a step whose attempts are all known, without torch."""
    samples_attempts: ClassVar[bool] = False
    """Whether its steps confirm glitch tokens by sampled attempts."""
    takes_phrases: ClassVar[bool] = False
    """Whether its `tokens` may name phrases."""
    test_cases: ClassVar[str | None] = None
    """The table whose rows are test cases of the JUnit report, with the columns `check`, `outcome`
    (pass, fail or skip) and `reason`; None for none."""

    def configure(self, params: Mapping[str, Any]) -> Any:
        """The Config of a step's parameters. Lists become tuples, so that it stays frozen."""
        return self.config_type(**{key: frozen(value) for key, value in params.items()})

    def config_of(self, step: Step) -> Any:
        """The Config of a step, with the probes that its spec defines in place of their names."""
        config = self.configure(step.params)
        if not step.probes or not getattr(config, "probes", None):
            return config
        return replace(config, probes=resolved(config.probes, step.probes))

    def problems(
        self, document: Document, index: int, step: Mapping[str, Any]
    ) -> Iterator[Problem]:
        """Problems of step `index` that the schema cannot express, with their positions.

        `step` is the step as written: it may lack parameters, and values may have a wrong type.
        """
        return iter(())

    def takes_scope(self, config: Any) -> bool:
        """Whether the step examines tokens of the experiment's scope (`tokens` in the spec)."""
        return False

    def spreads(self, config: Any) -> bool:
        """Whether several workers can share the step's work, see `Context.spread`; otherwise one
        of them executes it."""
        return False

    def steering(self, config: Any) -> frozenset[str]:
        """The thresholds that decide what the step measures, and not only its verdicts. Together
        with its parameters they belong to the step key."""
        return frozenset(("asr", "probability"))

    def uses_seed(self, config: Any) -> bool:
        """Whether the spec's seed decides what the step measures."""
        return True

    def limits(self, config: Any) -> tuple[int | None, tuple[str, ...]]:
        """How many tokens the step verifies at most, and the parameters that say so, where a
        greater limit continues the same sequence of verifications. These parameters are left out
        of the step key, so that a larger budget continues from a smaller one's verdicts."""
        return None, ()

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        """Why the step cannot run on a streamed model; None if it can.

        `params` are the parameters as written.
        """
        return None

    def stop_at(self, config: Any, count: int) -> int | None:
        """The most verifications, up to `count`, after which a search can end and a longer one
        continue from there; None where there is no such number."""
        return None

    def limited(self, config: Any, most: int) -> dict[str, Any]:
        """The parameters that a smoke run changes, so that a step examines at most `most` items.
        `Context.scope` and `Context.tokens` limit the tokens themselves."""
        controls = getattr(config, "controls", 0)
        return {"controls": most} if controls > most else {}

    def metrics(
        self, config: Any, batches: Sequence[Batch], measured: Sequence[Measured]
    ) -> Iterator[Measured]:
        """The metrics of a finished step, headline first.

        Args:
            config: The step's Config.
            batches: Its batches, judged by the run's thresholds.
            measured: The metrics that `run` yielded.
        """
        if self.metrics_code is None:
            yield from measured
        else:
            yield from self._imported(self.metrics_code)(config, batches, measured)

    def known_batches(
        self, config: Any, tokens: Sequence[Token], known: Any, threshold: float
    ) -> list[Batch] | None:
        """The batches of a step all of whose attempts are known; None if it needs the model.

        Args:
            config: The step's Config.
            tokens: The tokens that it takes from earlier steps.
            known: A `glitchrun.strategies.validate.attempts.Known`.
            threshold: `thresholds.asr`.
        """
        if self.known_code is None:
            return None
        found: list[Batch] | None = self._imported(self.known_code)(
            config, tokens, known, threshold
        )
        return found

    def work(self, config: Any, earlier: Mapping[str, int | None], vocab: int) -> Work:
        """Upper bounds on the step's work.

        Args:
            config: The step's Config.
            earlier: For each earlier step the `Work.tokens` of its bounds.
            vocab: Tokens in scope for a step that takes them, else entries of the vocabulary.
        """
        return Work(tokens=None)

    def likely_work(self, config: Any, bounds: Work, expected: Expectation) -> Work:
        """The work that the step usually does, if that is much less than its bounds."""
        return bounds

    def workloads(self, config: Any, step: str, system: int) -> Iterator[Workload]:
        """The passes of the step that may need the most memory.

        Args:
            config: The step's Config.
            step: The step's id.
            system: Positions of the spec's system text.
        """
        longest = max(PROBES[name].positions for name in STRICT)
        yield Workload(step, batch=None, positions=longest + system)

    def text_lengths(self, config: Any, prompts: Any) -> Iterator[TextLength]:
        """The lengths of the texts that the step gives to the model; by default of its `probes`.

        Args:
            config: The step's Config.
            prompts: A `glitchrun.strategies.prompt_lengths.PromptLengths`.
        """
        probes = getattr(config, "probes", None)
        new_tokens = getattr(config, "max_new_tokens", None)
        tokens = getattr(config, "tokens", None)
        return prompts.of_probes(probes, new_tokens, tokens) if probes else iter(())

    def prompt_ids(self, config: Any, context: Any) -> Iterator[tuple[str, Sequence[int]]]:
        """A description and the token ids of each prompt, without the token that it asks about.

        Args:
            config: The step's Config.
            context: A `glitchrun.strategies.context.Context`.
        """
        if self.prompt_code is not None:
            yield from self._imported(self.prompt_code)(config, context)
        elif probes := getattr(config, "probes", None):
            yield from context.prompt_ids(probes)

    def run(self, config: Any, context: Any, history: Sequence[Batch]) -> Iterator[Event]:
        """Yields the step's new facts: batches, and at the end its metrics.

        The code stores nothing and prints nothing.

        Args:
            config: The step's Config.
            context: A `glitchrun.strategies.context.Context`: the loaded model and the spec.
            history: The batches that the ledger already contains. The step continues after them.
        """
        events: Iterator[Event] = self._imported(self.code)(config, context, history)
        return events

    def _imported(self, place: str) -> Any:
        names = [name for name, strategy in STRATEGIES.items() if strategy is self]
        return STRATEGIES.code(names[0], place) if names else imported(place)


STRATEGIES = Registry("strategy", "glitchrun.strategies", Strategy, "glitchrun.strategies:BUILT_IN")
"""Every strategy by its name in the spec."""


def read_fragment(path: Path) -> Mapping[str, Any]:
    """The fragment in a JSON file. A strategy that counts severe tokens also has the metrics of the
    indicators."""
    fragment: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "severe" in fragment["x-metrics"]:
        fragment["x-metrics"] |= METRICS
    return fragment


def frozen(value: Any) -> Any:
    """`value` with lists as tuples, for a Config."""
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value
