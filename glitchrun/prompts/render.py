"""Prompts as ids: of a probe around a token (`render`), of a sequence before a text
(`render_slot`), and of a text alone (`render_text`).

Tokens and sequences are inserted by id, so every row of an embedding can be tested. `intact` and
`intact_sequences` say for which of them the prompt, encoded as text, has the same ids.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from glitchrun.errors import PreflightError
from glitchrun.prompts import chat_template, reasoning
from glitchrun.prompts.template import (
    Conversation,
    Template,
    encode_beginning,
    write_family,
)
from glitchrun.prompts.tokenizer import (
    Tokenizer,
    as_text,
    decode_inside,
    decode_runs_inside,
    encode,
    encode_all,
    encode_inside,
    joined,
    marked,
)
from glitchrun.spec.probes import TOKEN, Exchange, Probe
from glitchrun.spec.templates import RAW
from glitchrun.terminal import shortened

logger = logging.getLogger(__name__)

# Replaces the token while the template writes the text. Letters only: no template alters it.
_MARK = "XglitchruntokenX"
_RAW = Template("raw", "The probe is raw text.", RAW, carries_system=False, stop=RAW.stop)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One probe in one template: the ids before and after the tested token.

    A few-shot prompt may contain the token again: `later` says where in the suffix.
    """

    probe: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    """Everything after the first place of the token; 0 stands for the token in further places."""
    prefix_text: str
    """As encoded: without the ids in `added_ids`."""
    suffix_text: str
    """The text after the first place of the token, up to the next one."""
    added_ids: tuple[int, ...] = ()
    """The ids added before the encoded text, such as BOS; empty if the text has them itself."""
    dropped_system: str | None = None
    """The probe's system text, left out because the template cannot carry one; else None."""
    later: tuple[int, ...] = ()
    """Indices of further places of the token in `suffix_ids`."""
    later_texts: tuple[str, ...] = ()
    """The text after each of these places."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts before and after the token."""
        return (self.prefix_text, self.suffix_text, *self.later_texts)

    @property
    def position(self) -> int:
        """Index of the first place of the token in the prompt, from 0."""
        return len(self.prefix_ids)

    @property
    def tail_length(self) -> int:
        """Ids of the longest `tail`."""
        return 1 + len(self.suffix_ids)

    def ids(self, token_id: int) -> tuple[int, ...]:
        """The whole prompt for one token."""
        return (*self.prefix_ids, *self.tail(token_id))

    def tail(self, token_id: int) -> tuple[int, ...]:
        """The prompt for one token from its first place on."""
        if not self.later:
            return (token_id, *self.suffix_ids)
        suffix = list(self.suffix_ids)
        for place in self.later:
            suffix[place] = token_id
        return (token_id, *suffix)


def render(
    template: Template, probe: Probe, tokenizer: Tokenizer, system: str | None = None
) -> Prompt:
    """The prompt of a probe. `system` is the spec's system text; None if it has none.

    The texts of a raw probe are joined as they are: neither template nor `system` play a part.
    A probe's own system text follows the spec's. If the template carries no system text, the
    probe's is left out with a warning and kept in `Prompt.dropped_system`.

    Raises:
        PreflightError: the template refuses the conversation or repeats the user's text, or
            `system` is given and the template cannot carry it.
    """
    if probe.raw:
        template, system = _RAW, None
    carried, dropped = _system_text(template, probe, system)
    earlier = tuple(
        Exchange(one.user.replace(TOKEN, _MARK), one.answer.replace(TOKEN, _MARK))
        for one in probe.earlier
    )
    conversation = Conversation(
        user=probe.user.replace(TOKEN, _MARK), earlier=earlier, system=carried
    )
    text = write_with_prefill(template, conversation, tokenizer, probe.prefill)
    prefix_text, *texts = _split(text, template, probe.slots)
    prefix_text, added_ids, prefix_ids = encode_beginning(template, prefix_text, tokenizer)
    suffix_ids, later = _with_places([encode_inside(tokenizer, part) for part in texts])
    return Prompt(
        probe=probe.name,
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        prefix_text=prefix_text,
        suffix_text=texts[0],
        added_ids=added_ids,
        dropped_system=dropped,
        later=later,
        later_texts=tuple(texts[1:]),
    )


def _with_places(
    parts: Sequence[tuple[int, ...]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of the parts with a 0 between each two, and the indices of these."""
    ids, later = [*parts[0]], []
    for part in parts[1:]:
        later.append(len(ids))
        ids += [0, *part]
    return tuple(ids), tuple(later)


def as_sent(prompt: Prompt, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The texts before and after the token, and the ids that are prepended."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    added = tokenizer.decode(list(prompt.added_ids), **options) if prompt.added_ids else ""
    return (f"{added}{prompt.prefix_text}", *prompt.texts[1:])


def intact(prompt: Prompt, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """For each token, whether the whole prompt, encoded as text, has the same ids.

    All prompts are built and encoded at once, so pass a batch of tokens, not a vocabulary.
    """
    start = len(prompt.added_ids)
    found = _encoded_with(prompt, token_ids, tokenizer)
    return [
        tuple(ids) == prompt.ids(token_id)[start:]
        for ids, token_id in zip(found, token_ids, strict=True)
    ]


def encodable(prompt: Prompt, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """For each token, whether the prompt, encoded as text, has its id anywhere.

    This is Land and Bartolo's weaker condition (see `intact`).
    """
    found = _encoded_with(prompt, token_ids, tokenizer)
    return [token_id in ids for ids, token_id in zip(found, token_ids, strict=True)]


def _encoded_with(
    prompt: Prompt, token_ids: Sequence[int], tokenizer: Tokenizer
) -> list[list[int]]:
    """The ids of the whole prompt, encoded as text, for each token."""
    texts = [text.join(prompt.texts) for text in decode_inside(tokenizer, token_ids)]
    return encode_all(tokenizer, texts)


def _system_text(
    template: Template, probe: Probe, system: str | None
) -> tuple[str | None, str | None]:
    """The system text of the prompt, and the probe's own if it has to be left out."""
    if template.carries_system:
        given = [text for text in (system, probe.system) if text]
        return ("\n\n".join(given) if given else system), None
    if system:
        raise PreflightError(
            f"the template {template.name} cannot carry a system text, and the spec gives one "
            f"({shortened(system)!r}); remove `system`, or choose another `template`"
        )
    if probe.system:
        _warn_dropped(template.name, probe.name)
    return None, probe.system


@cache
def _warn_dropped(template: str, probe: str) -> None:
    """Warns once per probe: every step renders its prompts anew."""
    logger.warning(
        "template %s cannot carry a system text: probe %s is presented without its own",
        template,
        probe,
    )


def write(template: Template, conversation: Conversation, tokenizer: Tokenizer) -> str:
    """The conversation as the template writes it, up to where the answer begins.

    Raises PreflightError where the tokenizer's chat template refuses it.
    """
    if template.family is None:
        return chat_template.write(tokenizer, conversation, template.variables)
    return write_family(template.family, conversation)


def write_with_prefill(
    template: Template, conversation: Conversation, tokenizer: Tokenizer, prefill: str
) -> str:
    """The conversation and the prefill, as the template writes them.

    If the tokenizer's chat template opens the reasoning, it is closed before the prefill. A prefill
    of white space alone does not count: the model may then reason.
    """
    text = write(template, conversation, tokenizer)
    if template.family is not None or not prefill.strip():
        return text + prefill
    user = conversation.user.strip()
    tail = text.rpartition(user)[2] if user else text
    opened = reasoning.opened(tokenizer, tail, template.variables)
    closing = opened.closing if opened else None
    return f"{text}{closing or ''}{prefill}"


def render_text(
    template: Template,
    user: str,
    tokenizer: Tokenizer,
    system: str | None = None,
    prefill: str = "",
) -> tuple[str, tuple[int, ...]]:
    """The prompt with the user turn `user`, as text and as ids.

    `prefill` is the beginning of the assistant's answer. Tokens that `user` names by id
    (`<#31415>`) are inserted by id; the text contains their decoded text.

    Raises:
        PreflightError: the template refuses the text, or carries no system text and one is given.
    """
    carried, _ = _system_text(template, Probe("whole", user, prefill), system)
    found = marked(user)
    conversation = Conversation(user=found.text, system=carried)
    before, *after = write_with_prefill(template, conversation, tokenizer, prefill).split(
        found.mark
    )
    before, _, ids = encode_beginning(template, before, tokenizer)
    text = before + as_text(tokenizer, found.ids, after)
    return text, joined(ids, found.ids, after, tokenizer)


@dataclass(frozen=True, slots=True)
class Slot:
    """A prompt in two parts, between which a sequence of ids is inserted before a text.

    Without a sequence, the ids are those of the whole text. The effect of a sequence is therefore
    measured against the prompt that a user would have.
    """

    prefix_ids: tuple[int, ...]
    """Empty if the prompt begins with the text."""
    suffix_ids: tuple[int, ...]
    """At least one id."""
    prefix_text: str
    """As encoded: without the ids in `added_ids`."""
    suffix_text: str
    added_ids: tuple[int, ...]
    """The ids added before the encoded text; see `Prompt.added_ids`."""

    def ids(self, sequence: Sequence[int]) -> tuple[int, ...]:
        """The whole prompt with the sequence inserted."""
        return (*self.prefix_ids, *sequence, *self.suffix_ids)


def render_slot(
    template: Template,
    text: str,
    tokenizer: Tokenizer,
    system: str | None = None,
    prefill: str = "",
) -> Slot:
    """The prompt with the user turn `text`, with a slot for a sequence before it.

    `prefill` is the beginning of the assistant's answer. The slot is after the ids of the part
    before `text`, or before a token that contains characters of both parts.

    Raises:
        PreflightError: the template refuses, alters or repeats the text, or carries no system text
            where one is given.
    """
    before, after = _around(template, text, tokenizer, system, prefill)
    whole, added_ids, ids = encode_beginning(template, before + after, tokenizer)
    start = len(added_ids)
    pairs = zip(encode(tokenizer, whole.removesuffix(after)), ids[start:-1], strict=False)
    cut = start + len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    tail = decode_runs_inside(tokenizer, [ids[cut:]])[0]
    return Slot(
        prefix_ids=ids[:cut],
        suffix_ids=ids[cut:],
        prefix_text=whole.removesuffix(tail) if cut > start else "",
        suffix_text=tail,
        added_ids=added_ids,
    )


def intact_sequences(
    slot: Slot, sequences: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> list[bool]:
    """For each sequence, whether the whole prompt, encoded as text, has the same ids."""
    start = len(slot.added_ids)
    runs = [(*sequence, *slot.suffix_ids) for sequence in sequences]
    if slot.prefix_text:
        tails = decode_runs_inside(tokenizer, runs)
    else:  # SentencePiece decodes the first piece of a text without its space
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        tails = [tokenizer.decode(run, **options) for run in runs]
    encoded = encode_all(tokenizer, [slot.prefix_text + tail for tail in tails])
    return [
        tuple(ids) == slot.ids(sequence)[start:]
        for ids, sequence in zip(encoded, sequences, strict=True)
    ]


def _around(
    template: Template, text: str, tokenizer: Tokenizer, system: str | None, prefill: str
) -> tuple[str, str]:
    """The text of a prompt before `text`, which begins the user turn, and the rest."""
    carried, _ = _system_text(template, Probe("around", _MARK, prefill), system)
    conversation = Conversation(user=_MARK + text, system=carried)
    text = write_with_prefill(template, conversation, tokenizer, prefill)
    before, after = _split(text, template)
    return before, after


def _split(text: str, template: Template, places: int = 1) -> list[str]:
    """The text around each place of the token."""
    parts = text.split(_MARK)
    if len(parts) != places + 1:
        expected = "once" if places == 1 else f"{places} times"
        raise PreflightError(
            f"the template {template.name} writes the token {len(parts) - 1} times instead of "
            f"{expected}, so its position is not defined; choose another `template`"
        )
    return parts
