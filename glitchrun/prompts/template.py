"""The template in force: a family's format, or the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.prompts.tokenizer import Tokenizer, encode, leading_ids
from glitchrun.spec.templates import Family


@dataclass(frozen=True, slots=True)
class Template:
    """How a question is put to the model of this run."""

    name: str
    """A family's name, `tokenizer`, `raw` or `inline`."""
    rule: str
    """Why this one, as a sentence."""
    family: Family | None
    """None for the tokenizer's own chat template."""
    carries_system: bool
    stop: str | None
    """The text that ends an answer, where one is known."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What the tokenizer's own chat template is given besides the conversation."""


def stop_ids(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's EOS, and the closing text where that is one token.

    A closing text of several tokens is found in `template.stop` only.
    """
    closing = encode(tokenizer, template.stop) if template.stop else ()
    ids = set(closing) if len(closing) == 1 else set()
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def opening_ids(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What belongs in front of every prompt: the ids that the tokenizer puts in front of a text,
    or its BOS where it puts none there and the family always begins with one."""
    leading = leading_ids(tokenizer)
    if leading or template.family is None or not template.family.bos:
        return leading
    return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
