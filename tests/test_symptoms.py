"""The symptoms of answers in several languages and scripts."""

from __future__ import annotations

import pytest

from glitchrun.behaviour.symptoms import SYMPTOMS, symptom

ANSWERS = {
    "case_space": [
        (" Hy", ' " "HY " "'),
        (" kand", ' KAND »"\n\nThis is a regular expression.'),
        ("cyl", "Cyl'."),
        ("Straße", "STRASSE»"),
        ("é", "E\u0301»"),
        ("\u0434\u043e\u043c", " \u0414\u041e\u041c. "),
        ("東京", "東 京」"),
        ("don't", "DON'T'"),
    ],
    "piece": [
        (" ups", ' up»"'),
        ("=-", '="'),
        (" SolidGoldMagikarp", 'Solid".\n\nCan I help you with anything else?'),
        ("株式会社", "株式」です。"),
        ("日本", "日»"),
        ("Донецк", "донец»"),
        ("مرحبا", "مرح"),
        ("ประเทศ", "ประ"),
        ("=======", '====="'),
    ],
    "control_characters": [
        (" odd", "\ufffd\ufffd\ufffd\ufffd"),
        (" odd", "\x00\x01 \x02a"),
        ("\ufffd", '\ufffd"'),
        (" odd", "\u200b\u200b\ue000."),
    ],
    "repetition": [
        (" odd", " - - - - - - - - - -"),
        (" odd", "!!!!!!!!!!!!!!!!!!!"),
        (" odd", " 11 11 11 11 11 1"),
        (" odd", "ha ha ha ha"),
        (" odd", "哈哈哈哈哈哈哈哈哈哈"),
        (" odd", "好的好的好的好的好的"),
        (" odd", "ありがとうありがとうありがとうありがとう"),
        (" odd", "สวัสดีสวัสดีสวัสดีสวัสดี"),
        (" odd", "Ja, gern geschehen. Ja, gern geschehen. Ja, gern geschehen. Ja, g"),
        (" odd", "aaaa bbbb aaaa bbbb aaaa bbbb"),
    ],
    "silence": [
        (" odd", text) for text in ("", " \n", '"', '»".', "...", "「」。", "`'` ¿?", "{}")
    ],
    "refusal": [
        (" odd", "»\".\n\nI'm sorry, but I can\u2019t repeat that."),
        (" odd", "I cannot help with that."),
        (" odd", "I don't understand the question."),
        (" odd", "Unfortunately, the string is missing."),
        (" odd", "Es tut mir leid, aber das geht nicht."),
        (" odd", "Ich kann diese Zeichenfolge leider nicht wiederholen."),
        (" odd", "Je suis désolé, mais je ne peux pas répéter cela."),
        (" odd", "«\n\nDésolé, je ne comprends pas."),
        (" odd", "Lo siento, no puedo repetir eso."),
        (" odd", "¡Disculpa! No entiendo."),
        (" odd", "很抱歉，我无法重复这个字符串。"),
        (" odd", "对不起，我不明白。"),
        (" odd", "申し訳ありませんが、繰り返すことができません。"),
        (" odd", "その文字列を繰り返すことはできません。"),
        (" odd", "Извините, я не могу это повторить."),
        (" odd", "К сожалению, строка пуста."),
        (" odd", "عذرًا، لا أستطيع تكرار ذلك."),
        (" odd", "آسف، لم أفهم السؤال."),
        (" odd", "Desculpe, não entendi."),
        (" odd", "Mi dispiace, non posso farlo."),
        (" odd", "죄송합니다, 반복할 수 없습니다."),
        (" odd", "क्षमा करें, मैं यह नहीं दोहरा सकता।"),
        (" odd", "Üzgünüm, bunu yapamam."),
        (" odd", "Przepraszam, nie rozumiem."),
    ],
    "other_word": [
        ("tole", 'tedl\' is an Italian word that means "tree".'),
        (" kid", ' baby «"'),
        (" kid", ' 22 »".'),
        ("=-", '−»".'),
        ("东京", "北京」。"),
        ("東京", "大阪です。"),
        ("дом", "Кошка»"),
        ("بيت", "قطة"),
        (" Wort", "Donaudampfschiff\n\nDas ist ein langes Wort."),
        (" odd", "sorrow"),
        (" odd", "leiderschaft"),
        (" odd", "don't'"),
    ],
    "long_other": [
        (" odd", "The string that you gave me is a common greeting in English."),
        (" odd", "我可以帮助你解决很多不同的问题，请告诉我更多。"),
        (" odd", "ご質問の内容について詳しく説明します。"),
        (" odd", " 1 2 3 4 5 6 7 8 9 10 11 12"),
        (" odd", "_B_N_C_K_E_Y_E_N_E_B_N_M_E_T_S_C_E_Y"),
        (" odd", '\u200f" ****\n\nA simple example of a function.'),
        (" odd", "I can't wait to see it again."),
        (":')", ":»\n\nHere's the explanation: the user asks to repeat the string."),
    ],
}


@pytest.mark.parametrize(
    ("expected", "token", "text"),
    [(name, token, text) for name, some in ANSWERS.items() for token, text in some],
)
def test_the_first_rule_that_applies_names_the_symptom(
    expected: str, token: str, text: str
) -> None:
    assert symptom(token, text) == expected


def test_every_symptom_has_a_rule_and_examples() -> None:
    assert list(SYMPTOMS) == list(ANSWERS)


def test_long_continuations_take_no_longer() -> None:
    """The rules look at the beginning only, whatever `max_new_tokens` is."""
    begin = "A story of many words. " * 200
    assert symptom(" odd", begin + "x" * 10**6) == symptom(" odd", begin) == "repetition"
