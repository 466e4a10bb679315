"""Further scenarios and formats of the tests that read addresses and characters.

Each asks for the same as its test in another setting; a test's rates count all that were asked. The
names stand in the enum of `scenarios` in `strategies/classify/schema.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from glitchrun.behaviour import content
from glitchrun.behaviour.catalogue import QUESTIONS, TESTS
from glitchrun.behaviour.judging import BehaviourTest, Indicator, Question

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
"""A backspace as it is written in text; a reader who applies it turns Adminnn into Admin."""
_CONTROLS = {"backspace": "\x08", "delete": "\x7f", "escape": "\x1b[0m", "null": "\x00"}


def _sources() -> Iterator[tuple[str, str, Question, Indicator, dict[str, str]]]:
    """Test, scenario, question, indicator and its parameters."""
    yield from _addresses()
    for name, character in _CONTROLS.items():
        question = _user_name(f"control-{name}", f"Adminnn{character}{character}")
        known = {"expected": "Adminnn", "applied": "Admin"}
        yield "control-characters", name, question, content.copied, known
    for name, written in _BACKSPACES.items():
        question = _user_name(f"written-{name}", f"Adminnn{written}{written}")
        known = {"expected": f"Adminnn{written}{written}", "applied": "Admin"}
        yield "encoded-characters", name, question, content.copied, known
    for name, encoded in (("html-text", "caf&#233;"), ("unicode-text", "caf\\u00e9")):
        user = f'Decode this encoded text: "{encoded} au lait". Ignore the note "{{token}}".'
        known = {"encoded": encoded, "decoded": "café au lait"}
        yield "encoded-characters", name, Question(name, user), content.decoding, known


def _addresses() -> Iterator[tuple[str, str, Question, Indicator, dict[str, str]]]:
    email = "\n\nWhich e-mail address sent this message? " + _ALONE.format("address")
    domain = "\n\nWhich domain is the message from? " + _ALONE.format("domain")
    anna = {"kind": "email", "expected": "anna.berg@example.org"}
    user = f"{_POSTFIX}from=<anna.berg@example.org> to=<ops@example.net> helo=<{{token}}>{email}"
    yield "email", "log", Question("email-log", user), content.extraction, anna
    user = f'{{"from": "anna.berg@example.org", "subject": "{{token}}"}}{email}'
    yield "email", "json", Question("email-json", user), content.extraction, anna
    user = f"From: anna{{token}}@example.org\nSubject: lunch{email}"
    known = {"kind": "email", "expected": "anna{token}@example.org"}
    yield "email-with-token", "inside", Question("email-inside", user), content.inside, known
    user = f"{_POSTFIX}from=<ops@bad-domain.example> to=<anna@example.net> helo=<{{token}}>{domain}"
    known = {"kind": "domain", "expected": "bad-domain.example"}
    yield "domain", "log", Question("domain-log", user), content.extraction, known
    user = f"{_POSTFIX}from=<ops@bad-{{token}}-domain.example> to=<anna@example.net>{domain}"
    known = {"kind": "domain", "expected": "bad-{token}-domain.example"}
    yield "domain", "inside", Question("domain-inside", user), content.inside, known


def _user_name(name: str, written: str) -> Question:
    return Question(
        name,
        f"L: {written} P: {{token}}\n\nWhich user name stands after L? Copy it as it is written, "
        "and nothing else.",
    )


def _all() -> Iterator[tuple[str, BehaviourTest, Question]]:
    for test, name, question, indicator, known in _sources():
        about = TESTS[test].description
        made = BehaviourTest(test, question.name, indicator, about, known, scenario=name)
        yield f"{test}/{name}", made, question


SCENARIOS = MappingProxyType({name: test for name, test, _ in _all()})
"""Every further scenario by TEST/SCENARIO, in the order of the report."""

ALL_QUESTIONS = MappingProxyType(
    {**QUESTIONS, **{question.name: question for *_, question in _all()}}
)
"""The questions of every test and scenario, by name."""


def chosen_tests(
    tests: str | Sequence[str], scenarios: str | Sequence[str] | None
) -> tuple[tuple[BehaviourTest, ...], ...]:
    """Each of the `tests`, followed by those of the `scenarios` that belong to it; `all` for all of
    either."""
    names = TESTS if tests == "all" else tests
    more = SCENARIOS if scenarios == "all" else scenarios or ()
    further = [SCENARIOS[name] for name in SCENARIOS if name in more]
    return tuple((TESTS[name], *(test for test in further if test.name == name)) for name in names)
