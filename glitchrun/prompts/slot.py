"""A prompt with a place in it for any sequence of token ids, right before a text.

Without a sequence the prompt is just what the tokenizer makes of the whole text, so what a sequence
changes is measured against the prompt that a user would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from glitchrun.prompts.render import around, begin
from glitchrun.prompts.template import Template
from glitchrun.prompts.tokenizer import Tokenizer, decode_runs_inside, encode, encode_all


@dataclass(frozen=True, slots=True)
class Slot:
    """A prompt in two parts; a sequence stands between them, by id."""

    prefix_ids: tuple[int, ...]
    """Empty where the text comes first and nothing belongs in front of it."""
    suffix_ids: tuple[int, ...]
    """At least one id."""
    prefix_text: str
    """As encoded: without the ids in `added_ids`."""
    suffix_text: str
    added_ids: tuple[int, ...]
    """What was put in front of the encoded text by id; see `render.Prompt`."""

    def ids(self, sequence: Sequence[int]) -> tuple[int, ...]:
        """The whole prompt with a sequence in its place."""
        return (*self.prefix_ids, *sequence, *self.suffix_ids)


def slot(
    template: Template,
    text: str,
    tokenizer: Tokenizer,
    system: str | None = None,
    prefill: str = "",
) -> Slot:
    """The prompt in which the user says `text`, with a place before it.

    `prefill` is how the assistant's answer begins. The place is where the ids of the part before
    `text` end, or one token earlier where a token holds some of both.

    Raises:
        PreflightError: the template refuses, alters or repeats the text, or carries no system text
            where one is given.
    """
    before, after = around(template, text, tokenizer, system, prefill)
    whole, added_ids, ids = begin(template, before + after, tokenizer)
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
    place: Slot, sequences: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> list[bool]:
    """For each sequence, whether encoding the whole prompt as text gives just the prompt's ids."""
    start = len(place.added_ids)
    runs = [(*sequence, *place.suffix_ids) for sequence in sequences]
    if place.prefix_text:
        tails = decode_runs_inside(tokenizer, runs)
    else:  # at the start of a text a first piece is written without its space
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        tails = [tokenizer.decode(run, **options) for run in runs]
    encoded = encode_all(tokenizer, [place.prefix_text + tail for tail in tails])
    return [
        tuple(ids) == place.ids(sequence)[start:]
        for ids, sequence in zip(encoded, sequences, strict=True)
    ]
