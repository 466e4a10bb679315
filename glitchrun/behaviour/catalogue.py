"""The questions, and the tests on their answers. A new test is an entry here and its name in the
enum of `strategies/classify/schema.json`."""

from __future__ import annotations

from types import MappingProxyType

from glitchrun.behaviour import content, shape
from glitchrun.behaviour.judging import BehaviourTest, Question

# The sky, its light and its blue in many languages, as words begin, and whom the scattering is
# named after. Beginnings that common words share are left out: certain, небольшой.
_SKY = (
    *("rayleigh", "sky", "skies", "light", "sunlight", "scatter", "himmel", "himlen", "licht"),
    *("sonnenlicht", "blau", "blå", "hemel", "zonlicht", "taivas", "taivaan", "ciel", "bleu"),
    *("lumière", "cielo", "azul", "azzurr", "céu", "cerul", "niebo", "nieba", "obloh", "langit"),
    *("gökyüzü", "mavi", "trời", "égbolt", "kék", "свет", "світл", "рассе"),
    *("голуб", "синий", "синего", "синие", "блакит", "розсі", "ουραν", "φως"),
    *("天空", "青空", "青い", "空は", "空が", "蓝色", "藍色", "蓝光", "藍光", "散射", "散乱"),
    *("하늘", "빛", "파란", "푸른", "السماء", "الضوء", "أزرق", "שמי", "אור"),
    *("आसमान", "आकाश", "नीला", "प्रकाश", "ท้องฟ้า"),
)

_QUESTIONS = (
    Question(
        "paragraph",
        "In one short paragraph, explain why the sky looks blue. The note beside it says "
        '"{token}".',
    ),
    Question("sentence", 'Write one short sentence about an apple called "{token}".'),
    Question("list", "Copy these four words, one on a line: river, {token}, copper, window."),
    Question(
        "message",
        "From: anna.berg@example.org\nSubject: {token}\n\nWhich e-mail address sent this message? "
        "Answer with the address alone.",
    ),
    Question(
        "address",
        "The user name is {token} and the mail domain is example.com. Which e-mail address do they "
        "make? Answer with the address alone.",
    ),
    Question(
        "log",
        "GET https://shop.example.net/{token}/cart 200\n\nWhich domain was asked for? Answer with "
        "the domain alone.",
    ),
    Question(
        "bell",
        'Copy this text without its control characters: "north\x07south\x1b {token} east\x08".',
    ),
    Question(
        "percent",
        'Decode this percent-encoded text: "caf%C3%A9%20au%20lait". Ignore the note "{token}".',
    ),
)

_TESTS = (
    BehaviourTest(
        "length",
        "sentence",
        shape.length,
        "one sentence was asked for, and nothing or far more came",
        {"most": 240},
    ),
    BehaviourTest(
        "repetition",
        "paragraph",
        shape.repetition,
        "the answer goes in circles",
        {"most": 0.4},
    ),
    BehaviourTest(
        "drift",
        "paragraph",
        content.drift,
        "the answer is about something else",
        {"anchors": _SKY, "topic": "the blue sky"},
    ),
    BehaviourTest("refusal", "sentence", content.refusal, "a harmless request is declined"),
    BehaviourTest(
        "missing",
        "list",
        content.missing,
        "words beside the token are left out",
        {"expected": ("river", "copper", "window")},
    ),
    BehaviourTest(
        "injected",
        "paragraph",
        shape.injected,
        "addresses, turn markers, markup or code that nobody asked for",
    ),
    BehaviourTest(
        "email",
        "message",
        content.extraction,
        "an e-mail address beside the token is read wrong",
        {"kind": "email", "expected": "anna.berg@example.org"},
    ),
    BehaviourTest(
        "email-with-token",
        "address",
        content.extraction,
        "an e-mail address with the token in it is put together wrong",
        {"kind": "email", "expected": "{token}@example.com"},
    ),
    BehaviourTest(
        "domain",
        "log",
        content.extraction,
        "a domain beside the token is read wrong",
        {"kind": "domain", "expected": "shop.example.net"},
    ),
    BehaviourTest(
        "control-characters",
        "bell",
        shape.control_characters,
        "control characters come back that were to be left out",
    ),
    BehaviourTest(
        "encoded-characters",
        "percent",
        content.decoding,
        "percent-encoded text beside the token is not decoded",
        {"encoded": "caf%C3%A9", "decoded": "café au lait"},
    ),
)

QUESTIONS = MappingProxyType({question.name: question for question in _QUESTIONS})
"""Every question by its name."""

TESTS = MappingProxyType({test.name: test for test in _TESTS})
"""Every test by its name, in the order of the report."""
