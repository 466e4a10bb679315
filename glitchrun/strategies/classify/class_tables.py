"""The rows and metrics of `classify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.behaviour.catalogue import TESTS, BehaviourTest
from glitchrun.behaviour.detectors import Judgement
from glitchrun.behaviour.proportions import Proportion, difference, wilson
from glitchrun.behaviour.significance import ALPHA, adjusted, fisher_more
from glitchrun.events import Batch, Entry, Measured, Token

_EXCERPT = 160
"""Code points of an answer that are kept."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """A sampled answer, and a test's judgement on it."""

    text: str
    judgement: Judgement


def category_row(token: Token, reason: str) -> Entry:
    """The tokenizer category of one token, and the reason."""
    cells = {"token_id": token.id, "token": token.text, "category": token.category}
    return Entry("categories", {**cells, "reason": reason})


def class_row(
    token: Token,
    test: BehaviourTest,
    own: Sequence[JudgedAnswer],
    controls: Sequence[Sequence[JudgedAnswer]],
    confidence: float,
) -> Entry:
    """The rate at which one token shows a class, compared with that of its controls."""
    rate, decided = _rate(own, confidence)
    control, control_decided = _rate([one for some in controls for one in some], confidence)
    apart = difference(rate, control) if rate and control else None
    cells = {
        "class": test.name,
        "token": token.text,
        "token_id": token.id,
        "flagged": None if apart is None else apart.low > 0,
        "decided": decided,
        **_bounds("rate", rate),
        "controls": len(controls),
        "control_decided": control_decided,
        **_bounds("control", control),
        **_bounds("difference", apart),
    }
    return Entry("classes", cells)


def answer_row(
    token: Token, control_of: Token | None, test: BehaviourTest, answers: Sequence[JudgedAnswer]
) -> Entry:
    """One token's answers to a test, with the first that shows the class, or else the first."""
    shown = next((one for one in answers if one.judgement.found), answers[0])
    found = [one.judgement.found for one in answers]
    cells = {
        "class": test.name,
        "token": token.text,
        "token_id": token.id,
        "control_of": None if control_of is None else control_of.id,
        "scenario": test.scenario,
        "attempts": len(answers),
        "found": found.count(True),
        "undecided": found.count(None),
        "seen": shown.judgement.reason,
        "answer": _excerpt(shown.text),
    }
    return Entry("answers", cells)


def class_metrics(batches: Sequence[Batch]) -> Iterator[Measured]:
    """The metrics of a step, headline first."""
    entries = [entry for batch in batches for entry in batch.entries]
    categories = [entry.cells for entry in entries if entry.table == "categories"]
    classes = [entry.cells for entry in entries if entry.table == "classes"]
    answers = [entry.cells for entry in entries if entry.table == "answers"]
    compared = [row for row in classes if row["flagged"] is not None]
    flagged = [row for row in compared if row["flagged"]]
    n = len(categories)
    yield Measured("flagged", len({row["token_id"] for row in flagged}), n)
    yield Measured("classified", n, n)
    yield Measured("not_normal", sum(row["category"] != "normal" for row in categories), n)
    yield Measured("pairs_flagged", len(flagged), len(compared))
    yield Measured("pairs", len(classes), len(classes))
    yield Measured("pairs_compared", len(compared), len(classes))
    yield Measured("pairs_shown", _shown(compared), len(compared))
    for name in TESTS:
        rows = [row for row in compared if row["class"] == name]
        value = sum(row["flagged"] for row in rows) if rows else None
        yield Measured(f"flagged_{name.replace('-', '_')}", value, len(rows))
    judged = sum(row["attempts"] for row in answers)
    yield Measured("undecided", sum(row["undecided"] for row in answers), judged)
    yield from _work(batches, n)


def _shown(compared: Sequence[Mapping[str, Any]]) -> int | None:
    """The pairs whose one-sided exact Fisher test, adjusted by Benjamini and Hochberg over all
    pairs compared, is at most `ALPHA`; None without pairs."""
    ps = [
        fisher_more(
            round(row["rate"] * row["decided"]),
            row["decided"],
            round(row["control"] * row["control_decided"]),
            row["control_decided"],
        )
        for row in compared
    ]
    return sum(p <= ALPHA for p in adjusted(ps)) if ps else None


def _work(batches: Sequence[Batch], n: int) -> Iterator[Measured]:
    total = {
        name: sum(batch.counters.get(name, 0) for batch in batches)
        for name in ("controls", "continuations", "resampled", "not_intact")
    }
    seconds = sum(batch.seconds for batch in batches)
    yield Measured("controls", total["controls"], n)
    yield Measured("answers", total["continuations"], n)
    rate = total["continuations"] / seconds if seconds and total["continuations"] else None
    yield Measured("answers_per_second", rate, total["continuations"])
    yield Measured("resampled", total["resampled"], total["continuations"])
    yield Measured("not_intact", total["not_intact"], n)


def _rate(answers: Sequence[JudgedAnswer], confidence: float) -> tuple[Proportion | None, int]:
    """The share of decided answers that show a class, None where none is decided; their number."""
    decided = [one.judgement.found for one in answers if one.judgement.found is not None]
    if not decided:
        return None, 0
    return wilson(sum(decided), len(decided), confidence), len(decided)


def _bounds(name: str, rate: Proportion | None) -> dict[str, float | None]:
    low, high = f"{name}_low", f"{name}_high"
    if rate is None:
        return {name: None, low: None, high: None}
    return {name: rate.value, low: rate.low, high: rate.high}


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
