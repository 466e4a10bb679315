"""The template of a run, the ids that every prompt begins with, and the formats of the families.

The text of the tokenizer's own chat template is written by `chat_template.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glitchrun.prompts.tokenizer import Tokenizer, encode, leading_ids
from glitchrun.spec.probes import Exchange
from glitchrun.spec.templates import Family


@dataclass(frozen=True, slots=True)
class Template:
    """The template of a run: a family's format, or the tokenizer's own chat template."""

    name: str
    """A family's name, `tokenizer`, `raw` or `inline`."""
    rule: str
    """Why this template was chosen, in sentences."""
    family: Family | None
    """None for the tokenizer's own chat template."""
    carries_system: bool
    stop: str | None
    """The text that ends an answer; None if it is unknown."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """The spec's `template_variables`, passed to the tokenizer's own chat template."""


def stop_ids(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's EOS, and the closing text if it is one token.

    A closing text of several tokens has no id here; compare answers with `template.stop`.
    """
    closing = encode(tokenizer, template.stop) if template.stop else ()
    ids = set(closing) if len(closing) == 1 else set()
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def opening_ids(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that every prompt begins with.

    These are the ids that the tokenizer prepends to a text. If it prepends none and the family
    always begins with BOS, it is the BOS.
    """
    leading = leading_ids(tokenizer)
    if leading or template.family is None or not template.family.bos:
        return leading
    return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)


def encode_beginning(
    template: Template, text: str, tokenizer: Tokenizer
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Encodes the beginning of a prompt, so that it begins with `opening_ids` exactly once.

    The template may write all of these ids as text, some of them or none. Returns the text that was
    encoded, the ids that were added before it, and all ids.
    """
    opening = opening_ids(template, tokenizer)
    text = _without_repeats(text, opening, tokenizer)
    ids = encode(tokenizer, text)
    missing = _missing(opening, ids)
    if missing is None:  # the text begins with a part of it, not with its end
        text = _without_some(text, opening, tokenizer)
        ids, missing = encode(tokenizer, text), opening
    return text, missing, (*missing, *ids)


def _missing(opening: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...] | None:
    """The part of `opening` that is missing before `ids`.

    None if `ids` begin with a part of it other than its end, so that nothing can be prepended.
    """
    for start in range(len(opening)):
        if ids[: len(opening) - start] == opening[start:]:
            return opening[:start]
    return None if ids and ids[0] in opening else opening


def _without_repeats(text: str, opening: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """The text without repetitions of BOS, or of the whole opening, at its beginning."""
    for once in (tokenizer.bos_token, "".join(_written(opening, tokenizer))):
        while once and text.startswith(once * 2):
            text = text[len(once) :]
    return text


def _without_some(text: str, opening: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """The text without those tokens of `opening` with which it begins."""
    for written in _written(opening, tokenizer):
        text = text.removeprefix(written) if written else text
    return text


def _written(ids: tuple[int, ...], tokenizer: Tokenizer) -> list[str]:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return [tokenizer.decode([one], **options) for one in ids]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns before the answer to be measured."""

    user: str
    earlier: Sequence[Exchange] = ()
    system: str | None = None
    """None for no system turn; an empty text is an empty system turn."""


def write_family(family: Family, conversation: Conversation) -> str:
    """The conversation as text, without BOS, up to where the answer begins.

    If the family carries no system text, it is left out; the caller checks that before.
    """
    system = conversation.system
    if system is None:
        system = family.default_system
    texts = [turn.user for turn in conversation.earlier] + [conversation.user]
    parts = [family.opening]
    if system is not None and family.system is not None:
        parts.append(_fill(family.system, "{system}", system))
    elif system is not None and family.system_in_user is not None:
        texts[0] = _wrap(family.system_in_user, system, texts[0])
    for text, turn in zip(texts, conversation.earlier, strict=False):
        parts.append(_fill(family.user, "{user}", text))
        parts.append(_fill(family.answer, "{answer}", turn.answer))
    parts.append(_fill(family.user, "{user}", texts[-1]))
    return "".join(parts)


def write_family_next(family: Family, user: str, *, closed: bool) -> str:
    """The text between an answer and the next one: the end of the answer, and the next user turn.

    `closed` says that the answer itself already ends with the family's closing text.
    """
    closing = family.answer.partition("{answer}")[2]
    if closed and family.stop:
        closing = closing.partition(family.stop)[2]
    return closing + _fill(family.user, "{user}", user)


def _fill(pattern: str, name: str, text: str) -> str:
    """Replaces one placeholder. Unlike `str.format`, this keeps braces in the texts."""
    before, _, after = pattern.partition(name)
    return f"{before}{text}{after}"


def _wrap(pattern: str, system: str, user: str) -> str:
    before, _, after = pattern.partition("{user}")
    return _fill(before, "{system}", system) + user + after
