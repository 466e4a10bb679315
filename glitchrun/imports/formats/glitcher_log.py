"""glitcher's logs: one event per line, several events about each token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.imports.fields import (
    claimed_model,
    flag,
    mapping,
    number,
    objects,
    share,
    token,
    verdict,
    whole,
)
from glitchrun.imports.records import Content, Format, ImportedToken
from glitchrun.imports.result_file import Malformed, ResultFile

Fields = dict[str, Any]
_ABOUT_THE_RUN = ("start", "start_verification", "start_comparison", "start_validation")
_WITHOUT_FACTS = ("iteration_start", "testing_token", "start_token_test")
"""Events that announce an action; later events report its result."""
_LONG = ("formatted_input", "all_attempts_results", "test_results", "event", "is_llama32")
"""Prompts and generated texts, which are not imported."""


@dataclass
class _Fold:
    """The facts from the events so far."""

    tokens: dict[int, Fields] = field(default_factory=dict)
    seen: set[tuple[int, str]] = field(default_factory=set)
    settings: Fields = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def see(self, event: Mapping[str, Any], place: str) -> None:
        name = str(event.get("event"))
        self.events[name] += 1
        if name in _ABOUT_THE_RUN:
            self.settings |= mapping(event.get("info", event), f"{place}.info")
        elif name == "template_info":
            self.settings["template"] = event.get("info")
        elif name in _FACTS:
            self._about_a_token(name, event, place)
        elif name.endswith("_error"):
            self.left_out[f"errors ({name})"] += 1
        elif name not in _WITHOUT_FACTS:
            self.left_out[f"events of unknown kind ({name})"] += 1

    def _about_a_token(self, name: str, event: Mapping[str, Any], place: str) -> None:
        token_id = whole(event.get("token_id"), f"{place}.token_id")
        if (token_id, name) in self.seen:  # the walk was restarted in the same file
            self.repeated += 1
            return
        self.seen.add((token_id, name))
        self.left_out["generated texts"] += _texts_in(event, place)
        facts = _FACTS[name](event, place)
        known = self.tokens.setdefault(token_id, {"place": place})
        said = known.get("said", {}) | facts.pop("said", {})
        verdicts: Fields = {key: facts[key] for key in ("glitch", "confirmed") if key in facts}
        # The last verdict counts, but the first p: a strict check takes p from other prompts.
        settled: Fields = {**facts, **known, **verdicts}
        self.tokens[token_id] = {"text": _text(event), **settled, "said": said}


def _texts_in(event: Mapping[str, Any], place: str) -> int:
    key = "all_attempts_results"
    holders = [(event, place)] if key not in event else objects(event[key], f"{place}.{key}")
    tests = (test for holder, at in holders for test in _tests(holder, at))
    return sum("generated_text" in test for test in tests)


def _tests(holder: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    return [test for test, _ in objects(holder.get("test_results", []), f"{place}.test_results")]


def _text(event: Mapping[str, Any]) -> Any:
    return event.get("token", event.get("token_text"))


def _said(event: Mapping[str, Any], *used: str) -> Fields:
    known = ("token", "token_text", "token_id", *used, *_LONG)
    return {key: value for key, value in event.items() if key not in known}


def _probed(event: Mapping[str, Any], place: str) -> Fields:
    """The screening probe: p and entropy of the prompt "Please respond with exactly this"."""
    skipped = flag(event.get("should_skip", False), f"{place}.should_skip")
    failed = flag(event.get("is_glitch"), f"{place}.is_glitch")
    return {
        "glitch": None if skipped else failed,
        "filtered": skipped,
        "p": _measured(event, "target_probability", place),
        "entropy": _measured(event, "entropy", place),
        "said": _said(event, "should_skip", "is_glitch", "target_probability", "entropy"),
    }


def _measured(event: Mapping[str, Any], key: str, place: str) -> float | None:
    read = number if key == "entropy" else share
    return None if event.get(key) is None else read(event[key], f"{place}.{key}")


def _sampled(event: Mapping[str, Any], place: str) -> Fields:
    facts: Fields = {"confirmed": flag(event.get("is_glitch"), f"{place}.is_glitch")}
    for name, key in _SAMPLED.items():
        if event.get(key) is not None:
            facts[name] = (share if name == "asr" else whole)(event[key], f"{place}.{key}")
    return {**facts, "said": _said(event, "is_glitch", *_SAMPLED.values())}


_SAMPLED = {"asr": "asr", "attempts": "num_attempts", "failures": "glitch_attempts"}


def _validated(event: Mapping[str, Any], place: str) -> Fields:
    found, asr = verdict(event.get("validation_result"), f"{place}.validation_result")
    sampled = event.get("validation_method", "enhanced") == "enhanced"
    return {"confirmed" if sampled else "glitch": found} | ({} if asr is None else {"asr": asr})


def _strict(event: Mapping[str, Any], place: str) -> Fields:
    """Three probes, which must all fail; p is the largest of the three."""
    found = [_measured(test, "target_probability", place) for test in _tests(event, place)]
    ps = [p for p in found if p is not None]
    failed = flag(event.get("is_glitch"), f"{place}.is_glitch")
    return {"glitch": failed, "said": {"strict": failed}} | ({"p": max(ps)} if ps else {})


def _result(event: Mapping[str, Any], place: str) -> Fields:
    found, asr = verdict(event.get("is_glitch"), f"{place}.is_glitch")
    return {"glitch": found, "said": _said(event, "is_glitch")} | (
        {} if asr is None else {"confirmed": found, "asr": asr}
    )


_FACTS: dict[str, Callable[[Mapping[str, Any], str], Fields]] = {
    "token_verification": _probed,
    "enhanced_token_verification": _sampled,
    "mining_validation": _validated,
    "token_strict_verification": _strict,
    "token_result": _result,
}
"""Reader of each kind of event about a token."""


def _read(document: ResultFile) -> Content:
    fold = _Fold()
    for line, event in document.data:
        fold.see(event, f"line {line}")
    model = claimed_model(fold.settings)
    return Content(
        tokens=[_found(token_id, fields) for token_id, fields in fold.tokens.items()],
        claimed_model=model,
        settings={**fold.settings, "events": dict(fold.events)},
        repeated=fold.repeated,
        left_out={what: count for what, count in fold.left_out.items() if count},
    )


def _found(token_id: int, fields: Fields) -> ImportedToken:
    place = fields.pop("place")
    if fields.get("text") is not None and not isinstance(fields["text"], str):
        raise Malformed(f"{place}.token", f"expected a text, got {fields['text']!r:.40}")
    return token({"id": token_id}, place, **fields)


FORMATS = (
    Format(
        "glitcher-log",
        "glitch_mining_log_*.jsonl and glitcher's other logs: lines with 'event'",
        lambda document: "event" in document.first,
        _read,
    ),
)
