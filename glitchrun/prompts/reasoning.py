"""Reasoning that a chat template opens before the answer, and what closes it.

Templates of reasoning models end with `<think>`: whatever comes next is thought, not said. An
answer that a probe begins for the model has to stand behind the end of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from glitchrun.errors import PreflightError
from glitchrun.prompts import chat_template
from glitchrun.prompts.chat_template import Variables
from glitchrun.prompts.conversation import Conversation
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
"""How a tag's name says that it opens something, and what says that it closes it."""
_BEGINNING = re.compile("|".join(_ENDS), re.I)
_CLOSING_NAME = re.compile(r"^/|(?<![a-z])(?:end|close|suffix)(?![a-z])", re.I)
_HARMONY_ANSWER = ("<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>")
# Variables by which templates are told to leave the reasoning out.
_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "think")


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Reasoning that is open where an answer begins."""

    tag: str
    """What opens it: `<think>`."""
    closing: str | None
    """What ends it before anything is thought, as the model's own template writes that where it
    shows it; None where nothing is known to."""


@dataclass(frozen=True, slots=True)
class _Tag:
    text: str
    rest: str
    """What follows it, to the end of the prompt."""
    partners: tuple[str, ...]
    """What may close it."""
    sure: bool
    """Whether the first of these closes it by its form alone, as `</think>` does `<think>`."""


def opened(tokenizer: Tokenizer, tail: str, variables: Variables) -> Reasoning | None:
    """The reasoning that the end of a prompt leaves open; None where it leaves none.

    Args:
        tokenizer: With the chat template that wrote the prompt.
        tail: What the prompt holds behind the user's text.
        variables: What the template was given.
    """
    tag = _open_tag(tokenizer, tail)
    if tag is None:
        return None
    for closing in _shown(tokenizer, tag, variables):
        return Reasoning(tag.text, closing)
    partner = _partner(tokenizer, tag)
    if partner is None:
        return Reasoning(tag.text, None)
    gap = "" if partner == "".join(_HARMONY_ANSWER) else "\n\n"
    return Reasoning(tag.text, f"{tag.rest if tag.rest.isspace() else ''}{partner}{gap}")


def opened_by_template(tokenizer: Tokenizer, variables: Variables) -> Reasoning | None:
    """The reasoning that the tokenizer's chat template leaves open behind a single user turn."""
    text = chat_template.write(tokenizer, Conversation(user=_MARK), variables)
    return opened(tokenizer, text.rpartition(_MARK)[2], variables)


def open_tag(tokenizer: Tokenizer, tail: str) -> str | None:
    """The reasoning tag that a text leaves open; None where it leaves none."""
    tag = _open_tag(tokenizer, tail)
    return None if tag is None else tag.text


def _open_tag(tokenizer: Tokenizer, tail: str) -> _Tag | None:
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    for tag in reversed([*_tags(tail)]):
        closed = any(partner in tag.rest for partner in tag.partners)
        # A mention in the system's words is not what the answer begins behind: a turn ends first.
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
            yield _Tag(found[0], rest, ("".join(_HARMONY_ANSWER), "<|end|>"), sure=False)
        elif found["half"]:
            yield _Tag(found[0], rest, ("<channel|>",), sure=False)
        else:
            yield _Tag(found[0], rest, *_partners(found["open"], name, found["close"]))


def _partners(opening: str, name: str, closing: str) -> tuple[tuple[str, ...], bool]:
    """What may close a tag, and whether the first does so by its form."""
    bare = re.split(r"[\s=]", name, maxsplit=1)[0]
    names = [f"/{bare}", f"end_{bare}", f"{bare}_end", f"END_{bare}", f"/{bare.upper()}"]
    if _BEGINNING.search(bare):
        names.insert(0, _BEGINNING.sub(_ending, bare))
        return tuple(f"{opening}{one}{closing}" for one in names), False
    return tuple(f"{opening}{one}{closing}" for one in names), len(opening) == 1


def _ending(found: re.Match[str]) -> str:
    word = _ENDS[found[0].lower()]
    return word.upper() if found[0].isupper() else word


def _partner(tokenizer: Tokenizer, tag: _Tag) -> str | None:
    """What closes the tag where the template does not show it."""
    vocabulary, template = tokenizer.get_vocab(), chat_template.source(tokenizer)
    for one in tag.partners:
        if one == "".join(_HARMONY_ANSWER):
            marks = [part for part in _HARMONY_ANSWER if part.startswith("<")]
            known = all(mark in vocabulary for mark in marks)
        else:
            known = one in vocabulary or one in template
        if known and one != "<|end|>":
            return one
    return tag.partners[0] if tag.sure else None


def _shown(tokenizer: Tokenizer, tag: _Tag, variables: Variables) -> Iterator[str]:
    """What the template itself writes to close the tag: told to leave reasoning out, or between
    the reasoning of an earlier answer and the answer."""
    said = Conversation(user=_MARK)
    opening = f"{tag.text}{tag.rest}"
    for name in _SWITCHES:
        if name in variables or chat_template.unread(tokenizer, {name: False}):
            continue
        try:
            text = chat_template.write(tokenizer, said, {**variables, name: False})
        except PreflightError:
            continue
        _, found, closing = text.rpartition(_MARK)[2].partition(opening)
        if found and any(one in closing for one in tag.partners):
            yield closing
    try:
        text = chat_template.write_reasoned(tokenizer, _MARK, _REASON, _ANSWER, variables)
    except PreflightError:
        return
    before, _, after = text.rpartition(_MARK)[2].partition(_REASON)
    between, found, _ = after.partition(_ANSWER)
    if found and between.strip() and before.rstrip().endswith(tag.text):
        yield between
