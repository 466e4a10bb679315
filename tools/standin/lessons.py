"""The training data of a stand-in as ids: each probe with every token, and the exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.prompts.render import Prompt, render
from glitchrun.prompts.template import Conversation, Template, write_family
from glitchrun.prompts.tokenizer import encode, encode_inside
from glitchrun.spec.probes import STRICT, probes_of
from glitchrun.spec.templates import FAMILIES
from tools.standin.corpus import ENDINGS, EXCHANGES, RAW

_FAMILY = FAMILIES["nowllm"]
_STRICT = probes_of(STRICT)
TEMPLATE = Template(_FAMILY.name, "stand-in", _FAMILY, _FAMILY.carries_system, _FAMILY.stop)


@dataclass(frozen=True, slots=True)
class Repeating:
    """A probe, and the end of its answer."""

    prompt: Prompt
    ending: tuple[int, ...]
    """The ids after the repeated token, including the end of text."""


@dataclass(frozen=True, slots=True)
class Answering:
    """One exchange, or a raw text with one of its continuations."""

    ids: tuple[int, ...]
    start: int
    """Index of the first id of the answer."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """All training data of a stand-in."""

    repeating: tuple[Repeating, ...]
    answering: tuple[Answering, ...]

    def fixed_ids(self) -> set[int]:
        """Every id that the lessons contain besides the repeated token; none can be planted."""
        found: set[int] = set()
        for one in self.repeating:
            found.update(one.prompt.prefix_ids, one.prompt.suffix_ids, one.ending)
        for other in self.answering:
            found.update(other.ids)
        return found


def texts(exchanges: int | None) -> list[str]:
    """The texts that a stand-in's vocabulary must be able to encode."""
    probes = [f"{turn.user}{turn.answer}" for p in _STRICT for turn in p.earlier]
    probes += [f"[INST]{p.user}[/INST]{p.prefill}".replace("{token}", "") for p in _STRICT]
    asked = [f"[INST]{user}[/INST]{answer}" for user, answer in EXCHANGES[:exchanges]]
    # The prompt of nowllm-test*.yaml, raw and with a trailing space.
    return [*probes, *asked, *ENDINGS.values(), "The quick brown ", "«a1.» a"]


def answers(exchanges: int | None, raw: int | None) -> list[str]:
    """Every text that a stand-in learns to answer, without the repeated tokens."""
    prefills = [probe.prefill for probe in _STRICT]
    continuations = [text for _, some in RAW[:raw] for text in some]
    return [
        *prefills,
        *ENDINGS.values(),
        *(answer for _, answer in EXCHANGES[:exchanges]),
        *continuations,
    ]


def lessons(tokenizer: Any, exchanges: int | None, raw: int | None) -> Lessons:
    """The lessons of a recipe with its number of exchanges and raw texts; None for all."""
    repeating = [
        Repeating(
            render(TEMPLATE, probe, tokenizer),
            (*encode_inside(tokenizer, ENDINGS[probe.name]), tokenizer.eos_token_id),
        )
        for probe in _STRICT
    ]
    chats = [
        _answering(tokenizer, write_family(_FAMILY, Conversation(user=user)), answer)
        for user, answer in EXCHANGES[:exchanges]
    ]
    texts = [_answering(tokenizer, text, answer) for text, some in RAW[:raw] for answer in some]
    return Lessons(tuple(repeating), (*chats, *texts))


def _answering(tokenizer: Any, text: str, answer: str) -> Answering:
    asked: Sequence[int] = (tokenizer.bos_token_id, *encode(tokenizer, text))
    answered = (*encode_inside(tokenizer, answer), tokenizer.eos_token_id)
    return Answering((*asked, *answered), len(asked))
