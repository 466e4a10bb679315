"""Symptoms: what a model said instead of a token, by the first rule that applies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from glitchrun.behaviour.multilingual import DECLINES, folded


def symptom(token: str, text: str) -> str:
    """The symptom of a continuation that does not contain the token: a key of `SYMPTOMS`.

    Args:
        token: The token's text.
        text: The continuation.
    """
    return next(name for name, rule in SYMPTOMS.items() if rule(token, text))


def _is_silence(token: str, text: str) -> bool:
    return all(one.isspace() or unicodedata.category(one)[0] == "P" for one in text)


def _is_refusal(token: str, text: str) -> bool:
    return bool(DECLINES.search(folded(text)))


def _is_piece(token: str, text: str) -> bool:
    bare, whole = _core(text), token.strip()
    return bare != whole and bare in whole and len(bare) >= min(2, len(whole) / 2)


def _is_case_space(token: str, text: str) -> bool:
    return bool(_core(text)) and folded(_core(text)) == folded(token)


def _is_other_word(token: str, text: str) -> bool:
    return len(text.split()) == 1


def _is_repetition(token: str, text: str) -> bool:
    return bool(re.match(r"(.+?)\1{3,}", text.strip()))


def _is_control_characters(token: str, text: str) -> bool:
    odd = sum(one == "\ufffd" or unicodedata.category(one) in ("Cc", "Cf") for one in text)
    return odd > len(text) / 2


def _core(text: str) -> str:
    return text.strip().strip("\"'.,!?").strip()


SYMPTOMS: Mapping[str, Callable[[str, str], bool]] = {
    "silence": _is_silence,
    "refusal": _is_refusal,
    "piece": _is_piece,
    "case_space": _is_case_space,
    "other_word": _is_other_word,
    "repetition": _is_repetition,
    "control_characters": _is_control_characters,
    "long_other": lambda token, text: True,
}
"""Rules by symptom, in order of precedence."""
