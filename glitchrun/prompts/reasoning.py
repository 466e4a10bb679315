"""Reasoning that a chat template opens before the answer, and the text that closes it.

Templates of reasoning models end with `<think>`: the text after it is reasoning, not an answer. A
probe's prefill must therefore follow the end of the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from glitchrun.errors import PreflightError
from glitchrun.prompts import chat_template
from glitchrun.prompts.chat_template import Variables
from glitchrun.prompts.template import Conversation
from glitchrun.prompts.tokenizer import Tokenizer, encode

_MARK = "XglitchrunmarkX"
_REASON, _ANSWER = "XglitchrunreasonX", "XglitchrunanswerX"
_WORD = re.compile(
    r"think|thought|reason|reflect|analy[sz]|scratch|deliberat|ponder|rationale|monologue|inner"
    r"|(?<![a-z])cot(?![a-z])",
    re.I,
)
# `<think>`, `<seed:think>`, `<|START_THINKING|>`, `[THINK]`, `◁think▷`, and the channels of harmony
# (`<|channel|>analysis<|message|>`) and of Gemma (`<|channel>thought`).
_TAG = re.compile(
    r"(?P<channel><\|channel\|>(?P<in_channel>\w+)[^<>]*<\|message\|>)"
    r"|(?P<half><\|channel>(?P<in_half>\w+))"
    r"|(?P<open><[|｜]|[<\[◁])(?P<name>/?[^\s<>\[\]|｜◁▷][^<>\[\]|｜◁▷\n]*)(?P<close>[|｜]>|[>\]▷])"
)
_ENDS = {"start": "end", "begin": "end", "open": "close", "prefix": "suffix"}
"""Words in the names of opening tags, and those of the closing tags."""
_BEGINNING = re.compile("|".join(_ENDS), re.I)
_CLOSING_NAME = re.compile(r"^/|(?<![a-z])(?:end|close|suffix)(?![a-z])", re.I)
_HARMONY_ANSWER = ("<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>")
# Variables that disable the reasoning in common templates.
_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "think")


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Reasoning that is open where an answer begins."""

    tag: str
    """The opening tag: `<think>`."""
    closing: str | None
    """The text that ends empty reasoning, as the template writes it if it does; None if unknown."""


@dataclass(frozen=True, slots=True)
class _Tag:
    text: str
    rest: str
    """The text from the tag to the end of the prompt."""
    closings: tuple[str, ...]
    """Tags that may close it."""
    certain: bool
    """Whether the form of the first one shows that it closes the tag, as `</think>` does."""


def opened(tokenizer: Tokenizer, tail: str, variables: Variables) -> Reasoning | None:
    """The reasoning that is open at the end of a prompt; None if none is.

    Args:
        tokenizer: Its chat template wrote the prompt.
        tail: The part of the prompt after the user's text.
        variables: The variables of the template.
    """
    tag = _open_tag(tokenizer, tail)
    if tag is None:
        return None
    for closing in _closings_in_template(tokenizer, tag, variables):
        return Reasoning(tag.text, closing)
    closing_tag = _known_closing(tokenizer, tag)
    if closing_tag is None:
        return Reasoning(tag.text, None)
    gap = "" if closing_tag == "".join(_HARMONY_ANSWER) else "\n\n"
    return Reasoning(tag.text, f"{tag.rest if tag.rest.isspace() else ''}{closing_tag}{gap}")


def opened_by_template(tokenizer: Tokenizer, variables: Variables) -> Reasoning | None:
    """The reasoning that the chat template leaves open after a single user turn; None for none.

    Raises PreflightError when the template refuses a single user turn.
    """
    text = chat_template.write(tokenizer, Conversation(user=_MARK), variables)
    return opened(tokenizer, text.rpartition(_MARK)[2], variables)


def open_tag(tokenizer: Tokenizer, tail: str) -> str | None:
    """The reasoning tag that a text leaves open; None if there is none."""
    tag = _open_tag(tokenizer, tail)
    return None if tag is None else tag.text


def _open_tag(tokenizer: Tokenizer, tail: str) -> _Tag | None:
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    for tag in reversed([*_tags(tail)]):
        closed = any(closing_tag in tag.rest for closing_tag in tag.closings)
        # A tag that the system text merely mentions does not count: a special token follows it.
        if not closed and not special.intersection(encode(tokenizer, tag.rest)):
            return tag
    return None


def _tags(text: str) -> Iterator[_Tag]:
    for found in _TAG.finditer(text):
        name = found["in_channel"] or found["in_half"] or found["name"]
        if not _WORD.search(name) or _CLOSING_NAME.search(name):
            continue
        rest = text[found.end() :]
        if found["channel"]:
            yield _Tag(found[0], rest, ("".join(_HARMONY_ANSWER), "<|end|>"), certain=False)
        elif found["half"]:
            yield _Tag(found[0], rest, ("<channel|>",), certain=False)
        else:
            yield _Tag(found[0], rest, *_closings(found["open"], name, found["close"]))


def _closings(opening: str, name: str, closing: str) -> tuple[tuple[str, ...], bool]:
    """Tags that may close a tag, and whether the first does so for certain."""
    bare = re.split(r"[\s=]", name, maxsplit=1)[0]
    names = [f"/{bare}", f"end_{bare}", f"{bare}_end", f"END_{bare}", f"/{bare.upper()}"]
    if _BEGINNING.search(bare):
        names.insert(0, _BEGINNING.sub(_ending, bare))
        return tuple(f"{opening}{one}{closing}" for one in names), False
    return tuple(f"{opening}{one}{closing}" for one in names), len(opening) == 1


def _ending(found: re.Match[str]) -> str:
    word = _ENDS[found[0].lower()]
    return word.upper() if found[0].isupper() else word


def _known_closing(tokenizer: Tokenizer, tag: _Tag) -> str | None:
    """The closing tag, if the template does not show it."""
    vocabulary, template = tokenizer.get_vocab(), chat_template.source(tokenizer)
    for one in tag.closings:
        if one == "".join(_HARMONY_ANSWER):
            marks = [part for part in _HARMONY_ANSWER if part.startswith("<")]
            known = all(mark in vocabulary for mark in marks)
        else:
            known = one in vocabulary or one in template
        if known and one != "<|end|>":
            return one
    return tag.closings[0] if tag.certain else None


def _closings_in_template(tokenizer: Tokenizer, tag: _Tag, variables: Variables) -> Iterator[str]:
    """The texts with which the template itself closes the tag.

    It writes one when reasoning is disabled, or between the reasoning and the answer of an earlier
    turn.
    """
    conversation = Conversation(user=_MARK)
    opening = f"{tag.text}{tag.rest}"
    for name in _SWITCHES:
        if name in variables or chat_template.unused_variables(tokenizer, {name: False}):
            continue
        try:
            text = chat_template.write(tokenizer, conversation, {**variables, name: False})
        except PreflightError:
            continue
        _, found, closing = text.rpartition(_MARK)[2].partition(opening)
        if found and any(one in closing for one in tag.closings):
            yield closing
    try:
        text = chat_template.write_reasoned(tokenizer, _MARK, _REASON, _ANSWER, variables)
    except PreflightError:
        return
    before, _, after = text.rpartition(_MARK)[2].partition(_REASON)
    between, found, _ = after.partition(_ANSWER)
    if found and between.strip() and before.rstrip().endswith(tag.text):
        yield between
