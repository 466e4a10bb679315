"""Chooses the template of a run, and records the rule that chose it.

`auto` tries in this order: the model's own name (the last component of its path or hub id, never a
parent folder's), the markers of families that precede chat templates, the tokenizer's chat template
if it is usable, the turn markers in the vocabulary, and the architecture. `plain` is the fallback.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from glitchrun.errors import PreflightError
from glitchrun.prompts import chat_template, reasoning
from glitchrun.prompts.template import Template, opening_ids
from glitchrun.prompts.tokenizer import Tokenizer, encode
from glitchrun.spec.templates import FAMILIES, RAW, Family
from glitchrun.spec.types import InlineTemplate

logger = logging.getLogger(__name__)


def detect(
    setting: str | InlineTemplate,
    tokenizer: Tokenizer,
    config: object,
    source: str,
    variables: Mapping[str, Any] | None = None,
) -> Template:
    """The template that the spec's `template` selects for this model; logs the rule.

    Args:
        setting: The spec's `template`.
        tokenizer: The model's tokenizer.
        config: The model's configuration: an object or a mapping with `model_type` and the rope
            settings.
        source: `model.path` as written.
        variables: The spec's `template_variables`.

    Raises:
        PreflightError: the setting is unknown; it is `tokenizer` and the chat template is missing
            or unusable; an inline template lacks `{user}`; or no template reads the variables.
    """
    template = _choose(setting, tokenizer, config, source, variables or {})
    if variables and template.family is not None:
        raise PreflightError(
            "template_variables apply only to the tokenizer's own chat template, but this run uses "
            f"{template.name} ({template.rule}); remove them, or set template: tokenizer"
        )
    stop = (template.stop or "").strip()
    if len(encode(tokenizer, stop)) > 1:
        note = f"{template.rule} Its closing text {stop!r} is not a single token."
        template = replace(template, rule=note)
    opening = opening_ids(template, tokenizer)
    if opening not in ((), (tokenizer.bos_token_id,)):
        names = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(opening))))
        note = f"{template.rule} Every prompt begins with {names}, which the tokenizer prepends."
        template = replace(template, rule=note)
    logger.info("template %s: %s", template.name, template.rule)
    return template


def _choose(
    setting: str | InlineTemplate,
    tokenizer: Tokenizer,
    config: object,
    source: str,
    variables: Mapping[str, Any],
) -> Template:
    if isinstance(setting, InlineTemplate):
        return _inline(setting, tokenizer)
    if setting == "auto":
        return _auto(tokenizer, config, source, variables)
    if setting == "tokenizer":
        rule = "The spec asks for the tokenizer's own chat template."
        return _tokenizers_own(tokenizer, rule, variables)
    family = RAW if setting == "raw" else FAMILIES.get(setting)
    if family is None:
        raise PreflightError(
            f"unknown template {setting!r}; give auto, tokenizer, raw or one of "
            f"{', '.join(FAMILIES)}, or write the format into the spec"
        )
    return _of_family(family, f"The spec names {setting}.")


def _auto(
    tokenizer: Tokenizer, config: object, source: str, variables: Mapping[str, Any]
) -> Template:
    named = family_by_name(source)
    if named is not None:
        return _of_family(named, f"The model's own name is {PurePosixPath(source).name!r}.")
    first = _by_markers(tokenizer, config, before_chat_template=True)
    if first is not None:
        return first
    skipped = ""
    if tokenizer.chat_template:
        fault = chat_template.fault(tokenizer, variables)
        if fault is None:
            return _tokenizers_own(tokenizer, "The tokenizer has a chat template.", variables)
        skipped = f" (The tokenizer's chat template was skipped: {fault}.)"
    chosen = _by_markers(tokenizer, config) or _by_architecture(tokenizer, config)
    if chosen is None:
        rule = "No chat template, no known turn markers, no known architecture: plain text."
        chosen = _of_family(FAMILIES["plain"], rule)
    return replace(chosen, rule=chosen.rule + skipped)


def family_by_name(source: str) -> Family | None:
    """The family that the model's name, the last component of `model.path`, identifies; else None.

    All other rules of `auto` read the model's contents.
    """
    component = PurePosixPath(source).name
    for family in FAMILIES.values():
        if _is_named(component, family.folder_names):
            return family
    return None


def _is_named(component: str, names: tuple[str, ...]) -> bool:
    """Whether the component is one of the names, or a name and an ending, as `x.Q4_K_M.gguf`."""
    lower = component.lower()
    return any(
        lower == name or (lower.startswith(f"{name}.") and lower.endswith(".gguf"))
        for name in names
    )


def _by_markers(
    tokenizer: Tokenizer, config: object, *, before_chat_template: bool = False
) -> Template | None:
    for family in families_marked(tokenizer):
        if family.before_chat_template == before_chat_template:
            name, because = _refine(family.name, config)
            rule = f"The vocabulary contains {' and '.join(family.markers)}{because}."
            return _of_family(FAMILIES[name], rule)
    return None


def families_marked(tokenizer: Tokenizer) -> list[Family]:
    """The families whose markers the vocabulary contains, in the order in which `auto` tries
    them."""
    vocabulary = tokenizer.get_vocab()
    return [
        family
        for family in FAMILIES.values()
        if family.markers and all(marker in vocabulary for marker in family.markers)
    ]


def _refine(name: str, config: object) -> tuple[str, str]:
    """The family of several with the same markers that the configuration indicates, and why."""
    kind = str(_setting(config, "model_type") or "")
    if name == "chatml" and kind.startswith("qwen"):
        return "qwen", f" and the architecture is {kind}"
    if name == "llama3" and _rope_type(config) == "llama3":
        return "llama3.1", " and the position encoding is Llama 3.1's"
    return name, ""


def _by_architecture(tokenizer: Tokenizer, config: object) -> Template | None:
    kind, entries = _setting(config, "model_type"), len(tokenizer)
    vocabulary = tokenizer.get_vocab()
    if "<s>" not in vocabulary or "</s>" not in vocabulary:
        return None
    if kind in ("mistral", "mixtral"):
        rule = f"The architecture is {kind}, and its vocabulary has <s> and </s>."
        return _of_family(FAMILIES["mistral"], rule)
    if kind == "llama" and 32_000 <= entries <= 32_064:
        rule = f"The architecture is llama, with Llama 2's vocabulary ({entries:,} entries)."
        return _of_family(FAMILIES["llama2"], rule)
    return None


def _of_family(family: Family, rule: str) -> Template:
    return Template(family.name, rule, family, family.carries_system, family.stop)


def _inline(setting: InlineTemplate, tokenizer: Tokenizer) -> Template:
    if setting.user.count("{user}") != 1:
        raise PreflightError(
            f"template.user {setting.user!r} must contain {{user}} exactly once, "
            "where the user's text is inserted"
        )
    family = Family(
        name="inline",
        user=setting.user,
        answer="{answer}" + (setting.stop or ""),
        system=setting.system,
        stop=setting.stop,
        bos=True,
    )
    rule = "The format is written in the spec."
    tag = reasoning.open_tag(tokenizer, setting.user.rpartition("{user}")[2])
    if tag is not None:
        rule = f"{rule} It leaves reasoning open ({tag}), so a prefill is part of the reasoning."
    return _of_family(family, rule)


def _tokenizers_own(tokenizer: Tokenizer, rule: str, variables: Mapping[str, Any]) -> Template:
    if not tokenizer.chat_template:
        raise PreflightError(
            "template is tokenizer, but this tokenizer has no chat template; "
            "give `auto` or one of `glitchrun list templates`"
        )
    unread = chat_template.unused_variables(tokenizer, variables)
    if unread:
        raise PreflightError(
            f"template_variables: the tokenizer's chat template does not read {', '.join(unread)}; "
            "remove them"
        )
    fault = chat_template.fault(tokenizer, variables)
    if fault is not None:
        raise PreflightError(f"template: tokenizer: {fault}")
    default = chat_template.default_system(tokenizer, variables)
    if default is not None:
        rule = f"{rule} If no system text is given, it adds its own: {default!r}."
    if variables:
        # Names only: a value may come from a secret environment variable.
        rule = f"{rule} The spec sets {', '.join(variables)}."
    left_open = reasoning.opened_by_template(tokenizer, variables)
    if left_open is not None:
        rule = f"{rule} {_reasoning_rule(left_open)}"
    carries = chat_template.carries_system(tokenizer, variables)
    stop = chat_template.closing_token(tokenizer, variables)
    return Template("tokenizer", rule, None, carries, stop, variables)


def _reasoning_rule(left_open: reasoning.Reasoning) -> str:
    opens = f"It opens the model's reasoning itself ({left_open.tag})"
    if left_open.closing is None:
        return (
            f"{opens}, and no text is known to close it: the prefill of a probe is part of the "
            "reasoning. Name another template for probes."
        )
    return (
        f"{opens}; the reasoning is closed before the prefill of a probe with "
        f"{left_open.closing!r}."
    )


def _setting(config: object, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _rope_type(config: object) -> Any:
    """transformers 5 calls the settings `rope_parameters`; older files `rope_scaling`."""
    rope = _setting(config, "rope_parameters") or _setting(config, "rope_scaling") or {}
    return rope.get("rope_type") if isinstance(rope, Mapping) else None
