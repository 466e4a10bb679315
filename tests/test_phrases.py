"""Phrases: generated pairs, their controls, and what `test` and `validate` measure on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.behaviour.significance import McNemar
from glitchrun.cli.explain import _lines
from glitchrun.errors import RunError
from glitchrun.events import Batch, Entry, Event, Measured
from glitchrun.ledger.record import Metric
from glitchrun.plan.work import step_work
from glitchrun.probing.phrases import with_phrases
from glitchrun.report.headline import headline
from glitchrun.spec.probes import PROBES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Step
from glitchrun.strategies.context import Context
from glitchrun.strategies.prompt_lengths import PromptLengths
from glitchrun.vocabulary.phrases import Phrase, incomplete_pairs, phrase_of, phrase_of_text
from glitchrun.vocabulary.text import raw_bytes
from tests.support.engine import context, one_at_a_time
from tests.support.reporting import run_of, step
from tests.support.steps import all_events
from tests.support.tiny_models import tiny_gpt2


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=7)


def run(
    probed: Context, name: str, tokens: Any, history: Sequence[Batch] = (), **params: Any
) -> Any:
    strategy = STRATEGIES[name]
    config = strategy.configure({"tokens": tokens, "probes": ["repeat"], **params})
    return all_events(strategy, config, probed, history)


def cells(events: Sequence[Event], table: str = "phrases") -> list[dict[str, Any]]:
    entries = [entry for event in events if isinstance(event, Batch) for entry in event.entries]
    return [dict(entry.cells) for entry in entries if entry.table == table]


def metrics(events: Sequence[Event]) -> dict[str, float | None]:
    return {event.name: event.value for event in events if isinstance(event, Measured)}


@pytest.mark.parametrize("rule", ["incomplete", "reachable"])
def test_pairs_complete_a_character_and_every_drawn_pair_is_counted(
    llama: Context, rule: str
) -> None:
    tokenizer = llama.backend.model.tokenizer
    found = incomplete_pairs(llama.vocabulary, tokenizer, rule, 40, seed=3)
    assert len(found.phrases) == 40
    assert found.drawn == 40 + sum(found.dropped.values())
    assert set(found.dropped) <= {"not_utf8", "no_control", "not_reachable"}
    assert len({phrase.ids for phrase in found.phrases}) == 40
    for phrase in found.phrases:
        data = [raw_bytes(llama.vocabulary.pieces[one] or "") for one in phrase.ids]
        assert None not in data  # neither token is whole characters
        assert b"".join(filter(None, data)).decode() == phrase.text
        usual = tuple(tokenizer.encode(phrase.text, add_special_tokens=False))
        assert (phrase.control == usual) == (phrase.kind == "usual")
        assert (phrase.ids == usual) == (phrase.kind == "characters")
        assert tokenizer.decode(phrase.control) == phrase.text
    if rule == "reachable":
        assert {phrase.kind for phrase in found.phrases} == {"characters"}
    again = incomplete_pairs(llama.vocabulary, tokenizer, rule, 10, seed=3)
    assert again.phrases == found.phrases[:10]


def test_phrases_by_text_and_by_ids(llama: Context) -> None:
    tokenizer = llama.backend.model.tokenizer
    usual = tuple(tokenizer.encode("lazy dog", add_special_tokens=False))
    single = tuple(one for c in "lazy dog" for one in tokenizer.encode(c, add_special_tokens=False))
    assert phrase_of_text("lazy dog", tokenizer) == Phrase(usual, "lazy dog", single, "characters")
    assert phrase_of(single, tokenizer) == Phrase(single, "lazy dog", usual, "usual")
    assert phrase_of_text("a", tokenizer) == "no_control"
    assert (
        phrase_of([tokenizer.encode("é", add_special_tokens=False)[0], 131], tokenizer)
        == "not_utf8"
    )


def test_probabilities_are_those_of_the_plain_model(llama: Context) -> None:
    (row,) = cells(run(llama, "test", {"phrases": {"texts": ["lazy dog"]}}))
    prompt = llama.prompts(["repeat"])["repeat"]
    for name, sent in (("p", row["ids"]), ("control_p", row["control_ids"])):
        ps = []
        for answer in (row["ids"], row["control_ids"]):
            ids, p = [*prompt.prefix_ids, *sent, *prompt.suffix_ids], 1.0
            for one in answer:
                p *= float(one_at_a_time(llama, ids).softmax(-1)[one])
                ids.append(one)
            ps.append(p)
        assert row[name] == pytest.approx(max(ps), rel=1e-3)
    ids, said = [*prompt.prefix_ids, *row["ids"], *prompt.suffix_ids], []
    for _ in range(len(row["control_ids"]) + 2):
        said.append(int(one_at_a_time(llama, [*ids, *said]).argmax()))
    assert row["said"] == llama.backend.model.tokenizer.decode(said)


def test_neighbours_and_other_probes_do_not_lengthen_an_answer(llama: Context) -> None:
    wide = replace(PROBES["repeat"], name="wide", within=9)
    rows = []
    for texts, probes in ((["dog"], ["repeat"]), (["dog", "the lazy dog"], ["repeat", wide])):
        rows += cells(run(llama, "test", {"phrases": {"texts": texts}}, probes=probes))[:1]
    alone, beside = ([row["said"], row["control_said"]] for row in rows)
    assert alone == beside


def test_a_step_takes_the_phrases_that_another_failed(llama: Context) -> None:
    pairs = run(llama, "test", {"phrases": {"pairs": "incomplete", "limit": 9}})
    failed = [row["ids"] for row in cells(pairs) if row["result"] == "fail"]
    assert metrics(pairs)["phrases_failed"] == len(failed) > 0
    worse, better = (int(metrics(pairs)[f"phrases_{name}"] or 0) for name in ("worse", "better"))
    assert metrics(pairs)["phrases_p"] == McNemar(9, worse, better).p
    after = replace(llama, earlier={"pairs": [e for e in pairs if isinstance(e, Batch)]})
    events = run(after, "validate", {"from": "pairs"}, attempts=2, max_new_tokens=3)
    assert [row["ids"] for row in cells(events)] == failed
    attempts = cells(events, "phrase_attempts")
    for row in cells(events):
        own = [
            one for one in attempts if (one["phrase"], one["tokens"]) == (row["phrase"], "phrase")
        ]
        assert row["failures"] == 2 - sum(one["said"] for one in own)
    with pytest.raises(RunError, match="takes single tokens"):
        after.tokens({"from": "pairs"})


def test_resuming_gives_the_rest(llama: Context) -> None:
    source = {"phrases": {"pairs": "incomplete", "limit": 11}}
    whole = run(llama, "test", source)
    done = [event for event in whole if isinstance(event, Batch)]
    assert [batch.done for batch in done] == [8, 11]
    assert cells(run(llama, "test", source, done[:1])) == cells(done[1:])
    few = replace(llama, spec=replace(llama.spec, limit=3))
    assert cells(run(few, "test", source)) == cells(whole)[:3]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"ids": [[301, 102], [130, 6]]}, r"ids\[1\]: .* no whole characters"),
        ({"ids": [[5, 99999]]}, r"token id 99999 is outside"),
        ({"texts": ["a"]}, r"tokens.phrases.texts\[0\]: .* no control"),
    ],
)
def test_phrases_that_cannot_be_examined_are_refused(
    llama: Context, source: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        run(llama, "test", {"phrases": source})


def test_the_plan_counts_both_tokenizations(llama: Context) -> None:
    tokens = {"phrases": {"pairs": "incomplete", "limit": 30}}
    asked = Step("a", "validate", {"tokens": tokens, "probes": "strict", "attempts": 4})
    (work,) = step_work(replace(llama.spec, steps=(asked,)), 400)
    assert (work.tokens, work.continuations) == (30, 2 * 30 * 3 * 4)
    assert work.unit == work.to_json()["unit"] == "phrase"
    # Also where the phrases are those of other steps.
    texts = {"phrases": {"texts": ["the man", "it was"]}}
    steps = (
        Step("a", "test", {"tokens": tokens, "probes": "strict"}),
        Step("b", "test", {"tokens": texts, "probes": "strict"}),
        Step("c", "validate", {"tokens": {"from": "a"}, "probes": "strict", "attempts": 4}),
        Step("d", "validate", {"tokens": {"from": ["c", "b"]}, "probes": ["repeat"]}),
    )
    _, second, third, last = step_work(replace(llama.spec, steps=steps), 400)
    assert (second.tokens, second.unit) == (2, "phrase")
    assert (third.tokens, third.continuations) == (30, 2 * 30 * 3 * 4)
    assert third.caveat == (
        "30 phrases, each in two tokenizations. The bound assumes that all phrases of a fail."
    )
    assert (last.tokens, last.unit, last.continuations) == (32, "phrase", 2 * 32 * 5)


@pytest.mark.parametrize("name", ["test", "validate"])
def test_lengths_count_every_place_of_the_longest_phrase(name: str, llama: Context) -> None:
    """A few-shot probe contains the phrase several times, and each place is longer than a token."""
    tokenizer = llama.backend.model.tokenizer
    texts = ["the man", "it was said that the end", "of it"]
    longest = phrase_of_text(texts[1], tokenizer)
    assert isinstance(longest, Phrase)
    both = (longest.ids, longest.control)
    spec = replace(
        llama.spec, steps=(Step("own", "test", {"tokens": {"phrases": {"texts": texts}}}),)
    )
    given = PromptLengths(spec, llama.template, tokenizer, None)
    for tokens, place in (
        (spec.steps[0].params["tokens"], "tokens.phrases.texts[1]"),
        ({"phrases": {"ids": [[*map(int, longest.ids)], [5, 6]]}}, "tokens.phrases.ids[0]"),
        ({"from": "own"}, "tokens.from"),
    ):
        params = {"probes": "magikarp", "tokens": tokens}
        config = STRATEGIES[name].configure(params)
        found = list(STRATEGIES[name].text_lengths(config, given))
        assert len(found) == 3
        for (probe, prompt), length in zip(llama.prompts("magikarp").items(), found, strict=True):
            filled = with_phrases(prompt, both)
            answer = max(map(len, both)) + PROBES[probe].within + 2 - 2
            if name == "validate":
                answer = config.max_new_tokens - 1
            assert length.prompt == len(prompt.prefix_ids) + filled.tail_length
            assert length.new_tokens == answer
            assert length.parameter in (place, "max_new_tokens")
    assert found[0].total > 100
    (load,) = STRATEGIES[name].workloads(config, "own", 0)
    (longer,) = STRATEGIES[name].workloads(
        STRATEGIES[name].configure({**params, "tokens": {"phrases": {"texts": ["x" * 50]}}}), "", 0
    )
    slots = max(PROBES[probe].slots for probe in llama.prompts("magikarp"))
    assert longer.positions == load.positions + 50 * slots  # the plan's memory


def test_a_drawn_pair_that_the_model_has_no_positions_for_is_refused(tmp_path: Path) -> None:
    """Its control may be longer than the two tokens that the plan knows of."""
    probed = context(tiny_gpt2(tmp_path / "gpt2", positions=100), template="raw")
    tokens = {"phrases": {"pairs": "incomplete", "limit": 8}}
    config = STRATEGIES["test"].configure({"tokens": tokens, "probes": ["repeat"]})
    given = PromptLengths(probed.spec, probed.template, probed.backend.model.tokenizer, None)
    (length,) = STRATEGIES["test"].text_lengths(config, given)
    assert length.parameter == "tokens.phrases.pairs"
    small = context(tiny_gpt2(tmp_path / "small", positions=length.total), template="raw")
    with pytest.raises(RunError, match=f"and the model has only {length.total}; leave out"):
        run(small, "test", tokens)


def test_explain_and_the_headline_show_the_phrases_that_fail_alone(tmp_path: Path) -> None:
    rows = [
        {"phrase": text, "ids": [1, 2], "result": own, "control_result": control}
        for text, own, control in (("ab", "fail", "pass"), ("cd", "pass", "fail"), ("ef",) * 3)
    ]
    found = step("pairs", "test", *(Entry("phrases", row) for row in rows))
    shown = list(_lines(run_of(tmp_path, found), found, "phrases_worse", True))
    assert "  rows        1 of 3" in shown
    assert "phrase ab" in shown[-1]
    metrics = {
        name: Metric(value, 3) for name, value in (("phrases_failed", 1.0), ("phrases", 3.0))
    }
    told = headline(run_of(tmp_path, replace(found, metrics=metrics)))
    assert (told.number, told.unit) == (1, "phrase that the model does not repeat")
    assert told.result[0].startswith("«ab» as 1, 2: the model says")
