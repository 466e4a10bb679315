"""The tokenizer's own chat template, rendered as text.

Chat templates are programs that come with the model. They may refuse a role, drop or trim a text,
or read the clock; each of these is found out here instead of passing in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glitchrun.errors import PreflightError
from glitchrun.prompts.bounded import Failed, bounded
from glitchrun.prompts.conversation import Conversation
from glitchrun.prompts.tokenizer import Tokenizer, encode
from glitchrun.spec.probes import Exchange

Variables = Mapping[str, Any]
"""What a template is given besides the conversation, such as reasoning_effort."""
_NONE: Variables = MappingProxyType({})
_GIVEN = ("messages", "add_generation_prompt", "date_string", "chat_template", "tokenize")
_MARK = "XglitchrunmarkX"
# What a template that reads the clock is told: a prompt must not change overnight. The day is the
# one that Llama's own templates fall back to.
_DAY = "26 Jul 2024"
_CLOCK = (
    "{%- macro strftime_now(format) -%}"
    "{{ format | replace('%d', '26') | replace('%-d', '26') | replace('%m', '07')"
    " | replace('%b', 'Jul') | replace('%B', 'July') | replace('%Y', '2024') | replace('%y', '24')"
    " | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '12') | replace('%M', '00') | replace('%S', '00') }}"
    "{%- endmacro -%}"
)


def write(tokenizer: Tokenizer, conversation: Conversation, variables: Variables = _NONE) -> str:
    """The conversation as the tokenizer's chat template writes it, up to where the answer begins.

    Raises PreflightError when the template refuses it.
    """
    messages = [] if conversation.system is None else [_say("system", conversation.system)]
    for turn in conversation.earlier:
        messages += [_say("user", turn.user), _say("assistant", turn.answer)]
    return _render(tokenizer, [*messages, _say("user", conversation.user)], variables)


def write_next(tokenizer: Tokenizer, user: str, variables: Variables = _NONE) -> str:
    """What the template writes between an answer and the next one: its close, and the user's turn.

    Raises PreflightError where the template refuses a second turn, or leaves earlier answers out.
    """
    said = Conversation(user=user, earlier=(Exchange("u", _MARK),))
    _, found, tail = write(tokenizer, said, variables).partition(_MARK)
    if not found:
        raise PreflightError(
            "the tokenizer's chat template leaves earlier answers out, so a conversation cannot go "
            "on in it; name a template in the spec: `glitchrun list templates`"
        )
    return tail


def rewrites(tokenizer: Tokenizer, system: str | None = None, variables: Variables = _NONE) -> bool:
    """Whether the template writes what was said before differently once the talk goes on.

    Some move the system text to the last user turn, or cut earlier answers short.
    """
    first = write(tokenizer, Conversation(user="u", system=system), variables)
    said = Conversation(user="v", earlier=(Exchange("u", _MARK),), system=system)
    return not write(tokenizer, said, variables).startswith(first + _MARK)


def fault(tokenizer: Tokenizer, variables: Variables = _NONE) -> str | None:
    """Why the template cannot be used at all: it fails on, or alters, a single user turn."""
    try:
        text = write(tokenizer, Conversation(user=_MARK), variables)
    except PreflightError as error:
        return str(error)
    if text.count(_MARK) != 1:
        return "the tokenizer's chat template does not keep the user's text as it is"
    return None


def carries_system(tokenizer: Tokenizer, variables: Variables = _NONE) -> bool:
    """False where the template refuses a system text, or drops it in silence."""
    try:
        return _MARK in write(tokenizer, Conversation(user="u", system=_MARK), variables)
    except PreflightError:
        return False


def default_system(tokenizer: Tokenizer, variables: Variables = _NONE) -> str | None:
    """The system text that the template adds by itself where none is given; None for none."""
    if not carries_system(tokenizer, variables):
        return None
    text = write(tokenizer, Conversation(user="u"), variables)
    marked = write(tokenizer, Conversation(user="u", system=_MARK), variables)
    before, _, after = marked.partition(_MARK)
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before + after):
        return text[len(before) : len(text) - len(after)] or None
    return None


def stop(tokenizer: Tokenizer, variables: Variables = _NONE) -> str | None:
    """The special token that the template closes an answer with; None where it writes none."""
    messages = [_say("user", "u"), _say("assistant", _MARK)]
    try:
        text = _render(tokenizer, messages, variables, open_answer=False)
    except PreflightError:
        return None
    _, found, tail = text.rpartition(_MARK)
    special = set(tokenizer.added_tokens_decoder)
    closing = [one for one in encode(tokenizer, tail.lstrip()) if one in special]
    return tokenizer.decode(closing[:1], skip_special_tokens=False) if found and closing else None


def write_reasoned(
    tokenizer: Tokenizer, user: str, reasoning: str, answer: str, variables: Variables
) -> str:
    """A question and an answer that was reasoned about, as the template writes them.

    Templates that know reasoning take it under one of a few names. Raises PreflightError when the
    template refuses it.
    """
    names = ("reasoning_content", "reasoning", "thinking", "thought")
    answered = {**_say("assistant", answer), **dict.fromkeys(names, reasoning)}
    return _render(tokenizer, [_say("user", user), answered], variables, open_answer=False)


def _say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def source(tokenizer: Tokenizer) -> str:
    """The text of the template, or of all where there are several; empty for none."""
    found = tokenizer.chat_template
    return "\n".join(found.values()) if isinstance(found, Mapping) else found or ""


def unread(tokenizer: Tokenizer, variables: Variables) -> list[str]:
    """The variables that the template does not mention, or that are set here in any case."""
    text = source(tokenizer)
    return [
        name
        for name in variables
        if name in _GIVEN or not re.search(rf"\b{re.escape(name)}\b", text)
    ]


def _render(
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
    variables: Variables,
    *,
    open_answer: bool = True,
) -> str:
    """The template's text, from a process with bounds on its time and memory.

    Raises PreflightError for whatever it raises, or when it goes beyond the bounds.
    """

    def work() -> str:
        template = tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=_CLOCK + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=open_answer,
            date_string=_DAY,
            **variables,
        )
        return str(text)

    try:
        return bounded(work)
    except Failed as error:
        raise PreflightError(
            f"the tokenizer's chat template fails on this conversation ({error}); "
            "name a template in the spec: `glitchrun list templates`"
        ) from error
