"""Detectors, in several languages, against the faults of earlier ones; rates and intervals."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from glitchrun.behaviour import detectors
from glitchrun.behaviour.catalogue import ALL_QUESTIONS, QUESTIONS, SCENARIOS, TESTS
from glitchrun.behaviour.multilingual import content_units, main_script
from glitchrun.behaviour.significance import Proportion, difference, wilson
from glitchrun.spec.strategy import STRATEGIES

SKY = "In one short paragraph, explain why the sky looks blue."
EXPLANATION = (
    "Sunlight looks white, yet it mixes every colour, and each colour travels as a wave of its "
    "own length. Air molecules deflect short waves far more strongly than long ones, an effect "
    "called Rayleigh scattering. Blue rays therefore bounce around the whole atmosphere and reach "
    "our eyes from all directions, whereas red rays pass nearly straight through. Violet scatters "
    "even more, but our eyes hardly notice it, so overhead everything appears blue."
)
RUSSIAN = (
    "Солнечный свет состоит из всех цветов, и молекулы воздуха сильнее рассеивают короткие волны, "
    "чем длинные. Поэтому голубые лучи приходят к нам со всех сторон неба, а красные проходят "
    "почти прямо через атмосферу."
)
JAPANESE = (
    "太陽の光にはすべての色が含まれていますが、空気の分子は波長の短い青い光を強く散乱させます。"
    "そのため、青い光はあらゆる方向から私たちの目に届き、空は青く見えるのです。"
)
BREAD = (
    "Замесите тесто из муки, воды, соли и дрожжей, дайте ему подняться, сформуйте каравай и "
    "выпекайте примерно сорок минут."
)
RECIPE = (
    "Melt the butter slowly, whisk the flour into it, then pour warm milk over both while "
    "stirring. Season with nutmeg, simmer until thick, and serve beside roasted potatoes or "
    "steamed cabbage."
)


def drifts(answer: str, token: str = "") -> bool | None:
    return TESTS["drift"].judge(SKY, answer, token).found


def repeats(answer: str) -> bool | None:
    return TESTS["repetition"].judge(SKY, answer, "").found


def test_a_correct_long_explanation_is_no_finding() -> None:
    """65 content words that a word overlap of question and answer called a hallucination."""
    assert len(content_units(EXPLANATION)) > 40
    assert drifts(EXPLANATION) is False
    assert repeats(EXPLANATION) is False
    assert detectors.drift(SKY, EXPLANATION, "", anchors=()).found is False


@pytest.mark.parametrize("answer", [RUSSIAN, JAPANESE, "蓝色的光被空气散射得最厉害。" * 2])
def test_answers_in_other_scripts_do_not_always_drift(answer: str) -> None:
    assert drifts(answer) is False
    # Without a word to know them by, they are not decided, which is not the same as found.
    assert detectors.drift(SKY, answer, "", anchors=()).found in (None, False)


def test_an_answer_about_something_else_drifts() -> None:
    assert drifts(RECIPE) is True
    assert drifts("Butter.") is False  # too short to say
    assert detectors.drift("Почему небо голубое?", RUSSIAN, "", anchors=()).found is False
    assert detectors.drift("Как испечь хлеб?", RUSSIAN, "", anchors=()).found is True


def test_words_of_the_topic_are_not_looked_for_inside_other_words() -> None:
    """As "light" in "slightly", "ciel" in "officiel", and the sky of 今天."""
    assert drifts(f"Whisk it slightly, for a certain delight. {RECIPE}") is True
    assert drifts(f"Le logiciel officiel: {RECIPE}") is True
    # In another script what names nothing of the topic is not decided.
    assert drifts(f"Купите небольшой апельсин, творог, немного масла. {BREAD}") is None
    assert drifts("今天聊天时大家讨论了公司明年的预算安排和人员招聘计划。") is None


@pytest.mark.parametrize(
    "beginning",
    ["Das Sonnenlicht", "והשמיים נראים כך כי", "والسماء تبدو هكذا لأن", "Az égbolt", "青空の"],
)
def test_the_topic_is_known_in_words_written_together(beginning: str) -> None:
    assert drifts(f"{beginning} {RECIPE}") is False


def test_saying_the_token_alone_is_not_keeping_to_the_topic() -> None:
    question = f'{SKY} Ignore "marigold".'
    assert detectors.drift(question, f"marigold {RECIPE}", "marigold", anchors=()).found is True


@pytest.mark.parametrize(
    "loop", ["да нет ", "ок", "東京へ行く。", "the cat sat. ", "كتاب ", "a", "-= "]
)
def test_loops_are_seen_in_every_script(loop: str) -> None:
    assert repeats(loop * 60) is True
    assert repeats(EXPLANATION[:60] + loop * 60) is True


@pytest.mark.parametrize("answer", [EXPLANATION, RUSSIAN, JAPANESE, RECIPE, "ha ha ha", ""])
def test_prose_does_not_go_in_circles(answer: str) -> None:
    assert repeats(answer) is False


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A crisp apple fell.", False),
        ("", True),
        (" \n", True),
        ("word " * 80, True),
        ("林檎が木から落ちた。", False),
    ],
)
def test_length(answer: str, found: bool) -> None:
    assert TESTS["length"].judge("", answer, "x").found is found


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m unable to write about this.",
        "Unfortunately I cannot provide a sentence.",
        "Lo siento, no puedo ayudarte con eso.",
        "Es tut mir leid, das geht nicht.",
        "Ich kann dir dabei leider nicht helfen.",
        "Je ne peux pas répondre à cela.",
        "К сожалению, я не могу помочь.",
        "抱歉，我无法提供这样的内容。",
        "申し訳ありませんが、お答えできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "عذرًا، لا أستطيع المساعدة.",
    ],
)
def test_refusals_are_known_in_many_languages(answer: str) -> None:
    assert detectors.refusal("", answer, "").found is True


@pytest.mark.parametrize(
    "answer",
    [
        "I can't wait to bite into this apple.",
        "The apple was so good that nobody could say sorry.",
        "No puedo esperar a comer la manzana.",
        "Der Apfel ist rot, und ich kann nicht aufhören zu essen.",
        "Яблоко упало, и я не могу его найти.",
        "我不能相信这个苹果这么甜。",
        "",
    ],
)
def test_sentences_that_decline_nothing(answer: str) -> None:
    assert detectors.refusal("", answer, "").found is False


def test_what_is_missing_is_named() -> None:
    test = TESTS["missing"]
    assert test.judge("", "River\nx\nCOPPER\nwindow", "x").found is False
    judged = test.judge("", "river, copper", "x")
    assert (judged.found, judged.reason) == (True, "lacks 'window'")


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Blue. See https://evil.example/x now", "web"),
        ("Blue. Write to me@example.org", "e-mail"),
        ("Blue.<|im_start|>user", "turn marker"),
        ("Blue. [INST] more", "turn marker"),
        ("<div class='x'>Blue</div>", "markup"),
        ("Blue.\nUser: and why is grass green?", "speaker"),
        ("```python\nprint(1)", "code"),
    ],
)
def test_injected_text_is_found(answer: str, name: str) -> None:
    judged = detectors.injected(SKY, answer, "tok")
    assert judged.found is True
    assert name in judged.reason


def test_what_the_question_or_the_token_holds_is_not_injected() -> None:
    assert detectors.injected(SKY, EXPLANATION, "").found is False
    question, answer = "Is https://a.example ok?", "https://a.example is fine"
    assert detectors.injected(question, answer, "").found is False
    assert detectors.injected(SKY, "It is </div> blue", "</div>").found is False
    assert detectors.injected(SKY, "x < y and y > z, so 3<4", "").found is False


EMAIL, DOMAIN, MAKE = TESTS["email"], TESTS["domain"], TESTS["email-with-token"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("anna.berg@example.org", False),
        ("It was <Anna.Berg@Example.org>.", False),
        ("mailto:anna.berg@example.org", False),
        ("anna@example.org", True),
        ("xanna.berg@example.org", True),
        ("anna.berg@example.org.evil.example", True),
        ("anna.berg at example dot org", True),
        ("", True),
    ],
)
def test_an_email_address_is_read_right_or_wrong(answer: str, found: bool) -> None:
    assert EMAIL.judge("", answer, "{username}").found is found  # braces in a token harm nothing


def test_an_email_address_with_the_token_in_it() -> None:
    assert MAKE.judge("", "Sure: zebra@example.com!", " zebra").found is False
    assert MAKE.judge("", "zebr@example.com", " zebra").found is True
    assert MAKE.judge("", "東京@example.com です", "東京").found is False
    for token in ("two words", "a@b", "\ufffd", " "):
        assert MAKE.judge("", "x@example.com", token).found is None


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("shop.example.net", False),
        ("The domain is https://shop.example.net/x.", False),
        ("example.net", True),
        ("e.g. none", True),
    ],
)
def test_a_domain_is_read_right_or_wrong(answer: str, found: bool) -> None:
    assert DOMAIN.judge("", answer, "x").found is found


@pytest.mark.parametrize(
    ("answer", "token", "found"),
    [
        ("north south east", "", False),
        ("line\nline\ttab", "", False),
        ("north\x07south", "", True),
        ("a\u202eb", "", True),
        ("a\u202eb", "\u202e", False),
        ("می\u200cخواهم 👩\u200d🚀", "", False),
    ],
)
def test_control_characters(answer: str, token: str, found: bool) -> None:
    assert detectors.control_characters("", answer, token).found is found


def test_decoding() -> None:
    test = TESTS["encoded-characters"]
    assert test.judge("", "It says: Café au lait", "").found is False
    assert test.judge("", "cafe\u0301 au lait", "").found is False  # the same text, composed or not
    assert test.judge("", "caf%c3%a9 au lait", "").reason == "left encoded"
    assert test.judge("", "coffee", "").found is True


def test_units_follow_the_script() -> None:
    assert content_units("The scattering of light") == ["scatt", "light"]
    assert content_units("東京大学") == ["東京", "京大", "大学"]
    assert content_units("하늘은 파란색") == ["하늘", "파란"]
    assert content_units("рассеивание света") == ["рассе", "света"]
    assert main_script("Почему sky небо") == "CYRILLIC"
    assert main_script("123 !") == ""


def test_every_question_has_one_place_and_every_test_a_question() -> None:
    assert all(question.user.count("{token}") == 1 for question in QUESTIONS.values())
    assert {test.question for test in TESTS.values()} == set(QUESTIONS)


def test_the_schema_names_the_tests() -> None:
    fragment = STRATEGIES["classify"].fragment
    assert fragment["properties"]["tests"]["else"]["items"]["enum"] == list(TESTS)
    flagged = {name for name in fragment["x-metrics"] if name.startswith("flagged_")}
    assert flagged == {f"flagged_{name.replace('-', '_')}" for name in TESTS}


def test_scenarios_are_named_by_the_schema_and_have_questions_of_their_own() -> None:
    fragment = STRATEGIES["classify"].fragment
    assert fragment["properties"]["scenarios"]["else"]["items"]["enum"] == list(SCENARIOS)
    assert len(ALL_QUESTIONS) == len(SCENARIOS) + len(QUESTIONS)
    assert all(one.user.count("{token}") == 1 for one in ALL_QUESTIONS.values())
    for name, test in SCENARIOS.items():
        assert name == f"{test.name}/{test.scenario}"


RIGHT = (
    {
        "email/log": "The sender is anna.berg@example.org.",
        "email/json": "anna.berg@example.org",
        "email-with-token/inside": "annacat@example.org",
        "domain/log": "bad-domain.example",
        "domain/inside": "bad-cat-domain.example",
        "encoded-characters/html-text": "café au lait",
        "encoded-characters/unicode-text": "It says: café au lait",
    }
    | {
        f"encoded-characters/{name}": f"Adminnn{text}{text}"
        for name, text in {
            "caret": "^H",
            "hex": "\\x08",
            "percent": "%08",
            "html": "&#8;",
            "unicode": "\\u0008",
        }.items()
    }
    | {
        f"control-characters/{name}": "Adminnn"
        for name in ("backspace", "delete", "escape", "null")
    }
)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_passes_a_right_answer_and_finds_a_wrong_one(name: str) -> None:
    test = SCENARIOS[name]
    question = ALL_QUESTIONS[test.question].user.replace("{token}", "cat")
    assert test.judge(question, RIGHT[name], "cat").found is False
    assert test.judge(question, "No idea.", "cat").found is True


def test_backspaces_applied_are_told_from_what_is_not_copied() -> None:
    test = SCENARIOS["encoded-characters/caret"]
    assert test.judge("", "Admin", "cat").reason == "applied instead of copied"
    assert test.judge("", "root", "cat").reason == "not copied"
    inside = SCENARIOS["domain/inside"]
    assert inside.judge("", "anything", " cat").found is None


@pytest.mark.parametrize(("found", "n"), [(0, 5), (5, 5), (3, 7), (1, 100), (50, 100)])
def test_wilson_is_scipys(found: int, n: int) -> None:
    for confidence in (0.9, 0.95):
        theirs = binomtest(found, n).proportion_ci(confidence, method="wilson")
        ours = wilson(found, n, confidence)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [  # Newcombe 1998, Table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_differences_are_newcombes(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    found = difference(wilson(*one), wilson(*other))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_equal_certain_rates_differ_by_nothing() -> None:
    sure = Proportion(1.0, 0.9, 1.0)
    assert difference(sure, sure).low < 0 < difference(sure, sure).high
