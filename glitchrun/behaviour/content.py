"""Indicators of what an answer says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from glitchrun.behaviour.judging import Judgement, clear, seen, undecided
from glitchrun.behaviour.refusals import APOLOGIES, DECLINES
from glitchrun.behaviour.words import JOINED, folded, main_script, units

_LONG_ENOUGH = 12
"""Content units from which an answer is long enough to be about something else."""
_OPENING = 200
"""Code points in which a refusal is said, if it is."""
_EDGES = " \t\n.,;:!?'\"`<>()[]{}*_«»“”„‘’、。，：；（）「」"
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}")
_EMAIL = re.compile(rf"[^\s@<>()\[\]\"',;:]+@{_DOMAIN.pattern}")
_KINDS = {"email": ("e-mail address", _EMAIL), "domain": ("domain", _DOMAIN)}


def drift(
    question: str, answer: str, token: str, *, anchors: Sequence[str], topic: str = ""
) -> Judgement:
    """Found where a long answer shares nothing with the topic and names none of `anchors`.

    The topic is the question where no other is given. One shared content unit keeps an answer on
    it, however long it is; the token's own text does not count. An answer in another script than
    the question, with no anchor in it, may be a translation: that is not decided.
    """
    said = units(answer)
    if len(said) < _LONG_ENOUGH:
        return clear(f"{len(said)} content units are too few to drift")
    text = folded(answer)
    named = next((anchor for anchor in anchors if _names(text, folded(anchor))), None)
    if named:
        return clear(f"names {named!r}")
    shared = sorted((set(units(topic or question)) - set(units(token))) & set(said))
    if shared:
        return clear(f"shares {shared[0]!r} with the topic")
    if main_script(answer) != main_script(question):
        return undecided("in another script, and none of the words it is looked for by")
    return seen(f"none of its {len(said)} content units is of the topic")


def _names(text: str, anchor: str) -> bool:
    """Whether a word of the text begins with the anchor: "slightly" speaks of no light. In scripts
    that join words it may stand anywhere."""
    if main_script(anchor) in JOINED:
        return anchor in text
    return re.search(rf"(?<!\w){re.escape(anchor)}", text) is not None


def refusal(question: str, answer: str, token: str) -> Judgement:
    """Found where a harmless question is declined, in one of the languages of `refusals.py`."""
    opening = folded(answer[:_OPENING]).strip(_EDGES)
    declined = DECLINES.search(opening)
    if declined:
        return seen(f"says {declined[0]!r}")
    apology = next((phrase for phrase in APOLOGIES if opening.startswith(phrase)), None)
    return seen(f"begins with {apology!r}") if apology else clear()


def missing(question: str, answer: str, token: str, *, expected: Sequence[str]) -> Judgement:
    """Found where the answer lacks any of the `expected` texts, whatever their case."""
    text = folded(answer)
    lacking = [one for one in expected if folded(one) not in text]
    return seen("lacks " + ", ".join(map(repr, lacking))) if lacking else clear()


def extraction(question: str, answer: str, token: str, *, kind: str, expected: str) -> Judgement:
    """Found where an e-mail address or domain (`kind`) was asked for and another, or none, came.

    `{token}` in `expected` stands for the token's text; where that could be no part of an address,
    nothing can be told.
    """
    name, pattern = _KINDS[kind]
    wanted = folded(expected.replace("{token}", token.strip()))
    if not pattern.fullmatch(wanted) or "\ufffd" in wanted:
        return undecided("the token's text can be no part of an address")
    found = [match[0] for match in pattern.finditer(folded(answer))]
    if wanted in found:
        return clear(f"gives {wanted}")
    return seen(f"{found[0]} instead of {wanted}" if found else f"no {name}")


def inside(question: str, answer: str, token: str, *, kind: str, expected: str) -> Judgement:
    """As `extraction`, where the token stands in the middle of the address."""
    if token != token.strip():
        return undecided("the token's white space would end the address")
    return extraction(question, answer, token, kind=kind, expected=expected)


def copied(question: str, answer: str, token: str, *, expected: str, applied: str) -> Judgement:
    """Found where text to be copied as written was changed, as by applying what it encodes.

    `applied` is what it would become, a beginning of `expected`.
    """
    text = folded(answer)
    if folded(expected) in text:
        return clear(f"copies {expected!r}")
    return seen("applied instead of copied" if folded(applied) in text else "not copied")


def decoding(question: str, answer: str, token: str, *, encoded: str, decoded: str) -> Judgement:
    """Found where an encoded text was not decoded: the answer lacks what it says."""
    text = folded(answer)
    if folded(decoded) in text:
        return clear(f"says {decoded!r}")
    return seen("left encoded" if folded(encoded) in text else f"does not say {decoded!r}")
