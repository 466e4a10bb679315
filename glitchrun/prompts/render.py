"""From a template and a probe to ids: a prefix, the token's own id, a suffix.

The token never passes through text, so every entry of a vocabulary can be asked about. `intact`
tells for which tokens that makes no difference: those whose id survives encoding the whole text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from glitchrun.errors import PreflightError
from glitchrun.prompts import chat_template, conversation, reasoning
from glitchrun.prompts.conversation import Conversation
from glitchrun.prompts.template import Template, opening_ids
from glitchrun.prompts.tokenizer import (
    Tokenizer,
    decode_inside,
    encode,
    encode_all,
    encode_inside,
    joined,
    marked,
)
from glitchrun.spec.probes import TOKEN, Probe

logger = logging.getLogger(__name__)

# Stands for the token while the text is put together: letters only, so that no template alters it.
_MARK = "XglitchruntokenX"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One probe in one template, as ids around the place of the token."""

    probe: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    prefix_text: str
    """As encoded: without the ids in `added_ids`."""
    suffix_text: str
    added_ids: tuple[int, ...] = ()
    """What was put in front of the encoded text, by id: a BOS, or whatever else the tokenizer
    begins a text with; empty where the text brings it, or nothing belongs there."""
    dropped_system: str | None = None
    """The probe's system text where the template cannot carry one."""

    @property
    def position(self) -> int:
        """Where the token stands, from 0."""
        return len(self.prefix_ids)

    def ids(self, token_id: int) -> tuple[int, ...]:
        """The whole prompt for one token."""
        return (*self.prefix_ids, token_id, *self.suffix_ids)


def render(
    template: Template, probe: Probe, tokenizer: Tokenizer, system: str | None = None
) -> Prompt:
    """The probe's prompt. `system` is the spec's system text, None where it has none.

    A probe's own system text follows the spec's. Where the template carries no system text, the
    spec's is refused with PreflightError, and the probe's is left out, logged and kept in
    `Prompt.dropped_system`.
    """
    carried, dropped = _system_text(template, probe, system)
    said = Conversation(
        user=probe.user.replace(TOKEN, _MARK), earlier=probe.earlier, system=carried
    )
    prefix_text, suffix_text = _split(
        write_begun(template, said, tokenizer, probe.prefill), template
    )
    prefix_text, added_ids, prefix_ids = begin(template, prefix_text, tokenizer)
    return Prompt(
        probe=probe.name,
        prefix_ids=prefix_ids,
        suffix_ids=encode_inside(tokenizer, suffix_text),
        prefix_text=prefix_text,
        suffix_text=suffix_text,
        added_ids=added_ids,
        dropped_system=dropped,
    )


def around(
    template: Template, text: str, tokenizer: Tokenizer, system: str | None, prefill: str
) -> tuple[str, str]:
    """The prompt in which the user says `text`, as text: what comes before that, and the rest.

    `prefill` is how the assistant's answer begins. Raises PreflightError where the template refuses
    or repeats the text, or carries no system text and one is given.
    """
    carried, _ = _system_text(template, Probe("around", _MARK, prefill), system)
    said = Conversation(user=_MARK + text, system=carried)
    return _split(write_begun(template, said, tokenizer, prefill), template)


def intact(prompt: Prompt, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """For each token, whether encoding the whole prompt as text gives just the prompt's ids.

    One call encodes all texts at once; ask for the tokens at hand, not for a vocabulary.
    """
    start = len(prompt.added_ids)
    texts = [
        f"{prompt.prefix_text}{text}{prompt.suffix_text}"
        for text in decode_inside(tokenizer, token_ids)
    ]
    return [
        tuple(ids) == prompt.ids(token_id)[start:]
        for ids, token_id in zip(encode_all(tokenizer, texts), token_ids, strict=True)
    ]


def _system_text(
    template: Template, probe: Probe, system: str | None
) -> tuple[str | None, str | None]:
    """What the prompt's system text is, and what had to be dropped."""
    if template.carries_system:
        given = [text for text in (system, probe.system) if text]
        return ("\n\n".join(given) if given else system), None
    if system:
        raise PreflightError(
            f"the template {template.name} cannot carry a system text, and the spec gives one "
            f"({_shortened(system)!r}); remove `system`, or choose another `template`"
        )
    if probe.system:
        _tell_dropped(template.name, probe.name)
    return None, probe.system


@cache
def _tell_dropped(template: str, probe: str) -> None:
    """Once is enough: prompts are rendered for each step, and reports count what was dropped."""
    logger.warning(
        "template %s cannot carry a system text: probe %s is presented without its own",
        template,
        probe,
    )


def write(template: Template, said: Conversation, tokenizer: Tokenizer) -> str:
    """The conversation as the template writes it, up to where the answer begins."""
    if template.family is None:
        return chat_template.write(tokenizer, said, template.variables)
    return conversation.write(template.family, said)


def write_begun(template: Template, said: Conversation, tokenizer: Tokenizer, prefill: str) -> str:
    """The conversation, and the beginning of the answer: behind the reasoning where the tokenizer's
    chat template opens one. White space alone begins no answer."""
    text = write(template, said, tokenizer)
    if template.family is not None or not prefill.strip():
        return text + prefill
    user = said.user.strip()
    tail = text.rpartition(user)[2] if user else text
    left_open = reasoning.opened(tokenizer, tail, template.variables)
    closing = left_open.closing if left_open else None
    return f"{text}{closing or ''}{prefill}"


def begin(
    template: Template, text: str, tokenizer: Tokenizer
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """A text that opens a prompt: what of it is encoded, the ids put in front, and all the ids.

    What belongs in front of a prompt (`opening_ids`) stands there once, whether the template
    writes all of it, some or none.
    """
    opening = opening_ids(template, tokenizer)
    text = _without_repeats(text, opening, tokenizer)
    ids = encode(tokenizer, text)
    missing = _missing(opening, ids)
    if missing is None:  # it writes some of it, but not its end: all is put there by id
        text = _without_some(text, opening, tokenizer)
        ids, missing = encode(tokenizer, text), opening
    return text, missing, (*missing, *ids)


def _missing(opening: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...] | None:
    """What of `opening` has to be put in front of ids; None where they begin with a part of it that
    does not reach to its end."""
    for start in range(len(opening)):
        if ids[: len(opening) - start] == opening[start:]:
            return opening[:start]
    return None if ids and ids[0] in opening else opening


def _split(text: str, template: Template) -> tuple[str, str]:
    parts = text.split(_MARK)
    if len(parts) != 2:
        raise PreflightError(
            f"the template {template.name} writes the user's text {len(parts) - 1} times instead "
            "of once, so the token has no place of its own; choose another `template`"
        )
    return parts[0], parts[1]


def whole(
    template: Template,
    user: str,
    tokenizer: Tokenizer,
    system: str | None = None,
    prefill: str = "",
) -> tuple[str, tuple[int, ...]]:
    """The prompt in which the user says `user`, as a text and as ids, up to the next token.

    `prefill` is how the assistant's answer begins. What belongs in front stands there once.
    Tokens that `user` names by id (`<#31415>`) stand there by it, and in the text as they read.

    Raises:
        PreflightError: the template refuses the text, or carries no system text and one is given.
    """
    carried, _ = _system_text(template, Probe("whole", user, prefill), system)
    found = marked(user)
    said = Conversation(user=found.text, system=carried)
    before, *after = write_begun(template, said, tokenizer, prefill).split(found.mark)
    before, _, ids = begin(template, before, tokenizer)
    read = decode_inside(tokenizer, found.ids)
    text = before + "".join(map("".join, zip(read, after, strict=True)))
    return text, joined(ids, found.ids, after, tokenizer)


def _without_repeats(text: str, opening: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """The text with its BOS, or all that belongs in front of it, written once instead of twice."""
    for once in (tokenizer.bos_token, "".join(_written(opening, tokenizer))):
        while once and text.startswith(once * 2):
            text = text[len(once) :]
    return text


def _without_some(text: str, opening: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """The text without what it begins with of `opening`, in its order."""
    for written in _written(opening, tokenizer):
        text = text.removeprefix(written) if written else text
    return text


def _written(ids: tuple[int, ...], tokenizer: Tokenizer) -> list[str]:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return [tokenizer.decode([one], **options) for one in ids]


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
