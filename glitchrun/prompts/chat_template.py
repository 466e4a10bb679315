"""The tokenizer's own chat template, rendered as text.

Chat templates are programs that come with the model. They may refuse a role, drop or trim a text,
or read the clock. This module detects each of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glitchrun.errors import PreflightError
from glitchrun.prompts.bounded_process import WorkFailed, run_bounded
from glitchrun.prompts.template import Conversation
from glitchrun.prompts.tokenizer import Tokenizer, encode
from glitchrun.spec.probes import Exchange

Variables = Mapping[str, Any]
"""Variables of a template besides the conversation, such as reasoning_effort."""
_NONE: Variables = MappingProxyType({})
_RESERVED = ("messages", "add_generation_prompt", "date_string", "chat_template", "tokenize")
_MARK = "XglitchrunmarkX"
# Templates that read the clock receive this fixed date, so that prompts do not depend on the day.
# It is the default date of Llama's templates.
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
    messages = [] if conversation.system is None else [_message("system", conversation.system)]
    for turn in conversation.earlier:
        messages += [_message("user", turn.user), _message("assistant", turn.answer)]
    return _render(tokenizer, [*messages, _message("user", conversation.user)], variables)


def write_next(tokenizer: Tokenizer, user: str, variables: Variables = _NONE) -> str:
    """The text that the template writes between an answer and the next one.

    It is the end of the answer and the next user turn. Raises PreflightError where the template
    refuses a second turn, or leaves earlier answers out.
    """
    conversation = Conversation(user=user, earlier=(Exchange("u", _MARK),))
    _, found, tail = write(tokenizer, conversation, variables).partition(_MARK)
    if not found:
        raise PreflightError(
            "the tokenizer's chat template leaves earlier answers out, so it cannot continue a "
            "conversation; name a template in the spec: `glitchrun list templates`"
        )
    return tail


def rewrites_history(
    tokenizer: Tokenizer, system: str | None = None, variables: Variables = _NONE
) -> bool:
    """Whether the template writes earlier turns differently when another turn follows.

    Some templates move the system text to the last user turn, or shorten earlier answers. Raises
    PreflightError when the template refuses the conversation.
    """
    first = write(tokenizer, Conversation(user="u", system=system), variables)
    conversation = Conversation(user="v", earlier=(Exchange("u", _MARK),), system=system)
    return not write(tokenizer, conversation, variables).startswith(first + _MARK)


def fault(tokenizer: Tokenizer, variables: Variables = _NONE) -> str | None:
    """Why the template is unusable; None if it writes a single user turn unaltered."""
    try:
        text = write(tokenizer, Conversation(user=_MARK), variables)
    except PreflightError as error:
        return str(error)
    if text.count(_MARK) != 1:
        return "the tokenizer's chat template does not keep the user's text as it is"
    return None


def carries_system(tokenizer: Tokenizer, variables: Variables = _NONE) -> bool:
    """Whether the template writes a system text, instead of refusing or dropping it."""
    try:
        return _MARK in write(tokenizer, Conversation(user="u", system=_MARK), variables)
    except PreflightError:
        return False


def default_system(tokenizer: Tokenizer, variables: Variables = _NONE) -> str | None:
    """The system text that the template adds if none is given; None if it adds none.

    Raises PreflightError when the template refuses a single user turn.
    """
    if not carries_system(tokenizer, variables):
        return None
    text = write(tokenizer, Conversation(user="u"), variables)
    marked = write(tokenizer, Conversation(user="u", system=_MARK), variables)
    before, _, after = marked.partition(_MARK)
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before + after):
        return text[len(before) : len(text) - len(after)] or None
    return None


def closing_token(tokenizer: Tokenizer, variables: Variables = _NONE) -> str | None:
    """The special token with which the template closes an answer; None if it writes none."""
    messages = [_message("user", "u"), _message("assistant", _MARK)]
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
    """A question, the reasoning and the answer, as the template writes them.

    Templates read the reasoning from one of several message fields. Raises PreflightError when the
    template refuses it.
    """
    names = ("reasoning_content", "reasoning", "thinking", "thought")
    answered = {**_message("assistant", answer), **dict.fromkeys(names, reasoning)}
    return _render(tokenizer, [_message("user", user), answered], variables, open_answer=False)


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def source(tokenizer: Tokenizer) -> str:
    """The source of the tokenizer's chat templates; empty if it has none."""
    found = tokenizer.chat_template
    return "\n".join(found.values()) if isinstance(found, Mapping) else found or ""


def unused_variables(tokenizer: Tokenizer, variables: Variables) -> list[str]:
    """The variables that the template does not read, or that glitchrun always sets itself."""
    text = source(tokenizer)
    return [
        name
        for name in variables
        if name in _RESERVED or not re.search(rf"\b{re.escape(name)}\b", text)
    ]


def _render(
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
    variables: Variables,
    *,
    open_answer: bool = True,
) -> str:
    """Renders the template in a process with limits on time and memory.

    Raises PreflightError if the template raises an error or exceeds a limit.
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
        return run_bounded(work)
    except WorkFailed as error:
        raise PreflightError(
            f"the tokenizer's chat template fails on this conversation ({error}); "
            "name a template in the spec: `glitchrun list templates`"
        ) from error
