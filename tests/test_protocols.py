"""Probes of a spec and protocols: definitions, keys, greedy answers, rules and classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.behaviour.text_answers import expected_answer, is_right
from glitchrun.events import Answered, Batch, ProbeResult, Token, Verified
from glitchrun.events_json import batch_from_json, batch_to_json
from glitchrun.plan.step_keys import step_keys
from glitchrun.plan.work import step_work
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import intact, render
from glitchrun.report.agreement import agreements, definitions, shown
from glitchrun.report.comparison.pairs import Counts
from glitchrun.report.headline import headline
from glitchrun.report.machine_readable import run_json
from glitchrun.report.markdown import markdown
from glitchrun.report.token_files import token_lines, write_tokens
from glitchrun.report.totals import bands, is_shown, severity
from glitchrun.spec.digest import changed_paths, results_digest
from glitchrun.spec.experiment_loading import check_files, load_experiment
from glitchrun.spec.probes import PROBES, PROTOCOLS, any_of, defined_probe, probe_names, probes_of
from glitchrun.spec.types import Spec, Thresholds
from glitchrun.strategies.context import Context
from glitchrun.strategies.judging import Judge
from glitchrun.verdicts import classes, judged
from tests.support.engine import context, one_at_a_time
from tests.support.real_tokenizers import mistral, smollm2
from tests.support.reporting import run_of, step

DATA = json.loads((Path(__file__).parent / "data" / "magikarp_verdicts.json").read_text())
HEAD = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: own}
model: {path: org/model}
"""
OWN = (
    HEAD
    + """\
probes:
  own:
    user: 'Repeat exactly: {token}'
    shots: [{user: "Repeat exactly: cat", answer: "cat"}]
  spare: {user: '{token}?'}
steps:
  - {id: a, strategy: test, probes: [own], tokens: {ids: [1]}}
  - {id: b, strategy: test, probes: [repeat], tokens: {ids: [1]}}
"""
)


def spec_of(folder: Path, text: str = OWN, *sets: str) -> Spec:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, sets, {}).cells[0].spec


# In the spec --------------------------------------------------------------------------------------


def test_names_of_probes_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"

    def codes(probes: str, steps: str) -> list[tuple[str, str]]:
        path.write_text(f"{HEAD}probes: {probes}\nsteps: {steps}\n", encoding="utf-8")
        return [(one.code, one.path) for one in check_files([path], {})[0]]

    own = "{own: {user: '{token}'}, spell: {user: '{token}', expect: spelling}}"
    assert codes(own, "[{strategy: scan, probes: [own, repeat, magikarp]}]") == []
    assert codes("{repeat: {user: '{token}'}}", "[{strategy: scan}]") == [
        ("GR330", "probes.repeat")
    ]
    assert codes("{strict: {user: '{token}'}}", "[{strategy: scan}]") == [
        ("GR330", "probes.strict")
    ]
    assert codes("{a b: {user: '{token}'}}", "[{strategy: scan}]")[0][0] == "GR108"
    steps = "[{strategy: scan, probes: [own, owm]}]"
    assert codes(own, steps) == [("GR103", "steps[0].probes[1]")]
    steps = "[{strategy: validate, tokens: {ids: [1]}, probes: [own, spell]}]"
    assert codes(own, steps) == [("GR333", "steps[0].probes[1]")]
    steps = "[{strategy: validate, tokens: {ids: [1]}, probes: glitchhunter}]"
    assert {code for code, _ in codes(own, steps)} == {"GR333"}
    for search, fits in (("gradient", False), ("cascade", False), ("random", True)):
        for first in ("spell", "input_output"):
            steps = f"[{{strategy: mine, search: {search}, probes: [{first}]}}]"
            assert codes(own, steps) == ([] if fits else [("GR333", "steps[0].probes[0]")])


def test_wrong_kinds_of_values_are_reported_once_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"

    def problems(probe: str) -> list[tuple[str, str, str]]:
        path.write_text(f"{HEAD}probes: {{own: {probe}}}\nsteps: [{{strategy: scan}}]\n")
        return [(one.code, one.message, one.hint) for one in check_files([path], {})[0]]

    assert problems("{user: {token}}") == [
        ("GR102", "probes.own.user must be text, not a mapping",
         "put the text in quotes: YAML reads braces as a mapping"),
    ]  # fmt: skip
    assert [one[0] for one in problems("{user: '{token}', pass: argmax}")] == ["GR102"]
    (found,) = problems("{user: '{token}', pass: {argmax: false}}")
    assert found[1] == "probes.own.pass.argmax must be true, not false"


def test_definitions_compose_like_other_mappings(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "kind: Fragment\nprobes:\n  own: {user: 'Say {token}', prefill: a, positions: 2}\n"
        "steps: [{strategy: scan, probes: [own]}]\n"
    )
    text = f"{HEAD}extends: [base.yaml]\nprobes: {{own: {{prefill: null, positions: 3}}}}\n"
    (probe,) = spec_of(tmp_path, text).steps[0].probes.values()
    assert (probe.user, probe.prefill, probe.within) == ("Say {token}", "", 3)
    (probe,) = spec_of(tmp_path, text, "probes.own.positions=5").steps[0].probes.values()
    assert probe.within == 5
    path = tmp_path / "spec.yaml"
    path.write_text(text + "matrix: {axes: {probes.own.positions: [1, 4]}}\n")
    cells = load_experiment(path, (), {}).cells
    assert [cell.spec.steps[0].probes["own"].within for cell in cells] == [1, 4]


def test_a_definition_enters_the_key_of_the_steps_that_use_it(tmp_path: Path) -> None:
    def keys(*sets: str) -> tuple[str, ...]:
        spec = spec_of(tmp_path, OWN, *sets)
        return tuple(one.key for one in step_keys(spec, "model", {}, {}))

    plain = keys()
    assert keys("probes.own.user=Say {token}")[0] != plain[0]
    assert keys("probes.own.positions=2")[0] != plain[0]
    assert keys("probes.own.positions=1") == plain
    for change in ("probes.own.user=Say {token}", "probes.spare.user='{token}!'"):
        assert keys(change)[1] == plain[1]
    spec, other = spec_of(tmp_path), spec_of(tmp_path, OWN, "probes.spare.user='{token}!'")
    assert results_digest(spec) == results_digest(other)
    assert [one[1] for one in changed_paths(spec.document, other.document)] == ["cosmetic"]
    used = spec_of(tmp_path, OWN, "probes.own.user='{token}!'")
    assert [one[1] for one in changed_paths(spec.document, used.document)] == ["results"]


def test_a_protocol_stands_for_its_probes() -> None:
    assert probe_names("strict") == ("repeat", "explain", "question")
    assert probe_names(["repeat", "strict"]) == ("repeat", "explain", "question")
    assert any_of("strict") == any_of(["magikarp"]) == ()
    assert any_of(["repeat", "glitchhunter"]) == (("question", "spelling", "length"),)


def test_the_plan_says_what_long_probes_cost(tmp_path: Path) -> None:
    work = step_work(spec_of(tmp_path), 100)
    assert work[1].positions == 0  # the usual probe
    long = spec_of(tmp_path, OWN, "steps.a.probes=magikarp")
    (magikarp, _) = step_work(long, 100)
    assert magikarp.prompts == 3
    measured = sum(
        len(render(detect("raw", smollm2(), {}, "x"), PROBES[name], smollm2()).tail(1)) + 2
        for name in PROTOCOLS["magikarp"].probes
    )
    assert magikarp.positions == pytest.approx(measured, rel=0.1)
    assert magikarp.usual_prompts == 21  # 375 positions of 18


# Prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS["magikarp"].probes)
def test_the_frames_of_magikarp_are_as_published(name: str) -> None:
    prompt = render(detect("chatml", smollm2(), {}, "x"), PROBES[name], smollm2(), "Be brief.")
    assert list(prompt.ids(DATA["placeholder"]["id"])) == DATA["frames"][name]
    assert intact(prompt, [DATA["placeholder"]["id"]], smollm2()) == [True]
    assert 1 + len(prompt.later) == PROBES[name].slots


def test_shots_with_the_token_share_only_what_comes_before_the_first() -> None:
    shots = [{"user": "Say {token}", "answer": "{token}"}, {"user": "Say cat", "answer": "cat"}]
    probe = defined_probe("own", {"user": "Say {token}", "prefill": "It is ", "shots": shots})
    for tokenizer in (smollm2(), mistral()):
        prompt = render(detect("chatml", tokenizer, {}, "x"), probe, tokenizer)
        (token_id,) = tokenizer.encode("cat", add_special_tokens=False)[-1:]
        text = tokenizer.decode([token_id]).join(prompt.texts)
        assert text.count("<|im_start|>assistant\n") == 3
        assert text.endswith("<|im_start|>assistant\nIt is ")
        assert prompt.prefix_text.endswith("Say ")
        assert [prompt.ids(token_id)[prompt.position + 1 + at] for at in prompt.later] == [
            token_id
        ] * 2
        assert len(prompt.ids(7)) == len(prompt.prefix_ids) + 1 + len(prompt.suffix_ids)


# Measuring ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder, seed=7)


@pytest.mark.parametrize("rows", [3, 64])
def test_greedy_positions_are_those_of_transformers(llama: Context, rows: int) -> None:
    probe = defined_probe(
        "own",
        {
            "user": "Say {token}",
            "positions": 4,
            "pass": {"probability": 0.002},
            "shots": [{"user": "{token}", "answer": "{token}"}],
        },
    )
    prompt = llama.prompts((probe,))["own"]
    facts = Judge(llama, (probe,), rows).judge([40, 300, 5, 90])
    stops = llama.stop_ids
    for fact in facts:
        result = fact.probes["own"]
        ids, expected = list(prompt.ids(fact.token.id)), []
        for said in result.greedy:
            logits = one_at_a_time(llama, ids)
            expected.append(float(logits.softmax(0)[fact.token.id]))
            assert int(logits.argmax()) == said
            ids.append(said)
        assert len(result.greedy) == 4 or result.greedy[-1] in stops
        assert result.at_positions == pytest.approx(expected, abs=1e-5)
        assert result.p == max(result.at_positions)
        assert result.passed == (result.p >= 0.002) == (not fact.glitch)
    assert {fact.glitch for fact in facts} == {True, False}


def test_a_token_passes_where_it_is_the_most_probable_at_one_of_the_positions(
    llama: Context,
) -> None:
    given = {"user": "Say {token}", "positions": 3}
    probe = defined_probe("own", given)
    prompt = llama.prompts((probe,))["own"]
    second: dict[int, int] = {}
    for token_id in range(30, 200):
        first = int(one_at_a_time(llama, prompt.ids(token_id)).argmax())
        second[token_id] = int(one_at_a_time(llama, (*prompt.ids(token_id), first)).argmax())
        if second[token_id] == token_id or first == token_id:
            break
    facts = Judge(llama, (probe,), 16).judge(list(second))
    for fact in facts:
        assert fact.probes["own"].passed == (fact.token.id in fact.probes["own"].greedy)


def test_answers_are_generated_and_compared_as_text(llama: Context) -> None:
    facts = Judge(llama, "glitchhunter", 8).judge([40, 300])
    alone = [Judge(llama, "glitchhunter", 1).judge([one])[0] for one in (40, 300)]
    for together, single in zip(facts, alone, strict=True):
        assert (together.answers, together.emitted_text) == (single.answers, single.emitted_text)
    for fact in facts:
        assert set(fact.probes) == {"question"}
        assert set(fact.answers) == {"spelling", "length"}
        assert fact.any_of == (("question", "spelling", "length"),)
        for name, answer in fact.answers.items():
            assert answer.expected == expected_answer(name, fact.token.text)
            assert answer.passed == is_right(name, answer.text, fact.token.text)
        assert fact.glitch == any(
            not one.passed for one in (*fact.probes.values(), *fact.answers.values())
        )


def test_sequential_probes_stop_once_the_verdict_is_certain(llama: Context) -> None:
    ids = [40, 300, 5, 90, 120]
    easy = {"user": "Say {token}", "positions": 4, "pass": {"probability": 0.003}}
    long = {**easy, "shots": [{"user": "{token}", "answer": "{token}"}]}
    probes = (defined_probe("long", long), defined_probe("short", easy))
    every = Judge(llama, probes, 8).judge(ids)
    some = Judge(llama, probes, 8, sequential=True).judge(ids)
    assert [one.glitch for one in some] == [one.glitch for one in every]
    assert {tuple(one.probes) for one in some} == {("short",), ("long", "short")}
    for one, whole in zip(some, every, strict=True):
        assert ("long" in one.probes) == (not whole.probes["short"].passed)
        for name, found in one.probes.items():
            assert found.p == pytest.approx(whole.probes[name].p, abs=1e-6)
    counted = Judge(llama, "glitchhunter", 8, sequential=True).judge(ids)
    assert all(len(one.probes) + len(one.answers) == 1 for one in counted if one.glitch)


RIGHT = [
    ("spelling", " H-e-l-l-o", "Hello", True),
    ("spelling", " 'h-E-l-l-o'.\nNext", " Hello", True),
    ("spelling", "The spelling is: h-i", "hi", True),
    ("spelling", " H-e-l-l", "Hello", False),
    ("spelling", " h-e-l-l-o-o", "Hello", False),
    ("spelling", "I cannot", "I", False),
    ("spelling", " --", "-", False),
    ("length", " 5", "Hello", True),
    ("length", "It has 6 letters", " Hello", True),
    ("length", "It has 5 letters", " Hello", True),
    ("length", "55", "Hello", False),
    ("length", "five", "Hello", False),
    ("length", "\n\n5", "Hello", True),
    ("length", "no\n5", "Hello", False),
]


@pytest.mark.parametrize(("expect", "answer", "text", "right"), RIGHT)
def test_the_rule_of_spelling_and_length(expect: str, answer: str, text: str, right: bool) -> None:
    assert is_right(expect, answer, text) == right


# Facts and verdicts -------------------------------------------------------------------------------

TOKEN = Token(7, "ab", "ab", "normal", 1.0)


def result(p: float, passed: bool, **more: Any) -> ProbeResult:
    return ProbeResult(p, 2, 1.0, 0, 1.0, passed, "float32", **more)


def test_facts_with_answers_and_positions_are_stored_without_loss() -> None:
    probe = result(0.5, True, at_positions=(0.5, 0.1), greedy=(3, 4), encodable=False)
    answers = {"length": Answered("2", "3", False, "float32", intact=False)}
    groups = (("question", "length"),)
    fact = Verified(TOKEN, {"question": probe}, True, "other", "3", answers, groups)
    batch = Batch((fact, Verified(TOKEN, {"repeat": result(0.1, False)}, True, "other")), 2, 2)
    data = json.loads(json.dumps(batch_to_json(batch)))
    assert batch_from_json(data) == batch
    assert set(data["facts"][1]) == {"kind", "token", "probes", "glitch", "emitted", "emitted_text"}
    assert set(data["facts"][1]["probes"]["repeat"]) == {
        "p", "rank", "entropy", "argmax", "gap", "passed", "decided_in", "intact",
    }  # fmt: skip


def test_glitch_follows_the_rule_of_the_protocol_when_facts_are_read() -> None:
    wrong, right = Answered("2", "3", False, "float32"), Answered("2", "2", True, "float32")
    group = (("question", "length"),)

    def glitch(fact: Verified, limit: float = 1.0) -> bool:
        batch = judged(Batch((fact,), 1, 1), Thresholds(probability=limit))
        (found,) = batch.facts
        assert isinstance(found, Verified)
        return found.glitch

    passed = Verified(TOKEN, {"question": result(0.9, True)}, False, None)
    assert glitch(replace(passed, answers={"length": wrong}, any_of=group))
    assert not glitch(replace(passed, answers={"length": right}, any_of=group))
    assert not glitch(replace(passed, answers={"length": wrong}))
    failed = replace(passed, probes={"question": result(0.2, False)}, answers={"length": right})
    assert glitch(replace(failed, any_of=group))
    assert not glitch(replace(failed, any_of=group), 0.1)
    both = replace(failed, probes={**failed.probes, "repeat": result(0.6, True)}, any_of=group)
    assert not glitch(both)  # every other probe must fail too
    own_limit = Verified(TOKEN, {"repeats": result(0.005, False, least=0.01)}, False, None)
    assert glitch(own_limit, 0.001)  # the protocol's rule, not thresholds.probability
    only = Verified(TOKEN, {}, False, "other", "3", {"length": wrong})
    assert glitch(only)
    assert only.p != only.p
    assert not only.severe


def test_spec_probes_reach_the_config() -> None:
    own = defined_probe("own", {"user": "{token}"})
    assert probes_of(("repeat", own)) == (PROBES["repeat"], own)
    assert own.cost == PROBES["repeat"].cost


# The report ---------------------------------------------------------------------------------------


def named(token_id: int, probes: dict[str, ProbeResult], glitch: bool, **more: Any) -> Verified:
    token = Token(token_id, f"t{token_id}", f"t{token_id}", "normal", 1.0)
    return Verified(token, probes, glitch, "other" if glitch else None, **more)


def chat(token_id: int, p: float) -> Verified:
    return named(token_id, {"repeat": result(p, p > 0.1)}, p <= 0.1)


def few_shot(token_id: int, p: float) -> Verified:
    probes = {
        name: result(p, p >= 0.01, at_positions=(p,), greedy=(3,), least=0.01)
        for name in PROTOCOLS["magikarp"].probes
    }
    return named(token_id, probes, p < 0.01)


def test_the_report_counts_the_same_tokens_by_each_definition(tmp_path: Path) -> None:
    spelled = [
        named(i, {"question": result(0.9, True)}, i != 0, any_of=(("question", "spelling"),),
              answers={"spelling": Answered("t", "t" if i == 0 else "x", i == 0, "float32")})
        for i in range(10)
    ]  # fmt: skip
    record = run_of(
        tmp_path,
        step("strict", "test", *[chat(i, 1e-4 if i < 4 else 0.5) for i in range(10)]),
        step("magikarp", "test", *[few_shot(i, 1e-4 if i in (3, 4) else 0.5) for i in range(10)]),
        step("letters", "test", *spelled),
    )
    whole = [one for one in definitions(record) if one.whole]
    assert [(one.step, len(one.found), one.n) for one in whole] == [
        ("strict", 4, 10),
        ("magikarp", 2, 10),
        ("letters", 9, 10),
    ]
    alone = {one.name: len(one.found) for one in definitions(record) if not one.whole}
    assert alone["question alone"] == 0
    assert alone["spelling alone"] == 9
    pair = agreements(record)[0]
    assert pair.counts == Counts(both=1, only_left=3, only_right=1, neither=5)
    assert pair.overlap.expected == pytest.approx(0.8)
    assert pair.counts.kappa == pytest.approx((0.6 - 0.56) / 0.44)
    text = markdown(record)
    assert "**Agreement of definitions**" in text
    assert "Of the same 10 tokens, glitch tokens are 4 by" in text
    assert headline(record).unit == "definitions find 2 to 9 glitch tokens among the same 10 tokens"
    lines = list(token_lines(record))
    assert lines[10]["classes"] == {"magikarp": "weak_rejected"}
    assert lines[13]["classes"] == {"magikarp": "strong_verified"}
    assert lines[13]["probes"]["repeats"]["at_positions"] == [1e-4]
    assert lines[21]["probes"]["spelling"] == {
        "expected": "t", "answer": "x", "pass": False, "decided_in": "float32",
    }  # fmt: skip
    write_tokens(record, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "tokens.jsonl").open()] == lines


def test_the_headline_leads_with_chat_and_shown(tmp_path: Path) -> None:
    record = run_of(
        tmp_path,
        step("mine", "mine", *[chat(i, 1e-4 if i < 4 else 0.5) for i in range(10)]),
        step("shown", "test", *[few_shot(i, 1e-4 if i == 3 else 0.5) for i in range(4)]),
    )
    assert definitions(record) == []
    found = shown(record)
    assert found is not None
    assert (found.in_chat, found.even_shown) == (4, 1)
    top = headline(record)
    assert (top.number, top.unit) == (4, "tokens fail in chat, 1 of them even when shown")
    assert top.result[0].startswith("4 tokens fail in chat, and 1 of them (25 %")
    assert severity(record).glitch == 4  # the verdict in chat stays
    assert run_json(record)["shown"] == {"in_chat": 4, "even_shown": 1}


def test_only_raw_probes_with_the_token_in_an_example_show_it(tmp_path: Path) -> None:
    texts = named(1, {}, True, answers={"length": Answered("2", "3", False, "float32")})
    record = run_of(tmp_path, step("letters", "test", texts))
    assert bands(record) == []  # answers compared as text have no probability
    shot = {"user": "Copy {token}", "answer": "{token}"}
    asked = named(1, {"own": result(0.1, False)}, True)
    for probe, shows in (
        ({"raw": True, "shots": [shot]}, True),
        ({"raw": True}, False),
        ({"shots": [shot]}, False),
    ):
        spec = {**record.spec, "probes": {"own": probe}}
        assert is_shown(replace(record, spec=spec), asked) == shows


@pytest.mark.parametrize(
    ("largest", "encodable", "name"),
    [
        (0.95, True, "strong_rejected"),
        (0.5, False, "weak_rejected"),
        (0.05, False, "verification_encoding_failed"),
        (0.05, True, "weak_verified"),
        (1e-4, True, "strong_verified"),
    ],
)
def test_classes_of_magikarp(largest: float, encodable: bool, name: str) -> None:
    fact = few_shot(1, largest)
    probes = {key: replace(one, encodable=encodable) for key, one in fact.probes.items()}
    assert classes(replace(fact, probes=probes)) == {"magikarp": name}
    assert classes(chat(1, 0.5)) == {}
