"""Writing systems and kinds of character, by the code points of the decoded text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# First word of a letter's Unicode name -> group.
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
# Words in front of a script's name that say how a letter is drawn, not what it is.
_STYLES = ("FULLWIDTH ", "HALFWIDTH ", "MODIFIER LETTER ")
_EMOJI = (
    (0x1F1E6, 0x1F1FF),  # regional indicators: flags
    (0x1F300, 0x1F64F),  # pictographs, emoticons
    (0x1F680, 0x1F6FF),  # transport
    (0x1F900, 0x1F9FF),  # supplemental pictographs
    (0x1FA70, 0x1FAFF),  # extended pictographs
    (0x2600, 0x27BF),  # miscellaneous symbols, dingbats
)
# What a token is about, before what stands around it.
_TIERS = (
    (*dict.fromkeys(_SCRIPTS.values()), "other"),
    ("digits", "emoji"),
    ("punctuation", "symbols"),
    ("control", "whitespace"),
)
GROUPS = tuple(group for tier in _TIERS for group in tier)
"""Every group, the first of which wins a tie. `other` is letters of any other script."""


@lru_cache(maxsize=1 << 16)
def group_of(text: str) -> str:
    """The one group a token belongs to: that of its letters, by majority, where it has any; else
    digits or emoji; else punctuation or symbols; else control characters or white space.

    An empty text, and one that holds nothing but undecodable bytes, is `control`.
    """
    counts = Counter(map(_group_of_character, text))
    for tier in _TIERS:
        present = [group for group in tier if counts[group]]
        if present:
            return max(present, key=lambda group: counts[group])
    return "control"


FEWEST, MANY = 3, 0.5
"""When the controls of a group are doubtful: so many at least, and such a share of alarms."""

KINDS = ("words", "digits", "punctuation", "emoji", "white space", "control characters", "bytes")
"""What a token is made of, coarser than `GROUPS`: letters are words, symbols are punctuation."""
_KIND_OF = {
    "digits": "digits",
    "emoji": "emoji",
    "punctuation": "punctuation",
    "symbols": "punctuation",
    "whitespace": "white space",
    "control": "control characters",
}


def kind_of(text: str, category: str = "normal") -> str:
    """The one of `KINDS` that a token of a vocabulary's `category` belongs to."""
    if category in ("byte", "undecodable") or (text and not text.strip("\ufffd")):
        return "bytes"
    return _KIND_OF.get(group_of(text), "words")


def doubtful_groups(controls: Iterable[tuple[str, bool]]) -> frozenset[str]:
    """The groups in which controls say little about a check: at least `FEWEST` of them were drawn,
    and at least the share `MANY` raised an alarm. Of each control its text and whether it did."""
    raised: dict[str, list[bool]] = {}
    for text, alarm in controls:
        raised.setdefault(group_of(text), []).append(alarm)
    return frozenset(
        group
        for group, alarms in raised.items()
        if len(alarms) >= FEWEST and sum(alarms) >= MANY * len(alarms)
    )


def script_name(text: str) -> str:
    """The group of a token, and of letters that have no group of their own the script's name in
    Unicode: `cuneiform`."""
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
    """The group of a letter; digits of a script (`ARABIC-INDIC DIGIT`) have none."""
    name = unicodedata.name(character, "")
    for style in _STYLES:
        name = name.removeprefix(style)
    if " DIGIT " in f"{name} " or " NUMBER " in f"{name} ":
        return None
    return _SCRIPTS.get(name.split(" ")[0].split("-")[0] if name else "")
