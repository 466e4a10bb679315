"""Groups of tokens by writing system or kind of character, from the decoded text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# The first word of a letter's Unicode name -> its group.
_SCRIPTS = {
    "LATIN": "latin",
    "CYRILLIC": "cyrillic",
    "GREEK": "greek",
    "COPTIC": "greek",
    "ARABIC": "arabic",
    "HEBREW": "hebrew",
    "CJK": "cjk",
    "IDEOGRAPHIC": "cjk",
    "KANGXI": "cjk",
    "BOPOMOFO": "cjk",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "KATAKANA-HIRAGANA": "kana",
    "HANGUL": "hangul",
    "THAI": "thai",
} | dict.fromkeys(
    (
        "DEVANAGARI",
        "BENGALI",
        "GURMUKHI",
        "GUJARATI",
        "ORIYA",
        "TAMIL",
        "TELUGU",
        "KANNADA",
        "MALAYALAM",
        "SINHALA",
    ),
    "indic",
)
# Prefixes of Unicode names that describe a letter's style.
_STYLES = ("FULLWIDTH ", "HALFWIDTH ", "MODIFIER LETTER ")
_EMOJI = (
    (0x1F1E6, 0x1F1FF),  # regional indicators: flags
    (0x1F300, 0x1F64F),  # pictographs, emoticons
    (0x1F680, 0x1F6FF),  # transport
    (0x1F900, 0x1F9FF),  # supplemental pictographs
    (0x1FA70, 0x1FAFF),  # extended pictographs
    (0x2600, 0x27BF),  # miscellaneous symbols, dingbats
)
# A token belongs to the first tier of which it has a character.
_TIERS = (
    (*dict.fromkeys(_SCRIPTS.values()), "other"),
    ("digits", "emoji"),
    ("punctuation", "symbols"),
    ("control", "whitespace"),
)
GROUPS = tuple(group for tier in _TIERS for group in tier)
"""Every group; the earlier one wins a tie. `other` is letters of any other script."""


@lru_cache(maxsize=1 << 16)
def group_of(text: str) -> str:
    """The group of a token's text.

    It is the most frequent group of its letters; without letters, digits or emoji; else punctuation
    or symbols; else control characters or white space. An empty text, and one of only undecodable
    bytes, is `control`.
    """
    counts = Counter(map(_group_of_character, text))
    for tier in _TIERS:
        present = [group for group in tier if counts[group]]
        if present:
            return max(present, key=lambda group: counts[group])
    return "control"


_MIN_CONTROLS, _ALARM_SHARE = 3, 0.5
"""The controls of a group are doubtful from this number and this share of alarms."""

KINDS = (
    *("words", "other scripts", "digits", "punctuation"),
    *("emoji", "white space", "control characters", "bytes"),
)
"""Kinds of tokens, coarser than `GROUPS`: Latin letters are words, the letters of every other
script are of one kind, and symbols are punctuation."""
READABLE = KINDS[:3]
"""Kinds of token that contain a letter or a digit."""
_KIND_OF = {
    "latin": "words",
    "digits": "digits",
    "emoji": "emoji",
    "punctuation": "punctuation",
    "symbols": "punctuation",
    "whitespace": "white space",
    "control": "control characters",
}


def kind_of(text: str, category: str = "normal") -> str:
    """The one of `KINDS` to which a token with this text and `category` belongs."""
    if category in ("byte", "undecodable") or (text and not text.strip("\ufffd")):
        return "bytes"
    return _KIND_OF.get(group_of(text), "other scripts")


def doubtful_groups(controls: Iterable[tuple[str, bool]]) -> frozenset[str]:
    """The groups whose controls are unreliable: at least 3 were drawn and half raised an alarm.

    `controls` has each control's text and whether it raised an alarm.
    """
    raised: dict[str, list[bool]] = {}
    for text, alarm in controls:
        raised.setdefault(group_of(text), []).append(alarm)
    return frozenset(
        group
        for group, alarms in raised.items()
        if len(alarms) >= _MIN_CONTROLS and sum(alarms) >= _ALARM_SHARE * len(alarms)
    )


def script_name(text: str) -> str:
    """The group of a text; for `other`, the script's name in Unicode, such as `cuneiform`."""
    group = group_of(text)
    if group != "other":
        return group
    letter = next(character for character in text if _group_of_character(character) == "other")
    return unicodedata.name(letter, "other").split(" ")[0].lower()


@lru_cache(maxsize=1 << 16)
def _group_of_character(character: str) -> str:
    kind = unicodedata.category(character)
    if character.isspace() or kind == "Zs":
        return "whitespace"
    if character == "\ufffd" or kind in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return "control"
    if kind[0] == "N":
        return _script(character) or "digits"
    if kind[0] in "LM":
        return _script(character) or ("other" if kind[0] == "L" else "symbols")
    if any(low <= ord(character) <= high for low, high in _EMOJI):
        return "emoji"
    return "punctuation" if kind[0] == "P" else "symbols"


def _script(character: str) -> str | None:
    """The group of a letter; None for digits of a script (`ARABIC-INDIC DIGIT`)."""
    name = unicodedata.name(character, "")
    for style in _STYLES:
        name = name.removeprefix(style)
    if " DIGIT " in f"{name} " or " NUMBER " in f"{name} ":
        return None
    return _SCRIPTS.get(name.split(" ")[0].split("-")[0] if name else "")
