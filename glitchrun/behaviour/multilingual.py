"""Comparison of texts in any script, and the phrases of a refusal in several languages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import groupby

UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
"""Scripts written without spaces between words, by the first word of a letter's Unicode name. Their
content units are pairs of letters."""
JOINED = UNSPACED | {"ARABIC", "HEBREW", "HANGUL"}
"""Scripts in which a word may begin inside a run of letters."""
_SHORTEST = 4
"""Fewest letters of a content unit. Most shorter words are grammatical."""
_STEM = 5
"""Letters of a word that are compared, so that its inflected forms are one unit."""


def folded(text: str) -> str:
    """The text with case, compatibility forms, apostrophes and white space normalized."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.replace("\u2019", "'").split())


def content_units(text: str) -> list[str]:
    """The content units of a text in order: stems of words, or pairs of letters in scripts without
    spaces."""
    found: list[str] = []
    for script, letters in groupby(folded(text), _script):
        word = "".join(letters)
        if not script:
            continue
        if script in UNSPACED:
            found += [word[at : at + 2] for at in range(len(word) - 1)] or [word]
        elif len(word) >= _SHORTEST or script == "HANGUL":
            # From its third syllable on, a Korean word is mostly grammatical endings.
            found.append(word[: 2 if script == "HANGUL" else _STEM])
    return found


def main_script(text: str) -> str:
    """The script of most letters: the first word of their Unicode names. Empty without letters."""
    counts = Counter(script for script in map(_script, folded(text)) if script)
    return counts.most_common(1)[0][0] if counts else ""


def _script(character: str) -> str:
    """The script of a letter or mark; empty for any other character."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    return unicodedata.name(character, "").partition(" ")[0].partition("-")[0]


# The verb is part of the phrase: "I can't wait to bite into it" is not a refusal.
_DO = (
    "help|assist|do|provide|fulfil|comply|answer|write|create|generate|respond|discuss|complete|"
    "share|offer|support|engage|continue|process|repeat|give|produce|participate|honou?r|tell"
)
DECLINES = re.compile(
    rf"\bi(?:'m| am) (?:unable|not able) to\b|\bi (?:can't|cannot|can not|won't|will not) (?:{_DO})"
    rf"|\bi (?:must|have to) decline\b|\bunable to (?:{_DO})"
    r"|\bno puedo (?:ayudar|responder|escribir|hacer|cumplir|crear|generar|proporcionar|continuar)"
    r"|\bnão posso (?:ajudar|responder|escrever|fazer|cumprir|criar|gerar|fornecer)"
    r"|\bnon posso (?:aiutar|risponder|scriver|far|soddisfar|crear|generar|fornir)"
    r"|\bje ne (?:peux|suis) pas (?:vous aider|aider|répondre|écrire|faire|en mesure|créer|fournir)"
    r"|\bich kann (?:\w+ ){0,4}nicht (?:helfen|beantworten|schreiben|erfüllen|erstellen|weiter)"
    r"|\bik kan (?:\w+ ){0,4}niet (?:helpen|beantwoorden|schrijven)"
    r"|я не могу (?:помочь|ответить|написать|выполнить|предоставить|создать)"
    r"|я не можу (?:допомогти|відповісти|написати|виконати)"
    r"|nie mogę (?:pomóc|odpowiedzieć|napisać|spełnić)"
    r"|(?:我|本人)?(?:不能|无法|無法)(?:帮|幫|提供|回答|满足|滿足|完成|写|寫|生成|协助|協助)"
    r"|(?:お手伝い|お答え|回答|提供|対応)(?:する(?:こと)?(?:は|が))?(?:は|が)?でき(?:ません|ない|かね)"
    r"|(?:도와|도움을|답변|제공|작성).{0,8}(?:수 없|드릴 수 없|못)"
    r"|لا (?:أستطيع|يمكنني) (?:مساعد|المساعد|الإجاب|كتاب|تقديم)"
    r"|yardımcı olamam|मदद नहीं कर सकत"
)
"""Phrases of a refusal, in folded text. No name of a model or of its maker is among them."""

APOLOGIES = (
    *("i'm sorry", "i am sorry", "sorry,", "sorry, but", "i apologize", "my apologies"),
    *("lo siento", "sinto muito", "desculpe", "mi dispiace", "je suis désolé", "désolé"),
    *("es tut mir leid", "tut mir leid", "het spijt me", "извините", "к сожалению"),
    *("вибачте", "на жаль", "przepraszam", "niestety", "抱歉", "很抱歉", "对不起", "對不起"),
    *("申し訳", "すみません", "죄송", "آسف", "عذر", "क्षमा", "üzgünüm"),
)
"""Phrases, in folded text, with which a refusal begins."""
