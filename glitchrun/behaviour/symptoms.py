"""Symptoms: what a model said instead of a token, by the first rule that applies.

`SYMPTOMS` lists the rules in order of precedence. Each takes an `Answer`. The table in
docs/verdicts.md defines them for readers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from glitchrun.behaviour.multilingual import DECLINES, UNSPACED, folded, main_script
from glitchrun.vocabulary.text import bare

_SEEN = 4000
"""Characters of a continuation that the rules look at, which takes about 1 ms."""
_PIECE = 2
"""Characters of a token that make a piece; fewer do if they are half of it."""
_LONGEST_WORD = 30
_LONGEST_UNSPACED = 8
"""Characters of one word, and of an answer in a script without spaces that counts as one."""
_REPEATED = 8
"""Fewest characters of a repetition: `...` and `!!` are none."""

_QUOTES = '"`´“”„‟«»‹›「」『』《》〈〉'
_END = re.compile(
    rf"[\n{_QUOTES}]|(?<![^\W_])['‘’]|['‘’](?![^\W_])|[.!?](?=\s|$)|[。！？]",
)
"""The end of the answer itself: at a line break, a quotation mark or the end of a sentence. An
apostrophe between letters is none of these."""
_RUNS = re.compile(r"(.{1,7}?)\1{3,}|(.{8,80}?)\2{2,}")
"""A unit that follows itself at least three times, or twice if it has at least 8 characters."""

_OPENINGS: Mapping[str, str] = {
    "en": r"(?:i'm |i am |i'm so |i'm really )?sorry\b|(?:i |my |sincere )?apolog|unfortunately\b"
    r"|i'm afraid|i am afraid|as an ai\b|i(?:'m| am) not (?:sure|familiar|able|aware)"
    r"|i (?:don't|do not|didn't|did not|can't|cannot) (?:understand|know|see|recogni[sz]e|find)",
    "de": r"(?:es )?tut mir (?:sehr )?leid|leider\b|entschuldig|verzeih"
    r"|ich (?:kann|verstehe|weiß|weiss) (?:\w+ ){0,5}nicht",
    "fr": r"(?:je suis |je suis vraiment )?désolé|excuse[zs]|pardon\b|malheureusement"
    r"|je (?:m'excuse|regrette)|je ne (?:peux|comprends|sais|suis) pas",
    "es": r"lo (?:siento|lamento)|perdón|perdona|disculp|lamentablemente|desafortunadamente"
    r"|no (?:puedo|entiendo|comprendo|sé)\b",
    "it": r"mi (?:dispiace|scuso)|scusa|purtroppo|non (?:posso|capisco|so)\b",
    "pt": r"desculp|(?:eu )?(?:sinto|lamento) muito|lamento\b|infelizmente"
    r"|(?:eu )?não (?:posso|entendo|entendi|consigo|sei)\b",
    "nl": r"(?:het )?spijt me|sorry|helaas|excuses|ik (?:kan|begrijp|weet) (?:\w+ ){0,5}niet",
    "ru": r"извин|прости|к сожалению|(?:я )?не (?:могу|понимаю|знаю)|мне (?:очень )?жаль",
    "uk": r"вибач|перепрош|на жаль|(?:я )?не (?:можу|розумію|знаю)",
    "pl": r"przepraszam|przykro mi|niestety|(?:ja )?nie (?:mogę|rozumiem|wiem)",
    "tr": r"üzgünüm|özür dilerim|maalesef|anlamadım|kusura bakma",
    "el": r"λυπάμαι|λυπαμαι|συγγνώμη|συγνώμη|δυστυχώς|δεν (?:μπορώ|καταλαβαίνω)",
    "ar": r"(?:أنا )?آسف|عذر|أعتذر|للأسف|المعذرة|لا (?:أستطيع|يمكنني|أفهم|أعرف)",
    "fa": r"متأسفم|متاسفم|ببخشید|نمی.?(?:توانم|فهمم)",
    "he": r"(?:אני )?מצטער|סליחה|לצערי|אני לא (?:יכול|מבין)",
    "hi": r"क्षमा|माफ|मुझे (?:खेद|माफ)|मैं (?:\S+ ){0,5}नहीं|दुर्भाग्य",
    "zh": r"(?:非常|很|真的)?(?:抱歉|对不起|對不起|遗憾|遺憾|不好意思)"
    r"|我?(?:不能|无法|無法|不明白|不理解|不知道)",
    "ja": r"(?:大変|誠に)?(?:申し訳|すみません|すいません|ごめん|残念ながら|恐れ入り)"
    r"|.{0,20}(?:でき|分かり|わかり|理解でき)(?:ません|かねます)",
    "ko": r"(?:정말 )?(?:죄송|미안|유감|안타깝)|(?:저는 )?(?:이해하지 못|.{0,12}수 없)",
    "vi": r"(?:tôi )?(?:rất )?(?:xin lỗi|tiếc)|tôi không (?:thể|hiểu|biết)",
    "id": r"(?:mohon )?maaf|saya tidak (?:bisa|dapat|mengerti|tahu)",
}
"""How an apology, a refusal or a failure to understand begins, in folded text, by language."""
_REFUSES = re.compile("|".join(f"(?:{opening})" for opening in _OPENINGS.values()))


@dataclass(frozen=True, slots=True)
class Answer:
    """A continuation that does not contain the token, and the token."""

    token: str
    text: str

    @property
    def core(self) -> str:
        """The answer itself: what comes before the first closing quotation mark, line break or end
        of a sentence."""
        start = re.match(rf"[\s{_QUOTES}'‘’]*", self.text)
        rest = self.text[start.end() :] if start else self.text
        return _END.split(rest, maxsplit=1)[0].strip()

    @property
    def bare_cores(self) -> set[str]:
        """Candidates for the token in an answer, without case and white space: the answer itself,
        with and without the punctuation around it, and its first line."""
        line, core = self.text.strip().partition("\n")[0], self.core
        found = {bare(core), bare(_without_punctuation(core)), bare(line)}
        return {one for one in found if one and "\ufffd" not in one}


@lru_cache(1 << 16)
def symptom(token: str, text: str) -> str:
    """The symptom of a continuation that does not contain the token: a key of `SYMPTOMS`.

    Args:
        token: The token's text.
        text: The continuation, without the token that ended it.
    """
    answer = Answer(token, text[:_SEEN])
    return next(name for name, rule in SYMPTOMS.items() if rule(answer))


def _is_case_space(answer: Answer) -> bool:
    return bare(answer.token) in answer.bare_cores


def _is_piece(answer: Answer) -> bool:
    whole = bare(answer.token)
    return any(
        one in whole and (len(one) >= _PIECE or 2 * len(one) >= len(whole))
        for one in answer.bare_cores
    )


def _is_control_characters(answer: Answer) -> bool:
    shown = [one for one in answer.text if not one.isspace() and not _is_punctuation(one)]
    hidden = sum(one == "\ufffd" or unicodedata.category(one)[0] == "C" for one in shown)
    return hidden > len(shown) / 2


def _is_repetition(answer: Answer) -> bool:
    text = " ".join(answer.text.split()) + " "
    repeated = sum(len(run.group()) for run in _RUNS.finditer(text))
    return repeated >= _REPEATED and repeated > len(text) / 2


def _is_silence(answer: Answer) -> bool:
    return all(one.isspace() or _is_punctuation(one) for one in answer.text)


def _is_refusal(answer: Answer) -> bool:
    begin = folded(_from_first_letter(answer.text))
    sentence = re.split(r"[.!?。！？]", begin, maxsplit=1)[0]
    return bool(_REFUSES.match(begin) or DECLINES.search(sentence))


def _is_other_word(answer: Answer) -> bool:
    word = _without_punctuation(answer.core)
    longest = _LONGEST_UNSPACED if main_script(word) in UNSPACED else _LONGEST_WORD
    is_shown = any(unicodedata.category(one)[0] in "LNS" for one in word)
    return is_shown and len(word.split()) == 1 and len(word) <= longest


SYMPTOMS: Mapping[str, Callable[[Answer], bool]] = {
    "case_space": _is_case_space,
    "piece": _is_piece,
    "control_characters": _is_control_characters,
    "repetition": _is_repetition,
    "silence": _is_silence,
    "refusal": _is_refusal,
    "other_word": _is_other_word,
    "long_other": lambda answer: True,
}
"""The rules by symptom, in order of precedence."""


MEANINGS: Mapping[str, str] = {
    "case_space": "the token's text, but for case, white space or the encoding of accents",
    "piece": "a part of the token's text",
    "control_characters": "mostly undecodable, control or other invisible characters",
    "repetition": "mostly a unit repeated again and again",
    "silence": "nothing but white space, punctuation and quotation marks",
    "refusal": "an apology, a refusal, or that it does not understand",
    "other_word": "another single word or number in the token's place",
    "long_other": "anything else, mostly longer text",
}
"""Each symptom in a few words."""


def _is_punctuation(character: str) -> bool:
    """Whether it is punctuation or a mark such as a backtick, which Unicode calls a symbol."""
    kind = unicodedata.category(character)
    return kind[0] == "P" or kind == "Sk"


def _without_punctuation(text: str) -> str:
    marks = "".join({one for one in text if _is_punctuation(one) or one.isspace()})
    return text.strip(marks) if marks else text


def _from_first_letter(text: str) -> str:
    place = next((at for at, one in enumerate(text) if unicodedata.category(one)[0] == "L"), None)
    return "" if place is None else text[place:]
