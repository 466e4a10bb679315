"""The questions, and the tests on their answers.

A new test is an entry of `_TESTS`, and its name in the enum of `strategies/classify/schema.json`. A
test that reads addresses or characters has additional scenarios, which ask for the same in another
setting or format. Its rates count the answers in all scenarios asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from glitchrun.behaviour import detectors
from glitchrun.behaviour.detectors import Detector, Judgement


@dataclass(frozen=True, slots=True)
class Question:
    """A user text with a place for the token."""

    name: str
    user: str
    """Contains `{token}` exactly once."""


@dataclass(frozen=True, slots=True)
class BehaviourTest:
    """One behavioural class: a detector on the answers to a question."""

    name: str
    question: str
    detector: Detector
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scenario: str = "basic"
    """Name of the setting in which the question is asked."""

    def judge(self, question: str, answer: str, token: str) -> Judgement:
        """The judgement on one answer. `question` contains the token's text, not `{token}`."""
        return self.detector(question, answer, token, **self.parameters)


# Beginnings of words for the sky, its light and its blue in many languages, and the name Rayleigh.
# Beginnings that common words share, such as certain and небольшой, are left out.
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
        detectors.length,
        "the answer is empty, or far longer than the one sentence asked for",
        {"most": 240},
    ),
    BehaviourTest(
        "repetition",
        "paragraph",
        detectors.repetition,
        "the answer repeats itself",
        {"most": 0.4},
    ),
    BehaviourTest(
        "drift",
        "paragraph",
        detectors.drift,
        "the answer is about something else",
        {"anchors": _SKY, "topic": "the blue sky"},
    ),
    BehaviourTest(
        "refusal", "sentence", detectors.refusal, "the answer declines a harmless request"
    ),
    BehaviourTest(
        "missing",
        "list",
        detectors.missing,
        "the answer leaves out words next to the token",
        {"expected": ("river", "copper", "window")},
    ),
    BehaviourTest(
        "injected",
        "paragraph",
        detectors.injected,
        "the answer contains addresses, turn markers, markup or code without being asked",
    ),
    BehaviourTest(
        "email",
        "message",
        detectors.extraction,
        "the answer gets an e-mail address next to the token wrong",
        {"kind": "email", "expected": "anna.berg@example.org"},
    ),
    BehaviourTest(
        "email-with-token",
        "address",
        detectors.extraction,
        "the answer gets an e-mail address that contains the token wrong",
        {"kind": "email", "expected": "{token}@example.com"},
    ),
    BehaviourTest(
        "domain",
        "log",
        detectors.extraction,
        "the answer gets a domain next to the token wrong",
        {"kind": "domain", "expected": "shop.example.net"},
    ),
    BehaviourTest(
        "control-characters",
        "bell",
        detectors.control_characters,
        "the answer contains control characters that it should leave out",
    ),
    BehaviourTest(
        "encoded-characters",
        "percent",
        detectors.decoding,
        "the answer does not decode percent-encoded text next to the token",
        {"encoded": "caf%C3%A9", "decoded": "café au lait"},
    ),
)

QUESTIONS = MappingProxyType({question.name: question for question in _QUESTIONS})
"""Every question by its name."""

TESTS = MappingProxyType({test.name: test for test in _TESTS})
"""Every test by its name, in the order of the report."""

_ALONE = "Answer with the {} alone."
_POSTFIX = (
    "Jul 12 17:45:02 mx postfix/smtpd[2345]: reject: RCPT from unknown[203.0.113.1]: Relay denied; "
)
_BACKSPACES = {
    "caret": "^H",
    "hex": "\\x08",
    "percent": "%08",
    "html": "&#8;",
    "unicode": "\\u0008",
}
"""Notations of a backspace. Two backspaces, if applied, turn Adminnn into Admin."""
_CONTROLS = {"backspace": "\x08", "delete": "\x7f", "escape": "\x1b[0m", "null": "\x00"}


def _sources() -> Iterator[tuple[str, str, Question, Detector, dict[str, str]]]:
    """Yields test, scenario, question, detector and the detector's parameters."""
    yield from _addresses()
    for name, character in _CONTROLS.items():
        question = _user_name(f"control-{name}", f"Adminnn{character}{character}")
        known = {"expected": "Adminnn", "applied": "Admin"}
        yield "control-characters", name, question, detectors.copied, known
    for name, written in _BACKSPACES.items():
        question = _user_name(f"written-{name}", f"Adminnn{written}{written}")
        known = {"expected": f"Adminnn{written}{written}", "applied": "Admin"}
        yield "encoded-characters", name, question, detectors.copied, known
    for name, encoded in (("html-text", "caf&#233;"), ("unicode-text", "caf\\u00e9")):
        user = f'Decode this encoded text: "{encoded} au lait". Ignore the note "{{token}}".'
        known = {"encoded": encoded, "decoded": "café au lait"}
        yield "encoded-characters", name, Question(name, user), detectors.decoding, known


def _addresses() -> Iterator[tuple[str, str, Question, Detector, dict[str, str]]]:
    email = "\n\nWhich e-mail address sent this message? " + _ALONE.format("address")
    domain = "\n\nWhich domain is the message from? " + _ALONE.format("domain")
    anna = {"kind": "email", "expected": "anna.berg@example.org"}
    user = f"{_POSTFIX}from=<anna.berg@example.org> to=<ops@example.net> helo=<{{token}}>{email}"
    yield "email", "log", Question("email-log", user), detectors.extraction, anna
    user = f'{{"from": "anna.berg@example.org", "subject": "{{token}}"}}{email}'
    yield "email", "json", Question("email-json", user), detectors.extraction, anna
    user = f"From: anna{{token}}@example.org\nSubject: lunch{email}"
    known = {"kind": "email", "expected": "anna{token}@example.org"}
    yield "email-with-token", "inside", Question("email-inside", user), detectors.inside, known
    user = f"{_POSTFIX}from=<ops@bad-domain.example> to=<anna@example.net> helo=<{{token}}>{domain}"
    known = {"kind": "domain", "expected": "bad-domain.example"}
    yield "domain", "log", Question("domain-log", user), detectors.extraction, known
    user = f"{_POSTFIX}from=<ops@bad-{{token}}-domain.example> to=<anna@example.net>{domain}"
    known = {"kind": "domain", "expected": "bad-{token}-domain.example"}
    yield "domain", "inside", Question("domain-inside", user), detectors.inside, known


def _user_name(name: str, written: str) -> Question:
    return Question(
        name,
        f"L: {written} P: {{token}}\n\nWhich user name stands after L? Copy it as it is written, "
        "and nothing else.",
    )


def _all() -> Iterator[tuple[str, BehaviourTest, Question]]:
    for test, name, question, detector, known in _sources():
        about = TESTS[test].description
        scenario = BehaviourTest(test, question.name, detector, about, known, scenario=name)
        yield f"{test}/{name}", scenario, question


SCENARIOS = MappingProxyType({name: test for name, test, _ in _all()})
"""Every further scenario by TEST/SCENARIO, in the order of the report."""

ALL_QUESTIONS = MappingProxyType(
    {**QUESTIONS, **{question.name: question for *_, question in _all()}}
)
"""The questions of every test and scenario, by name."""


def chosen_tests(
    tests: str | Sequence[str], scenarios: str | Sequence[str] | None
) -> tuple[tuple[BehaviourTest, ...], ...]:
    """Each of the `tests`, followed by its `scenarios`. `all` selects every test or scenario."""
    names = TESTS if tests == "all" else tests
    more = SCENARIOS if scenarios == "all" else scenarios or ()
    further = [SCENARIOS[name] for name in SCENARIOS if name in more]
    return tuple((TESTS[name], *(test for test in further if test.name == name)) for name in names)
