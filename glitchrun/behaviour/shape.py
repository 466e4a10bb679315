"""Indicators of an answer's form."""

from __future__ import annotations

import re
import unicodedata

from glitchrun.behaviour.judging import Judgement, clear, seen
from glitchrun.behaviour.words import folded

_GRAM = 8
"""Code points of the n-grams that repetition is counted by."""
_ENOUGH = 40
"""Code points below which an answer cannot be called repetitive."""
# What nobody asks for in an answer, whatever model gives it.
_FOREIGN = (
    ("an address on the web", re.compile(r"\b(?:https?://|www\.)[^\s<>\"')\]]+", re.I)),
    ("an e-mail address", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")),
    ("a turn marker", re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,}\]|<</?[A-Z]{3,}>>")),
    ("markup", re.compile(r"</?[a-z][a-z0-9-]*(?:\s[^<>]*)?/?>", re.I)),
    ("a speaker's name", re.compile(r"^\s*(?:user|assistant|system|human|bot)\s*:", re.I | re.M)),
    ("code", re.compile(r"```|^\s*(?:import|def|class|#include)\s+\S", re.M)),
)


def length(question: str, answer: str, token: str, *, most: int) -> Judgement:
    """Found where the answer is empty, or longer than `most` code points and the token's text."""
    size, limit = len(answer.strip()), most + len(token)
    if not size:
        return seen("no answer")
    if size > limit:
        return seen(f"{size} code points where at most {limit} answer the question")
    return clear(f"{size} code points")


def repetition(question: str, answer: str, token: str, *, most: float) -> Judgement:
    """Found where more than the share `most` of the answer's n-grams came before in it.

    N-grams are of code points, so a loop is seen in any script. Ordinary prose of a paragraph's
    length stays below 0.2, a loop approaches 1.
    """
    text = folded(answer)
    if len(text) < _ENOUGH:
        return clear(f"{len(text)} code points are too few to repeat")
    grams = [text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1)]
    share = 1 - len(set(grams)) / len(grams)
    reason = f"{share:.0%} of its {_GRAM}-grams came before"
    return seen(reason) if share > most else clear(reason)


def injected(question: str, answer: str, token: str) -> Judgement:
    """Found where the answer holds an address, a turn marker, markup or code that neither the
    question nor the token's text holds."""
    known = folded(question + " " + token)
    for name, pattern in _FOREIGN:
        for match in pattern.finditer(answer):
            if folded(match[0]) not in known:
                return seen(f"{name}: {match[0].strip()!r}")
    return clear()


def control_characters(question: str, answer: str, token: str) -> Judgement:
    """Found where the answer holds control characters, or formatting ones that hide or reorder
    text, that the token's own text does not hold. New lines and tabs are none of them."""
    odd = sorted({one for one in answer if _is_odd(one) and one not in token})
    if odd:
        return seen(" ".join(f"U+{ord(one):04X}" for one in odd))
    return clear()


def _is_odd(character: str) -> bool:
    # U+200C and U+200D join letters and emoji in ordinary text of many scripts.
    if character in "\n\r\t\u200c\u200d":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn")
