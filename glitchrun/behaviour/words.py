"""What a text is about, in any script: its content units."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import groupby

# Scripts written without spaces between words, by the first word of a letter's Unicode name: their
# units are pairs of letters.
_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
JOINED = _UNSPACED | {"ARABIC", "HEBREW", "HANGUL"}
"""Scripts in which a word may begin in the middle of what is written together."""
_SHORTEST = 4
"""Letters of a word that carries content: shorter ones are mostly grammar."""
_STEM = 5
"""Letters by which words are compared, so that inflected forms are the same unit."""


def folded(text: str) -> str:
    """`text` for comparison: case and compatibility forms folded, apostrophes and spaces alike."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.replace("\u2019", "'").split())


def units(text: str) -> list[str]:
    """Content units in order: stems of words, and pairs of letters in scripts without spaces."""
    found: list[str] = []
    for script, letters in groupby(folded(text), _script):
        word = "".join(letters)
        if not script:
            continue
        if script in _UNSPACED:
            found += [word[at : at + 2] for at in range(len(word) - 1)] or [word]
        elif len(word) >= _SHORTEST or script == "HANGUL":
            # A Korean word ends in grammar from its third syllable on.
            found.append(word[: 2 if script == "HANGUL" else _STEM])
    return found


def main_script(text: str) -> str:
    """The script that most letters are of, by the first word of their Unicode names."""
    counts = Counter(script for script in map(_script, folded(text)) if script)
    return counts.most_common(1)[0][0] if counts else ""


def _script(character: str) -> str:
    """Empty for what is no letter; a mark belongs to the letters around it."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    return unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
