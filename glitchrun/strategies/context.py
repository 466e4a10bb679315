"""The context of a step, which it receives with its Config: the model, the spec, earlier steps, and
tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from glitchrun.errors import PreflightError, RunError
from glitchrun.events import Batch, Sampled, Stage, Token
from glitchrun.probing.backend import Backend
from glitchrun.prompts.render import Prompt, render
from glitchrun.prompts.template import Template, stop_ids
from glitchrun.prompts.tokenizer import check_rows
from glitchrun.spec.digest import results_digest
from glitchrun.spec.probes import Probes, probes_of
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Spec, Step
from glitchrun.strategies.tokens import found_tokens, has_phrases, read_fitting_ids
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import Indicators
from glitchrun.vocabulary.vocabulary import excluded_from, in_scope

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
_Tool = TypeVar("_Tool")


def _ignore(stage: Stage) -> None:
    """Shows nothing."""


class Workers(Protocol):
    """The processes that hold the model and share the work of a step."""

    @property
    def size(self) -> int:
        """How many there are."""

    def map(
        self,
        context: Context,
        function: Callable[[Context, _Item], _Found],
        items: Iterable[_Item],
    ) -> Iterator[_Found]:
        """See `Context.spread`; `context` is that of the caller."""


class Alone:
    """This process alone."""

    size = 1

    def map(
        self,
        context: Context,
        function: Callable[[Context, _Item], _Found],
        items: Iterable[_Item],
    ) -> Iterator[_Found]:
        """Calls the function for one item after the other, each when its result is asked for."""
        for item in items:
            yield function(context, item)


@dataclass(frozen=True, slots=True)
class Context:
    """One loaded model, and what the spec says about using it."""

    spec: Spec
    backend: Backend
    vocabulary: Vocabulary
    template: Template
    free_bytes: int
    """Memory free on the model's device once the model is loaded."""
    earlier: Mapping[str, Sequence[Batch]]
    """The batches of the steps before this one, by step id."""
    estimate: Mapping[str, Any] | None = None
    """The plan's memory estimate, as in `plan -o json`; None without a plan."""
    path: str = ""
    """The step's path in the spec, such as `steps[0]`; empty if there is no spec file."""
    results: str = ""
    """The plan's digest of everything that decides results, files of tokens included; empty without
    a plan."""
    known: Mapping[int, Sampled] = field(default_factory=dict)
    """By token id, the attempts that other steps with the same question have sampled."""
    indicators: Indicators | None = None
    """The indicators of the model; None without a run."""
    announce: Callable[[Stage], None] = _ignore
    """Shows the stage that begins or continues; it changes no result."""
    workers: Workers = field(default_factory=Alone)
    """The processes that `spread` uses."""
    tools: dict[Any, Any] = field(default_factory=dict)
    """What `tool` has made."""

    def spread(
        self, function: Callable[[Context, _Item], _Found], items: Iterable[_Item]
    ) -> Iterator[_Found]:
        """Yields `function(context, item)` for each item, in the order of the items.

        With several workers, some items are taken and worked on ahead of the results. A worker may
        be another process on another machine. So the function is one of a module, and its result
        depends only on the model, the spec and the item; items and results can be pickled. The
        worker's context has the model and the spec of this one, but no earlier steps.
        """
        return self.workers.map(self, function, items)

    def tool(self, key: Any, make: Callable[[], _Tool]) -> _Tool:
        """What `make` returns, made once in each worker for each `key` of a step."""
        if key not in self.tools:
            self.tools[key] = make()
        made: _Tool = self.tools[key]
        return made

    def at(self, name: str) -> str:
        """The beginning of a message about a parameter of the step, such as `target` or
        `tokens.texts[2]`: its place in the spec, if known, and its name."""
        origin = (self.spec.origins or {}).get(f"{self.path}.{name}")
        return f"{origin}: {name}" if origin else name

    def prompts(self, probes: Probes) -> dict[str, Prompt]:
        """The rendered prompts by probe. `probes` is as in a Config."""
        tokenizer, system = self.backend.model.tokenizer, self.spec.system
        return {
            probe.name: render(self.template, probe, tokenizer, system)
            for probe in probes_of(probes)
        }

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer, by the template and by the model."""
        model = self.backend.model
        return stop_ids(self.template, model.tokenizer) | model.end_ids

    def prompt_ids(self, probes: Probes) -> Iterator[tuple[str, Sequence[int]]]:
        """A description and the token ids of each probe's prompt, without the token."""
        for name, prompt in self.prompts(probes).items():
            what = f"the prompt of probe {name} in template {self.template.name}"
            yield what, (*prompt.prefix_ids, *prompt.suffix_ids)

    def scope(self, *, whole: bool = False) -> list[int]:
        """Ids of the tokens that the spec's `tokens` selects, ascending.

        In a smoke run these are the first ones, up to its limit; with `whole` all of them.
        """
        ids = in_scope(self.vocabulary, self.spec.tokens)
        return ids if whole else ids[: self.spec.limit]

    def excluded(self, categories: Sequence[str]) -> frozenset[int]:
        """Tokens of the categories that `tokens.exclude` removes from the scope."""
        return excluded_from(self.vocabulary, self.spec.tokens, categories)

    def tokens(
        self, source: Mapping[str, Any], name: str = "tokens", *, whole: bool = False
    ) -> list[Token]:
        """The tokens that a step's `tokens` (or the parameter `name`) names, in that order, without
        repetitions.

        In a smoke run these are the first ones, up to its limit; with `whole` all of them.

        Raises:
            RunError: a text is not one token, an id is outside the vocabulary, or a file cannot be
                read or belongs to another vocabulary.
            PreflightError: a file has changed since the run was planned.
        """
        if has_phrases(self.earlier, source):
            raise RunError(
                f"{self.at(name)}: these are phrases, and this step takes single tokens; only test "
                "and validate take phrases"
            )
        if "ids" in source:
            ids = list(source["ids"])
        elif "texts" in source:
            ids = [
                self._id_of(text, f"{name}.texts[{place}]")
                for place, text in enumerate(source["texts"])
            ]
        elif "file" in source:
            ids = self._in_file(Path(source["file"]))
        else:
            ids = [token.id for token in found_tokens(self.earlier, source)]
        tokens = [self._token(token_id) for token_id in dict.fromkeys(ids)]
        return tokens if whole else tokens[: self.spec.limit]

    def _in_file(self, path: Path) -> list[int]:
        tokenizer = self.backend.model.tokenizer
        ids = read_fitting_ids(path, tokenizer, len(self.vocabulary), self.spec.model.path)
        if self.results and results_digest(self.spec) != self.results:
            raise PreflightError(
                f"{path} has changed since the run was planned; the results so far are for its "
                "former contents. Run apply again to start a run with the new contents"
            )
        return ids

    def _id_of(self, text: str, name: str) -> int:
        token_id = self.vocabulary.find(text)
        if token_id is None:
            reason = self.vocabulary.not_one_token(text)
            raise RunError(f"{self.at(name)}: {reason}; give an id under `ids`, or another text")
        return token_id

    def _token(self, token_id: int) -> Token:
        if not 0 <= token_id < len(self.vocabulary):
            raise RunError(
                f"token id {token_id} is outside this model's vocabulary of "
                f"{len(self.vocabulary)} entries; check the ids against the model"
            )
        return self.vocabulary.token(token_id)


def check_embedding_rows(context: Context, steps: Iterable[Step]) -> None:
    """Checks that each prompt id of the steps, and each stop id, has a row of the embedding.

    Raises:
        PreflightError: an id has none.
    """
    model = context.backend.model
    for step in steps:
        strategy = STRATEGIES[step.strategy]
        config = strategy.config_of(step)
        found = [*strategy.prompt_ids(config, context)]
        if getattr(config, "max_new_tokens", None):
            found.append(("the set of stop ids", sorted(context.stop_ids)))
        for what, ids in found:
            check_rows(ids, model.vocab_size, model.tokenizer, f"step {step.id}: {what}")
