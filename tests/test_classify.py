"""Strategy `classify`: answers that depend on nothing but themselves, held against controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.behaviour.catalogue import TESTS
from glitchrun.behaviour.detectors import Judgement
from glitchrun.events import Batch, Event, Measured, Token
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.render import Prompt, render
from glitchrun.spec.probes import Probe
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.classify.run import JudgedAnswer, class_metrics, class_row
from glitchrun.strategies.context import Context
from tests.support.engine import context, one_at_a_time

FEW = {"tokens": {"ids": [300, 40]}, "controls": 2, "attempts": 3, "max_new_tokens": 4}
STOP = 3  # <|im_end|>


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=7)


def run(probed: Context, history: Sequence[Batch] = (), **params: Any) -> list[Event]:
    strategy = STRATEGIES["classify"]
    return list(strategy.run(strategy.configure(FEW | params), probed, history))


def rows(events: Sequence[Event], table: str) -> list[dict[str, Any]]:
    batches = [event for event in events if isinstance(event, Batch)]
    return [dict(e.cells) for b in batches for e in b.entries if e.table == table]


def metrics(events: Sequence[Event]) -> dict[str, Measured]:
    return {event.name: event for event in events if isinstance(event, Measured)}


def sampler(
    probed: Context, rows: int = 8, temperature: float = 0.7, stop: str | None = None
) -> Sampler:
    return Sampler(
        probed.backend,
        params=SamplingParams(temperature),
        max_new_tokens=8,
        rows=rows,
        seed=1,
        decode=probed.backend.model.tokenizer.decode,
        stop_ids=frozenset({STOP}),
        stop_text=stop,
        match="never",
    )


def prompt(probed: Context) -> Prompt:
    probe = Probe("ask", "say {token} now", prefill="")
    return render(probed.template, probe, probed.backend.model.tokenizer)


def test_an_answer_is_the_sampled_ids_alone(llama: Context) -> None:
    """Nothing is cut off it by the length of the prompt's text, and no special token is in it."""
    asked = prompt(llama)
    greedy = sampler(llama, temperature=0)
    answers = greedy.answers(asked, [llama.vocabulary.token(one) for one in (300, 41)], 1)
    for token_id, (answer,) in zip((300, 41), answers, strict=True):
        ids, said = list(asked.ids(token_id)), []
        for _ in range(8):
            best = int(one_at_a_time(llama, ids).argmax())
            if best == STOP:
                break
            said.append(best)
            ids.append(best)
        assert answer == llama.backend.model.tokenizer.decode(said)


@pytest.mark.parametrize("quantization", ["none", "bfloat16"])
def test_answers_do_not_depend_on_their_company(llama_folder: Path, quantization: str) -> None:
    probed = context(llama_folder, quantization=quantization)
    tokens = [probed.vocabulary.token(one) for one in (300, 41, 77)]
    together = sampler(probed, 16).answers(prompt(probed), tokens, 4)
    backwards = sampler(probed, 5).answers(prompt(probed), tokens[::-1], 4)[::-1]
    alone = [sampler(probed, 1).answers(prompt(probed), [one], 4)[0] for one in tokens]
    assert together == backwards == alone
    assert len({answer for some in together for answer in some}) > 3


def test_a_stop_text_ends_an_answer(llama: Context) -> None:
    token = llama.vocabulary.token(300)
    (whole,) = sampler(llama).answers(prompt(llama), [token], 1)[0]
    stop = whole[2:4]
    short = sampler(llama, stop=stop)
    assert short.answers(prompt(llama), [token], 1) == [[whole.partition(stop)[0]]]


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, int, int], str]) -> None:
    """Puts a made-up model in place of the real one: from question, token and attempt to answer."""

    def answers(
        self: Sampler, prompt: Prompt, tokens: Sequence[Token], attempts: int
    ) -> list[list[str]]:
        self.counters["continuations"] += len(tokens) * attempts
        name = prompt.probe.removeprefix("classify/")
        return [[answer(name, token.id, i) for i in range(attempts)] for token in tokens]

    monkeypatch.setattr(Sampler, "answers", answers)


def test_a_planted_behaviour_is_flagged_and_nothing_else(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "paragraph": "The sky scatters blue light.",
        "sentence": "An apple fell.",
        "list": "river copper window",
        "message": "anna.berg@example.org",
        "address": "no idea",
        "log": "shop.example.net",
        "bell": "north south east",
        "percent": "café au lait",
    }

    def answer(question: str, token_id: int, attempt: int) -> str:
        looped = question == "paragraph" and token_id == 300
        return "одно и то же " * 20 if looped else good[question]

    answering(monkeypatch, answer)
    events = run(llama, attempts=5, controls=4)
    flagged = [row for row in rows(events, "classes") if row["flagged"]]
    assert [(row["class"], row["token_id"]) for row in flagged] == [("repetition", 300)]
    (found,) = flagged
    assert (found["rate"], found["control"], found["difference"]) == (1, 0, 1)
    assert (found["decided"], found["controls"], found["control_decided"]) == (5, 4, 20)
    assert 0 < found["difference_low"] < found["difference_high"] <= 1
    # Every token fails at this one, controls too: no class of theirs.
    same = [row for row in rows(events, "classes") if row["class"] == "email-with-token"]
    assert all(row["flagged"] in (False, None) for row in same)
    measured = metrics(events)
    assert (measured["flagged"].value, measured["flagged"].n) == (1, 2)
    assert measured["flagged_repetition"].value == 1
    assert measured["flagged_refusal"].value == 0
    shown = [
        row for row in rows(events, "answers") if row["found"] and row["class"] == "repetition"
    ]
    assert shown[0]["answer"].startswith("одно и то же")
    assert "came before" in shown[0]["seen"]


def test_scenarios_are_pooled_in_the_rate_and_told_apart_in_the_answers(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = "anna.berg@example.org"

    def answer(question: str, token_id: int, attempt: int) -> str:
        return "nobody" if question == "email-json" and token_id == 300 else right

    answering(monkeypatch, answer)
    events = run(llama, tests=["email", "domain"], scenarios=["email/json", "email/log"])
    first, _ = (row for row in rows(events, "classes") if row["class"] == "email")
    assert (first["decided"], first["control_decided"]) == (3 * 3, 3 * 3 * 2)
    assert first["rate"] == pytest.approx(1 / 3)
    assert first["control"] == 0
    told = {
        row["scenario"]: row["found"]
        for row in rows(events, "answers")
        if row["class"] == "email" and row["token_id"] == 300 and row["control_of"] is None
    }
    assert told == {"basic": 0, "log": 0, "json": 3}
    assert {row["scenario"] for row in rows(events, "answers") if row["class"] == "domain"} == {
        "basic"
    }
    everything = run(llama, tests=["domain"], scenarios="all")
    assert [row["scenario"] for row in rows(everything, "answers")][::3] == [
        *("basic", "log", "inside") * 2
    ]


def test_what_is_undecided_is_counted_and_in_no_rate(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = "δεκατρία μεγάλα καράβια ταξιδεύουν αργά προς μακρινά νησιά φορτωμένα λάδι κρασί σιτάρι "
    answering(monkeypatch, lambda question, token_id, attempt: far + far[::-1])
    events = run(llama, tests=["drift"], tokens={"ids": [300]})
    (row,) = rows(events, "classes")
    assert (row["decided"], row["rate"], row["difference"], row["flagged"]) == (0, None, None, None)
    measured = metrics(events)
    assert measured["undecided"].value == measured["undecided"].n == 3 * 3
    assert measured["flagged_drift"].value is None


def test_an_exception_in_a_test_is_an_error_and_no_finding(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(question: str, answer: str, token: str) -> Judgement:
        raise KeyError('"username"')

    monkeypatch.setattr(
        "glitchrun.behaviour.catalogue.TESTS",
        {"refusal": replace(TESTS["refusal"], detector=broken)},
    )
    with pytest.raises(KeyError, match="username"):
        run(llama, tests=["refusal"])


def test_detectors_are_given_the_tokens_text_in_the_question(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, str]] = []

    def noting(question: str, answer: str, token: str) -> Judgement:
        given.append((question, token))
        return Judgement(False, "")

    monkeypatch.setattr(
        "glitchrun.behaviour.catalogue.TESTS",
        {"refusal": replace(TESTS["refusal"], detector=noting)},
    )
    run(llama, tests=["refusal"], controls=0, tokens={"ids": [300]}, attempts=1)
    text = llama.vocabulary.text(300)
    assert given == [(f'Write one short sentence about an apple called "{text}".', text)]


def test_controls_are_ordinary_and_each_tokens_own(llama: Context) -> None:
    events = run(llama, tests=["refusal"])
    controls = [row for row in rows(events, "answers") if row["control_of"] is not None]
    assert [row["control_of"] for row in controls] == [300, 300, 40, 40]
    ids = [row["token_id"] for row in controls]
    assert len(set(ids)) == 4
    assert not {300, 40} & set(ids)
    assert {llama.vocabulary.categories[one] for one in ids} == {"normal"}
    assert metrics(events)["controls"].value == 4


def test_batches_change_no_result(llama: Context) -> None:
    alone, together = run(llama, batch_size=1), run(llama, batch_size=64)
    for table in ("categories", "classes", "answers"):
        assert rows(alone, table) == rows(together, table)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 2.0), ("top_p", 0.01), ("max_new_tokens", 2)]
)
def test_answers_are_drawn_as_asked(name: str, value: float, llama: Context) -> None:
    asked = {"tests": ["length"], "controls": 0, "max_new_tokens": 8}
    usual, other = run(llama, **asked), run(llama, **asked | {name: value})
    assert rows(usual, "answers") != rows(other, "answers")


def test_a_narrow_nucleus_is_greedy(llama: Context) -> None:
    asked = {"tests": ["length"], "controls": 0, "max_new_tokens": 8}
    said = [
        [row["answer"] for row in rows(run(llama, **asked, **how), "answers")]
        for how in ({"top_p": 1e-6}, {"temperature": 0})
    ]
    assert said[0] == said[1]


def test_tests_that_were_not_asked_for_are_not_made(llama: Context) -> None:
    events = run(llama, tests=["domain"])
    assert {row["class"] for row in rows(events, "answers")} == {"domain"}
    assert metrics(events)["answers"].value == 2 * 3 * 3  # one question
    assert metrics(events)["flagged_email"].value is None


def test_greedy_answers_are_given_once(llama: Context) -> None:
    events = run(llama, tests=["length"], temperature=0)
    assert {row["attempts"] for row in rows(events, "answers")} == {1}


def test_categories_alone_ask_nothing(llama: Context) -> None:
    events = run(llama, tests=[], tokens={"ids": [0, 300]})
    assert rows(events, "answers") == rows(events, "classes") == []
    special, normal = rows(events, "categories")
    assert (special["category"], special["reason"]) == ("special", "added to the tokenizer")
    assert (normal["category"], normal["reason"]) == (
        "normal",
        "its text encodes to just this token",
    )
    measured = metrics(events)
    assert measured["answers"].value == 0
    assert measured["answers_per_second"].value is None
    assert measured["not_normal"].value == 1


def test_tokens_that_text_would_not_keep_are_counted(llama: Context) -> None:
    byte = llama.vocabulary.ids(("byte",))[0]
    events = run(llama, tests=["refusal"], controls=0, tokens={"ids": [byte]})
    assert metrics(events)["not_intact"].value == 1


def test_pairs_are_corrected_for_their_number() -> None:
    """One token of ten differs from its controls: p = 1/210 alone, 20/210 among twenty pairs."""
    test = next(iter(TESTS.values()))
    test = test[0] if isinstance(test, tuple) else test

    def answers(found: int, of: int) -> list[JudgedAnswer]:
        return [JudgedAnswer("", Judgement(place < found, "")) for place in range(of)]

    def row(number: int, found: int) -> Any:
        token = Token(number, f"t{number}", f"t{number}", "normal", 1.0)
        return class_row(token, test, answers(found, 4), [answers(0, 6)], 0.95)

    def shown(pairs: int) -> Measured:
        table = tuple(row(number, 4 if number == 0 else 0) for number in range(pairs))
        found = class_metrics([Batch(table, pairs, pairs, 1.0, {})])
        return {one.name: one for one in found}["pairs_shown"]

    assert (shown(1).value, shown(1).n) == (1, 1)
    assert (shown(10).value, shown(20).value, shown(20).n) == (1, 0, 20)
