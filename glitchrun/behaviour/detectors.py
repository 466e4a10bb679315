"""Detectors: whether an answer shows a behaviour.

A detector is a pure function of question, answer and token text, and of the parameters that its
test gives it. It does not know the model: equal answers get equal judgements.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glitchrun.behaviour.multilingual import (
    APOLOGIES,
    DECLINES,
    JOINED,
    content_units,
    folded,
    main_script,
)

_GRAM = 8
"""Length in code points of the n-grams that `repetition` counts."""
_ENOUGH = 40
"""Code points that an answer must have before `repetition` judges it."""
# No question of the catalogue asks for any of these.
_FOREIGN = (
    ("an address on the web", re.compile(r"\b(?:https?://|www\.)[^\s<>\"')\]]+", re.I)),
    ("an e-mail address", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")),
    ("a turn marker", re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,}\]|<</?[A-Z]{3,}>>")),
    ("markup", re.compile(r"</?[a-z][a-z0-9-]*(?:\s[^<>]*)?/?>", re.I)),
    ("a speaker's name", re.compile(r"^\s*(?:user|assistant|system|human|bot)\s*:", re.I | re.M)),
    ("code", re.compile(r"```|^\s*(?:import|def|class|#include)\s+\S", re.M)),
)
_LONG_ENOUGH = 12
"""Content units that an answer must have before `drift` judges it."""
_OPENING = 200
"""Code points at the beginning of an answer in which `refusal` looks for one."""
_EDGES = " \t\n.,;:!?'\"`<>()[]{}*_«»“”„‘’、。，：；（）「」"
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}")
_EMAIL = re.compile(rf"[^\s@<>()\[\]\"',;:]+@{_DOMAIN.pattern}")
_KINDS = {"email": ("e-mail address", _EMAIL), "domain": ("domain", _DOMAIN)}


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an answer shows a behaviour. `found` is None if that is undecided."""

    found: bool | None
    reason: str
    """What the detector found, as a phrase."""


Detector = Callable[..., Judgement]
"""Maps question, answer and token text, and the test's own parameters, to a judgement."""


def clear(reason: str = "") -> Judgement:
    """The answer does not show the behaviour."""
    return Judgement(False, reason)


def seen(reason: str) -> Judgement:
    """The answer shows the behaviour."""
    return Judgement(True, reason)


def undecided(reason: str) -> Judgement:
    """The detector cannot judge the answer."""
    return Judgement(None, reason)


# Form: length, repetition, injected text, control characters.


def length(question: str, answer: str, token: str, *, most: int) -> Judgement:
    """Found if the answer is empty, or longer than `most` code points plus the token's text."""
    size, limit = len(answer.strip()), most + len(token)
    if not size:
        return seen("no answer")
    if size > limit:
        return seen(f"{size} code points where at most {limit} answer the question")
    return clear(f"{size} code points")


def repetition(question: str, answer: str, token: str, *, most: float) -> Judgement:
    """Found if more than the share `most` of the answer's n-grams occurred earlier in it.

    N-grams consist of code points, so this detects a loop in any script. An ordinary paragraph
    stays below 0.2; a loop approaches 1.
    """
    text = folded(answer)
    if len(text) < _ENOUGH:
        return clear(f"{len(text)} code points are too few to repeat")
    grams = [text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1)]
    share = 1 - len(set(grams)) / len(grams)
    reason = f"{share:.0%} of its {_GRAM}-grams came before"
    return seen(reason) if share > most else clear(reason)


def injected(question: str, answer: str, token: str) -> Judgement:
    """Found if the answer contains an address, a turn marker, markup or code that neither the
    question nor the token's text contains."""
    known = folded(question + " " + token)
    for name, pattern in _FOREIGN:
        for match in pattern.finditer(answer):
            if folded(match[0]) not in known:
                return seen(f"{name}: {match[0].strip()!r}")
    return clear()


def control_characters(question: str, answer: str, token: str) -> Judgement:
    """Found if the answer contains a control character, or a format character that hides or
    reorders text, which the token's text does not contain. Newlines and tabs do not count."""
    odd = sorted({one for one in answer if _is_odd(one) and one not in token})
    if odd:
        return seen(" ".join(f"U+{ord(one):04X}" for one in odd))
    return clear()


def _is_odd(character: str) -> bool:
    # U+200C and U+200D join letters and emoji in ordinary text of many scripts.
    if character in "\n\r\t\u200c\u200d":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn")


# Content: drift, refusal, missing text, extraction, decoding.


def drift(
    question: str, answer: str, token: str, *, anchors: Sequence[str], topic: str = ""
) -> Judgement:
    """Found if a long answer shares no content unit with the topic and contains none of `anchors`.

    Without a `topic`, the question is the topic. One shared content unit is enough, however long
    the answer is; units of the token's text do not count. An answer in another script than the
    question may be a translation, so without an anchor in it the judgement is undecided.
    """
    said = content_units(answer)
    if len(said) < _LONG_ENOUGH:
        return clear(f"{len(said)} content units are too few to drift")
    text = folded(answer)
    named = next((anchor for anchor in anchors if _names(text, folded(anchor))), None)
    if named:
        return clear(f"names {named!r}")
    shared = sorted((set(content_units(topic or question)) - set(content_units(token))) & set(said))
    if shared:
        return clear(f"shares {shared[0]!r} with the topic")
    if main_script(answer) != main_script(question):
        return undecided("in another script, and contains none of the known words of the topic")
    return seen(f"shares none of its {len(said)} content units with the topic")


def _names(text: str, anchor: str) -> bool:
    """Whether a word of the text begins with the anchor ("slightly" does not begin with "light").
    In scripts that join words, the anchor may occur anywhere."""
    if main_script(anchor) in JOINED:
        return anchor in text
    return re.search(rf"(?<!\w){re.escape(anchor)}", text) is not None


def refusal(question: str, answer: str, token: str) -> Judgement:
    """Found if the answer declines, in one of the languages of `DECLINES` and `APOLOGIES`."""
    opening = folded(answer[:_OPENING]).strip(_EDGES)
    declined = DECLINES.search(opening)
    if declined:
        return seen(f"says {declined[0]!r}")
    apology = next((phrase for phrase in APOLOGIES if opening.startswith(phrase)), None)
    return seen(f"begins with {apology!r}") if apology else clear()


def missing(question: str, answer: str, token: str, *, expected: Sequence[str]) -> Judgement:
    """Found if the answer lacks any of the `expected` texts, compared without case."""
    text = folded(answer)
    lacking = [one for one in expected if folded(one) not in text]
    return seen("lacks " + ", ".join(map(repr, lacking))) if lacking else clear()


def extraction(question: str, answer: str, token: str, *, kind: str, expected: str) -> Judgement:
    """Found if the answer lacks the `expected` e-mail address or domain (`kind`).

    `{token}` in `expected` stands for the token's text. Undecided if that text cannot be part of an
    address.
    """
    name, pattern = _KINDS[kind]
    wanted = folded(expected.replace("{token}", token.strip()))
    if not pattern.fullmatch(wanted) or "\ufffd" in wanted:
        return undecided("the token's text cannot be part of an address")
    found = [match[0] for match in pattern.finditer(folded(answer))]
    if wanted in found:
        return clear(f"gives {wanted}")
    return seen(f"{found[0]} instead of {wanted}" if found else f"no {name}")


def inside(question: str, answer: str, token: str, *, kind: str, expected: str) -> Judgement:
    """As `extraction`, for a token in the middle of the address."""
    if token != token.strip():
        return undecided("the token's white space would split the address")
    return extraction(question, answer, token, kind=kind, expected=expected)


def copied(question: str, answer: str, token: str, *, expected: str, applied: str) -> Judgement:
    """Found if the answer lacks the `expected` text, which the question asks to copy as written.

    `applied` is the beginning of `expected` that remains if a reader applies its control
    characters.
    """
    text = folded(answer)
    if folded(expected) in text:
        return clear(f"copies {expected!r}")
    return seen("applied instead of copied" if folded(applied) in text else "not copied")


def decoding(question: str, answer: str, token: str, *, encoded: str, decoded: str) -> Judgement:
    """Found if the answer lacks the `decoded` form of the question's `encoded` text."""
    text = folded(answer)
    if folded(decoded) in text:
        return clear(f"says {decoded!r}")
    return seen("left encoded" if folded(encoded) in text else f"does not say {decoded!r}")
