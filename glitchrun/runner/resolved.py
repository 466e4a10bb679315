"""The settings that a spec resolves to on its model, known before the weights are loaded.

These are the template of a model that is known by its name, the tokens that the tokenizer puts in
front of every text, and the tokens in scope. The spec and the checkpoint's files alone do not
determine them; the tokenizer is needed too. A setting that changes results goes into the run's key.
A spec without a token to examine is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import PreflightError
from glitchrun.plan.build import Resolved
from glitchrun.plan.work import parameters
from glitchrun.prompts.detect import families_marked, family_by_name
from glitchrun.prompts.tokenizer import Tokenizer, leading_ids
from glitchrun.runner import lengths
from glitchrun.spec.registry import imported
from glitchrun.spec.searches import SEARCHES, SearchEntry
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES
from glitchrun.spec.types import Spec, TokenScope

if TYPE_CHECKING:
    from glitchrun.vocabulary import Vocabulary

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


class Resolver:
    """Resolves specs; each tokenizer is loaded once."""

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[Path, bool], Tokenizer | None] = {}
        self._vocabularies: dict[tuple[Path, bool], Vocabulary] = {}

    def __call__(self, spec: Spec, checkpoint: Checkpoint, header: Header) -> Resolved:
        """The facts that go into the key of the spec's run, and the reason to refuse it, if any.

        A tokenizer that cannot be loaded is skipped: loading the model reports the error.
        """
        tokenizer = self._tokenizer(spec, checkpoint)
        facts: dict[str, Any] = {
            "template": _template(spec, tokenizer),
            "prefix": tokenizer and _prefix(tokenizer),
            "reasoning": tokenizer and _reasoning(spec, tokenizer),
            "gguf_converter": tokenizer and _converter(checkpoint.kind),
        }
        refusal = None
        if tokenizer is not None and _needs_vocabulary(spec):
            vocabulary = self._vocabulary(spec, checkpoint, tokenizer, header.vocab)
            facts["scope"] = _scope_change(spec, vocabulary)
            refusal = empty_scope_reason(spec, vocabulary) if _may_be_empty(spec) else None
        if tokenizer is not None and refusal is None:
            refusal = lengths.refusal(spec, tokenizer, header)
        return Resolved({name: fact for name, fact in facts.items() if fact is not None}, refusal)

    def _tokenizer(self, spec: Spec, checkpoint: Checkpoint) -> Tokenizer | None:
        path = checkpoint.path
        assert path is not None  # the plan resolves only models that are on disk
        key = (path, spec.model.trust_remote_code)
        if key not in self._tokenizers:
            self._tokenizers[key] = self._load(spec, checkpoint.kind, path)
        return self._tokenizers[key]

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

    def _vocabulary(
        self, spec: Spec, checkpoint: Checkpoint, tokenizer: Tokenizer, rows: int
    ) -> Vocabulary:
        import torch

        from glitchrun.vocabulary import Vocabulary

        assert checkpoint.path is not None
        key = (checkpoint.path, spec.model.trust_remote_code)
        if key not in self._vocabularies:  # categories do not depend on norms
            self._vocabularies[key] = Vocabulary(tokenizer, torch.zeros(rows))
        return self._vocabularies[key]


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
    """The reasoning tag that the tokenizer's chat template opens before the answer, and its end."""
    own = spec.template == "tokenizer" or (spec.template == "auto" and _template(spec) is None)
    if not (own and tokenizer.chat_template):
        return None
    from glitchrun.prompts.reasoning import opened_by_template

    try:
        found = opened_by_template(tokenizer, spec.template_variables or {})
    except PreflightError:  # loading skips or refuses a template that cannot be used
        return None
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
        if strategy.takes_scope(strategy.configure(step.params)):
            yield f"steps[{place}]", parameters(step)


def _selecting_search(params: Mapping[str, Any]) -> SearchEntry | None:
    """The step's search if it selects tokens of the scope."""
    search = SEARCHES.get(params["search"]) if "search" in params else None
    return search if search is not None and search.selects else None


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
        f"vocabulary holds {held}: {remedy}"
    )


def _shown(value: Any) -> str:
    return str(value) if len(str(value)) <= 80 else f"{str(value)[:79]}…"
