"""The settings that a spec resolves to on its model, known before the weights are loaded.

These are the template of a model that is known by its name, the tokens that the tokenizer puts in
front of every text, and the tokens in scope. The spec and the checkpoint's files alone do not
determine them; the tokenizer is needed too, unless `resolved_cache` has its answers. A setting that
changes results goes into the run's key. A spec without a token to examine is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import PreflightError, RunError
from glitchrun.plan.build import Resolved
from glitchrun.plan.work import parameters
from glitchrun.prompts.detect import families_marked, family_by_name
from glitchrun.prompts.tokenizer import Tokenizer, leading_ids
from glitchrun.runner import lengths
from glitchrun.runner.resolved_cache import Answers
from glitchrun.spec.registry import imported
from glitchrun.spec.searches import SEARCHES, SearchEntry
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES
from glitchrun.spec.types import InlineTemplate, Spec, TokenScope

if TYPE_CHECKING:
    from glitchrun.vocabulary import Vocabulary

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_PROMPT_KEYS = ("template", "template_variables", "system", "probes")
"""Keys of a spec that decide the prompts of its probes."""
_TEXT_PARAMETERS = ("probes", "prompts", "formats", "max_new_tokens")
"""Parameters of a step that decide the lengths of its texts."""


class Resolver:
    """Resolves specs; each tokenizer is loaded once, and only for what was not answered before."""

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[Path, bool], Tokenizer | None] = {}
        self._vocabularies: dict[tuple[Path, bool], Vocabulary] = {}
        self._answers: dict[str | None, Answers] = {}

    def __call__(
        self, spec: Spec, checkpoint: Checkpoint, header: Header, fingerprint: str | None = None
    ) -> Resolved:
        """The facts that go into the key of the spec's run, and the reason to refuse it, if any.

        A tokenizer that cannot be loaded is skipped: loading the model reports the error.

        Args:
            spec: The spec.
            checkpoint: Its model, on this machine.
            header: What the model's files contain.
            fingerprint: Of the model's contents, by which answers are kept; None keeps none.
        """
        if spec.model.trust_remote_code:  # the model's own code may read anything
            fingerprint = None
        if fingerprint not in self._answers:
            self._answers[fingerprint] = Answers(fingerprint)
        question = _Question(self, spec, checkpoint, header, self._answers[fingerprint])
        try:
            return question.resolved()
        except _NoTokenizer:
            named = _template(spec)
            return Resolved({} if named is None else {"template": named})

    def tokenizer(self, spec: Spec, checkpoint: Checkpoint) -> Tokenizer:
        """The tokenizer of a checkpoint.

        Raises:
            _NoTokenizer: it cannot be loaded.
        """
        path = checkpoint.path
        assert path is not None  # the plan resolves only models that are on disk
        key = (path, spec.model.trust_remote_code)
        if key not in self._tokenizers:
            self._tokenizers[key] = self._load(spec, checkpoint.kind, path)
        found = self._tokenizers[key]
        if found is None:
            raise _NoTokenizer
        return found

    def _load(self, spec: Spec, kind: str, path: Path) -> Tokenizer | None:
        if kind == "folder" and not any((path / name).is_file() for name in _TOKENIZERS):
            return None
        try:
            from glitchrun.model.tokenizer_loading import checkpoint_tokenizer

            tokenizer: Tokenizer = checkpoint_tokenizer(
                path, trust_remote_code=spec.model.trust_remote_code
            )
        except (PreflightError, ModuleNotFoundError):
            return None
        return tokenizer

    def vocabulary(self, spec: Spec, checkpoint: Checkpoint, rows: int) -> Vocabulary:
        """The vocabulary of a checkpoint with `rows` entries, without norms."""
        import torch

        from glitchrun.vocabulary import Vocabulary

        assert checkpoint.path is not None
        key = (checkpoint.path, spec.model.trust_remote_code)
        if key not in self._vocabularies:  # categories do not depend on norms
            self._vocabularies[key] = Vocabulary(
                self.tokenizer(spec, checkpoint), torch.zeros(rows)
            )
        return self._vocabularies[key]


class _NoTokenizer(Exception):
    """The tokenizer cannot be loaded."""


class _Refused(Exception):
    """The spec is refused. The message names places in the spec, so it is not kept."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What one spec resolves to on one checkpoint."""

    resolver: Resolver
    spec: Spec
    checkpoint: Checkpoint
    header: Header
    answers: Answers

    def resolved(self) -> Resolved:
        """The facts, the refusal and the scopes."""
        facts = {name: fact for name, fact in self._facts() if fact is not None}
        try:
            scopes = self._scopes() if any(_scoped_steps(self.spec)) else {}
            self._check_phrases()
            self._check_lengths()
        except _Refused as refused:
            return Resolved(facts, str(refused))
        return Resolved(facts, None, scopes, self._positions())

    def _facts(self) -> Iterator[tuple[str, Any]]:
        spec, get = self.spec, self.answers.get
        template = (
            asdict(spec.template) if isinstance(spec.template, InlineTemplate) else spec.template
        )
        named = [template, str(spec.model.path)]
        # Answered first, because it also says whether there is a tokenizer.
        prefix = get("prefix", None, lambda: _prefix(self._tokenizer))
        yield "template", get("template", named, lambda: _template(spec, self._tokenizer))
        yield "prefix", prefix
        settings = [*named, spec.template_variables]
        # Loading skips or refuses a template that cannot be used. It may only have been slow, so
        # nothing is kept.
        with suppress(PreflightError):
            yield "reasoning", get("reasoning", settings, lambda: _reasoning(spec, self._tokenizer))
        kind = self.checkpoint.kind
        yield "gguf_converter", get("gguf_converter", kind, lambda: _converter(kind))
        if _needs_vocabulary(spec):
            wanted = [sorted(spec.tokens.categories), _has_controls(spec)]
            yield "scope", get("scope", wanted, lambda: _scope_change(spec, self._vocabulary))

    def _scopes(self) -> dict[str, int]:
        """By step, the number of tokens in scope that it may examine."""
        spec = self.spec
        scoped = list(_scoped_steps(spec))
        selections = [_selection(params) for _, params in scoped]
        settings = [asdict(spec.tokens), selections]

        def counted() -> list[int]:
            if refusal := _may_be_empty(spec) and empty_scope_reason(spec, self._vocabulary):
                raise _Refused(refusal)
            return [_size(spec, self._vocabulary, params) for _, params in scoped]

        sizes = self.answers.get("scopes", settings, counted)
        return {params["id"]: size for (_, params), size in zip(scoped, sizes, strict=True)}

    def _positions(self) -> tuple[int, int] | None:
        """The largest number of positions of a probe's shared prefix, and of the rest of its
        prompt, if the model may be streamed."""
        spec = self.spec
        if spec.model.residency == "resident":
            return None

        def measured() -> tuple[int, int] | None:
            return lengths.parts(spec, self._tokenizer, self.header)

        written = {key: spec.document.get(key) for key in _PROMPT_KEYS}
        steps = [[step.strategy, *map(step.params.get, _TEXT_PARAMETERS)] for step in spec.steps]
        settings = [written, steps, str(spec.model.path)]
        found = self.answers.get("positions", settings, measured)
        return None if found is None else (found[0], found[1])

    def _check_phrases(self) -> None:
        """Raises _Refused where a step names a phrase that cannot be examined."""
        spec, found = self.spec, []
        for place, step in enumerate(self.spec.steps):
            tokens = step.params.get("tokens")
            source = tokens.get("phrases") if isinstance(tokens, Mapping) else None
            if source is not None and "pairs" not in source:
                found.append((f"steps[{place}]", source))
        if not found:
            return

        def checked() -> None:
            from glitchrun.strategies.phrases import given_phrases

            for path, source in found:

                def at(name: str, path: str = path) -> str:
                    origin = (spec.origins or {}).get(f"{path}.{name}")
                    return f"{origin}: {path}.{name}" if origin else f"{path}.{name}"

                try:
                    list(given_phrases(source, self._tokenizer, self.header.vocab, at))
                except RunError as error:
                    raise _Refused(str(error)) from error

        self.answers.get("phrases", found, checked)

    def _check_lengths(self) -> None:
        """Raises _Refused where a text is longer than the model's positions."""
        spec = self.spec
        if not lengths.has_fixed_positions(self.header):
            return

        def checked() -> None:
            if refusal := lengths.refusal(spec, self._tokenizer, self.header):
                raise _Refused(refusal)

        self.answers.get("lengths", [spec.document, str(spec.model.path)], checked)

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.resolver.tokenizer(self.spec, self.checkpoint)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self.resolver.vocabulary(self.spec, self.checkpoint, self.header.vocab)


def _template(spec: Spec, tokenizer: Tokenizer | None = None) -> Any:
    """The family that `auto` chooses by the model's name or from another package; None if it
    follows from the tokenizer's files and the configuration."""
    if spec.template != "auto":
        return None
    named = family_by_name(spec.model.path)
    marked = families_marked(tokenizer) if tokenizer else []
    outside = (family for family in marked if FAMILIES.origin(family.name))
    family = named or next(outside, None)
    if family is None:
        return None
    package = FAMILIES.origin(family.name)
    return family.format() | ({"package": package} if package else {})


def _prefix(tokenizer: Tokenizer) -> list[int] | None:
    """The ids that the tokenizer puts in front of a text; None for nothing or BOS alone."""
    ids = leading_ids(tokenizer)
    return None if ids in ((), (tokenizer.bos_token_id,)) else list(ids)


def _reasoning(spec: Spec, tokenizer: Tokenizer) -> list[str | None] | None:
    """The reasoning tag that the tokenizer's chat template opens before the answer, and its end.

    Raises:
        PreflightError: the template cannot be used, or takes too long.
    """
    own = spec.template == "tokenizer" or (spec.template == "auto" and _template(spec) is None)
    if not (own and tokenizer.chat_template):
        return None
    from glitchrun.prompts.reasoning import opened_by_template

    found = opened_by_template(tokenizer, spec.template_variables or {})
    return None if found is None else [found.tag, found.closing]


def _converter(kind: str) -> int | None:
    """The version of the GGUF converter; None for the first version or another kind."""
    if kind != "gguf":
        return None
    from glitchrun.model.gguf_conversion import CONVERTER

    return CONVERTER if CONVERTER > 1 else None


def _scope_change(spec: Spec, vocabulary: Vocabulary) -> str | None:
    """A digest of the tokens in the spec's scope whose category the new rule changed; None if
    there is none, or if the vocabulary records no change."""
    change = getattr(vocabulary, "scope_change", None)
    categories = {*spec.tokens.categories, *(("normal",) if _has_controls(spec) else ())}
    found: str | None = change(sorted(categories)) if change else None
    return found


def _has_controls(spec: Spec) -> bool:
    """Whether a step draws control tokens from the vocabulary."""
    return any(parameters(step).get("controls") for step in spec.steps)


def _needs_vocabulary(spec: Spec) -> bool:
    return any(_scoped_steps(spec)) or _has_controls(spec)


def _may_be_empty(spec: Spec) -> bool:
    """Whether a step takes tokens from a scope other than all normal tokens."""
    return any(
        spec.tokens != TokenScope() or _selecting_search(params) is not None
        for _, params in _scoped_steps(spec)
    )


def _scoped_steps(spec: Spec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and parameters of each step that takes its tokens from the spec's scope."""
    for place, step in enumerate(spec.steps):
        strategy = STRATEGIES[step.strategy]
        if strategy.takes_scope(strategy.config_of(step)):
            yield f"steps[{place}]", parameters(step)


def _selecting_search(params: Mapping[str, Any]) -> SearchEntry | None:
    """The step's search if it selects tokens of the scope."""
    search = SEARCHES.get(params["search"]) if "search" in params else None
    return search if search is not None and search.selects else None


def _selection(params: Mapping[str, Any]) -> list[Any] | None:
    """The search of a step that selects tokens, and its parameters; None for any other step."""
    search = _selecting_search(params)
    if search is None:
        return None
    names = (search.needs[0], "sample_rate", "sample_size")
    return [params["search"], *(params.get(name) for name in names)]


def _size(spec: Spec, vocabulary: Vocabulary, params: Mapping[str, Any]) -> int:
    """The number of tokens in scope that a step may examine."""
    from glitchrun.vocabulary.vocabulary import in_scope

    ids = in_scope(vocabulary, spec.tokens)
    search = _selecting_search(params)
    if search is None:
        return len(ids)
    parts = imported(search.selects)(ids, vocabulary.text, params[search.needs[0]])
    rate, most = params.get("sample_rate"), params.get("sample_size")
    drawn = [len(part) if rate is None else math.ceil(rate * len(part)) for part in parts]
    drawn = [size if most is None else min(size, most) for size in drawn]
    return min(len({token_id for part in parts for token_id in part}), sum(drawn))


def empty_scope_reason(spec: Spec, vocabulary: Vocabulary) -> str | None:
    """Why a step of the spec has no token to examine, with its place; None if each has one."""
    from glitchrun.vocabulary.vocabulary import category_counts, in_scope

    ids: list[int] | None = None
    for path, params in _scoped_steps(spec):
        ids = in_scope(vocabulary, spec.tokens) if ids is None else ids
        if not ids:
            return _empty_scope(spec, vocabulary, category_counts(vocabulary))
        search = _selecting_search(params)
        if search is None:
            continue
        name = search.needs[0]
        if not any(imported(search.selects)(ids, vocabulary.text, params[name])):
            place = (spec.origins or {}).get(f"{path}.{name}", path)
            ends = f"ids {ids[0]:,} to {ids[-1]:,}"
            return (
                f"{place}: none of the {len(ids):,} tokens in scope ({ends}) is selected by "
                f"{name} {_shown(params[name])}; correct it, or widen tokens.categories"
            )
    return None


def _empty_scope(spec: Spec, vocabulary: Vocabulary, held: str) -> str:
    origins, scope = spec.origins or {}, spec.tokens
    named = len(vocabulary.ids(scope.categories))
    part = "exclude" if named else "categories"
    place = next((origins[at] for at in (f"tokens.{part}", "tokens") if at in origins), "tokens")
    if named:
        what = f"exclude leaves none of the {named:,} tokens of the categories"
    else:
        what = "no token is of the categories"
    remedy = "exclude less" if named else "name categories that it has"
    return (
        f"{place}: nothing is in scope: {what} {', '.join(scope.categories)}; this model's "
        f"vocabulary contains {held}: {remedy}"
    )


def _shown(value: Any) -> str:
    return str(value) if len(str(value)) <= 80 else f"{str(value)[:79]}…"
