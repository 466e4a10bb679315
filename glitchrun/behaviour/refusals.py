"""How a request is declined, in several languages, as folded text (`words.folded`).

Common phrases of everyday use; no name of a model or of its maker is among them.
"""

from __future__ import annotations

import re

# With what is declined: "I can't wait to bite into it" is no refusal.
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
"""Found near the beginning of an answer that declines."""

APOLOGIES = (
    *("i'm sorry", "i am sorry", "sorry,", "sorry, but", "i apologize", "my apologies"),
    *("lo siento", "sinto muito", "desculpe", "mi dispiace", "je suis désolé", "désolé"),
    *("es tut mir leid", "tut mir leid", "het spijt me", "извините", "к сожалению"),
    *("вибачте", "на жаль", "przepraszam", "niestety", "抱歉", "很抱歉", "对不起", "對不起"),
    *("申し訳", "すみません", "죄송", "آسف", "عذر", "क्षमा", "üzgünüm"),
)
"""What an answer that declines begins with."""
