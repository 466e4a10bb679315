"""Which template a run uses, and the rule that chose it.

`auto` asks, in this order: is the model known by its own name (the last component of its path or
hub id, never a parent folder's); does its tokenizer bring a usable chat template; which family's
turn markers are in its vocabulary; which family does its architecture suggest. `plain` is left.
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
    """The template that a spec's `template` means for this model; logs the rule.

    `config` is the model's configuration (attributes or a mapping; `model_type` and the rope
    settings are read), `source` is `model.path` as written, `variables` are for the tokenizer's own
    chat template. Raises PreflightError when `tokenizer` is asked for and its chat template is
    missing or unusable, an inline template lacks `{user}`, or variables are read by nothing.
    """
    template = _choose(setting, tokenizer, config, source, variables or {})
    if variables and template.family is not None:
        raise PreflightError(
            "template_variables are for the tokenizer's own chat template, and the template in "
            f"force is {template.name} ({template.rule}); remove them, or give template: tokenizer"
        )
    stop = (template.stop or "").strip()
    if len(encode(tokenizer, stop)) > 1:
        note = f"{template.rule} Its closing text {stop!r} is not one token here."
        template = replace(template, rule=note)
    opening = opening_ids(template, tokenizer)
    if opening not in ((), (tokenizer.bos_token_id,)):
        names = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(opening))))
        note = f"{template.rule} Every prompt begins with {names}, as the tokenizer has it."
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
            f"template {setting!r} is not known; give auto, tokenizer, raw or one of "
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
    passed_over = ""
    if tokenizer.chat_template:
        fault = chat_template.fault(tokenizer, variables)
        if fault is None:
            return _tokenizers_own(tokenizer, "The tokenizer brings a chat template.", variables)
        passed_over = f" (The tokenizer's chat template was passed over: {fault}.)"
    chosen = _by_markers(tokenizer, config) or _by_architecture(tokenizer, config)
    if chosen is None:
        rule = "No chat template, no known turn markers, no known architecture: plain text."
        chosen = _of_family(FAMILIES["plain"], rule)
    return replace(chosen, rule=chosen.rule + passed_over)


def family_by_name(source: str) -> Family | None:
    """The family of a model that is known by its own name, the last component of `model.path`;
    None for any other. The one thing that `auto` goes by and the model's contents do not say."""
    component = PurePosixPath(source).name
    for family in FAMILIES.values():
        if _is_named(component, family.folder_names):
            return family
    return None


def _is_named(component: str, names: tuple[str, ...]) -> bool:
    """The whole component, or a file of that name: `nowllm-0829`, `nowllm-0829.Q4_K_M.gguf`."""
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
            rule = f"The vocabulary holds {' and '.join(family.markers)}{because}."
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
    """Families that share their markers, told apart by the configuration."""
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
            f"template.user {setting.user!r} must hold {{user}} once: that is where the text goes"
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
        rule = f"{rule} It leaves reasoning open ({tag}): an answer that is begun stands inside it."
    return _of_family(family, rule)


def _tokenizers_own(tokenizer: Tokenizer, rule: str, variables: Mapping[str, Any]) -> Template:
    if not tokenizer.chat_template:
        raise PreflightError(
            "template: tokenizer, but this tokenizer has no chat template; "
            "give `auto` or one of `glitchrun list templates`"
        )
    unread = chat_template.unread(tokenizer, variables)
    if unread:
        raise PreflightError(
            f"template_variables: the tokenizer's chat template does not read {', '.join(unread)}; "
            "remove what it does not read"
        )
    fault = chat_template.fault(tokenizer, variables)
    if fault is not None:
        raise PreflightError(f"template: tokenizer: {fault}")
    default = chat_template.default_system(tokenizer, variables)
    if default is not None:
        rule = f"{rule} It adds a system text of its own where none is given: {default!r}."
    if variables:
        # By name alone: a value may come from a variable of the environment that is secret.
        rule = f"{rule} It is given {', '.join(variables)}, as the spec says."
    left_open = reasoning.opened_by_template(tokenizer, variables)
    if left_open is not None:
        rule = f"{rule} {_reasoning_rule(left_open)}"
    carries = chat_template.carries_system(tokenizer, variables)
    stop = chat_template.stop(tokenizer, variables)
    return Template("tokenizer", rule, None, carries, stop, variables)


def _reasoning_rule(left_open: reasoning.Reasoning) -> str:
    opens = f"It opens the model's reasoning itself ({left_open.tag})"
    if left_open.closing is None:
        return (
            f"{opens}, and nothing is known to close it: an answer that is begun for the model, as "
            "probes do, stands inside the reasoning. Name another template for these."
        )
    return (
        f"{opens}; where an answer is begun for the model, as probes do, the reasoning is closed "
        f"before it with {left_open.closing!r}."
    )


def _setting(config: object, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _rope_type(config: object) -> Any:
    """transformers 5 calls the settings `rope_parameters`; older files `rope_scaling`."""
    rope = _setting(config, "rope_parameters") or _setting(config, "rope_scaling") or {}
    return rope.get("rope_type") if isinstance(rope, Mapping) else None
