"""Headline, summary and totals of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from glitchrun.behaviour.significance import wilson
from glitchrun.events import Batch, Control, Entry, Screened
from glitchrun.ledger.record import Metric, StepRecord, TimedBatch
from glitchrun.report.formatting import (
    duration,
    figure,
    fitness,
    percent,
    probability,
    share,
    size,
)
from glitchrun.report.headline import headline
from glitchrun.report.html import render
from glitchrun.report.machine_readable import run_json
from glitchrun.report.markdown import markdown
from glitchrun.report.run_details import step_count
from glitchrun.report.summary import summary_lines
from glitchrun.report.token_rows import most_interesting_first, token_rows
from glitchrun.report.totals import counters, not_finite, severity, tallies
from glitchrun.tracking.description import run_description
from glitchrun.tracking.metric_series import points
from tests.support.records import Invented, write_run
from tests.support.reporting import rows, run_of, sampled, step, verified

GLITCH = {"p": 0.01, "passed": False, "glitch": True}
NEAR = {"p": 0.6, "passed": False}


def test_the_headline_is_the_number_of_confirmed_tokens(tmp_path: Path) -> None:
    mine = step("mine", "mine", verified(1), *(verified(i, **GLITCH) for i in (2, 3, 4)))
    asr = step("asr", "validate", sampled(2, 5), sampled(3, 4), sampled(4, 3))
    top = headline(run_of(tmp_path, mine, asr))
    assert (top.number, top.unit) == (2, "confirmed glitch tokens")
    assert top.result == (
        (
            "2 of 3 sampled tokens failed at least 80 % of their attempts "
            "(5 each; thresholds.asr = 0.8)."
        ),
        "They are «␣t2» (100 %) and «␣t3» (80 %).",
        (
            "Of 4 verified tokens (< 0.01 % of the vocabulary's 49,152), 3 (75 %) failed the probe "
            "repeat, at any probability (thresholds.probability = 1)."
        ),
    )
    assert top.caveats == (
        (
            "No confirmed token has its whole 95 % interval above the threshold of 80 %: that "
            "takes at least 16 attempts, all failed."
        ),
    )
    assert top.details == (
        "None of the 3 glitch tokens is severe, with a probability below 0.001.",
        (
            "The model answered none of them with a shorter piece of the right text, or with the "
            "right text in other case or spacing."
        ),
    )
    assert top.sentences == (*top.result, *top.caveats, *top.details)


def test_tied_tokens_are_called_tied_and_readable_ones_are_named(tmp_path: Path) -> None:
    texts = ["\x00", "...", "\u200bword", *(f" word{i}" for i in range(6)), " last"]
    tied = [sampled(i, 5, text=text) for i, text in enumerate(texts)]
    others = [sampled(20, 4, text=" less")]
    top = headline(run_of(tmp_path / "a", step("asr", "validate", *tied, *others)))
    names = "«␣word0», «␣word1», «␣word2», «␣word3» and «␣word4»"
    assert top.result[1] == f"10 are tied at an ASR of 100 %, among them {names}."
    record = run_of(tmp_path / "b", step("asr", "validate", *tied))
    assert headline(record).result[1].startswith("All 10 are tied")
    first = next(line for line in summary_lines(record) if "confirmed  ASR" in line)
    assert "«␣word0»" in first
    assert run_description(record).index("word5") < run_description(record).index("␀")
    assert '«<bdi class="token">␣word0</bdi>»' in render(record)
    hostile = run_of(tmp_path / "c", step("asr", "validate", sampled(1, 5, text="<b>x")))
    assert '«<bdi class="token">&lt;b&gt;x</bdi>»' in render(hostile)
    assert "<b>x" not in run_description(hostile).split("| token |")[0]


def test_without_a_confirmed_token_the_nearest_are_named(tmp_path: Path) -> None:
    near = [sampled(i, 3) for i in range(7)]
    top = headline(run_of(tmp_path / "a", step("asr", "validate", sampled(9, 1), *near)))
    assert top.number == 0
    names = "«␣t0», «␣t1», «␣t2», «␣t3», «␣t4» and 2 more"
    assert top.result[1] == f"The highest ASR was 60 %, of {names}."
    top = headline(run_of(tmp_path / "b", step("asr", "validate", sampled(9, 0))))
    assert top.result[1] == "No sampled attempt failed."


@pytest.mark.parametrize(
    ("level", "attempts", "caveat"),
    [
        (0.5, 5, "All 2 confirmed tokens have their whole 95 % interval above the threshold"),
        (0.8, 15, "of 80 %: that takes at least 16 attempts, all failed."),
        (0.8, 16, "All 2 confirmed tokens have their whole 95 % interval above the threshold"),
        (1.0, 50, "of 100 %: no number of attempts can show that."),
    ],
)
def test_the_share_of_intervals_above_the_threshold(
    tmp_path: Path, level: float, attempts: int, caveat: str
) -> None:
    low = wilson(attempts, attempts).low
    facts = [replace(sampled(i, attempts, attempts), asr_low=low) for i in (1, 2)]
    record = run_of(tmp_path, step("asr", "validate", *facts))
    limits = {"asr": level, "probability": 1.0}
    (found,) = headline(replace(record, spec={**record.spec, "thresholds": limits})).caveats
    assert caveat in found


def test_a_cascade_reports_its_recall_bound(tmp_path: Path) -> None:
    scores = Screened((1, 2, 3), (-1.0, -9.0, -2.0), (0.0, 5.0, 0.0))
    mine = step("mine", "mine", scores, verified(1), verified(2, **GLITCH))
    cascade = replace(mine, params={"search": "cascade"})
    audited = replace(cascade, metrics={"recall_low": Metric(0.813, 2)})
    sentence = "found at least 81.3 % of the glitch tokens in scope, with 95 % confidence"
    assert any(sentence in one for one in headline(run_of(tmp_path / "a", audited)).sentences)
    cut_short = replace(cascade, metrics={"recall_low": Metric(None, 2)})
    assert any(
        "is not known" in one for one in headline(run_of(tmp_path / "b", cut_short)).sentences
    )
    assert not any("audit" in one for one in headline(run_of(tmp_path / "c", mine)).sentences)


def test_a_token_found_by_several_steps_is_listed_once(tmp_path: Path) -> None:
    low, again = (
        step(name, "mine", verified(1, **GLITCH), verified(2, **GLITCH))
        for name in ("low", "again")
    )
    first, second = (step(name, "validate", sampled(2, 5)) for name in ("asr", "more"))
    record = run_of(tmp_path, low, again, first, second)
    lines = summary_lines(record)
    assert sum("  «␣t2»  confirmed" in line for line in lines) == 1
    assert sum("  «␣t1»  glitch" in line for line in lines) == 1
    table = markdown(record)
    assert table.count("| 2 | confirmed |") == table.count("| 1 | glitch |") == 1


def test_steps_with_different_probes_are_described_as_such(tmp_path: Path) -> None:
    mine, other = verified(1, **GLITCH), verified(2, **GLITCH)
    other = replace(other, probes={"explain": other.probes["repeat"]})
    sentences = headline(
        run_of(tmp_path, step("a", "mine", mine), step("b", "test", other))
    ).sentences
    assert any("failed every probe applied to them (explain, repeat)" in s for s in sentences)


def test_a_screen_with_little_predictive_value_is_reported(tmp_path: Path) -> None:
    mine = step("mine", "mine", verified(1), verified(2, **GLITCH))
    blind, guide = (
        replace(mine, params={"search": "screen"}, metrics={"screen_agreement": Metric(value, 200)})
        for value in (0.013, 0.92)
    )
    sentences = headline(run_of(tmp_path / "a", blind)).sentences
    assert any("predicted 1.3 % of its 200 verdicts" in one for one in sentences)
    assert not any("predicted" in one for one in headline(run_of(tmp_path / "b", guide)).sentences)


def test_named_tokens_beyond_the_budget_are_reported(tmp_path: Path) -> None:
    mine = step("mine", "mine", verified(1), verified(2, **GLITCH))
    mine = replace(mine, metrics={"left": Metric(1298, 1300)})
    part = headline(run_of(tmp_path / "a", replace(mine, params={"search": "range"}))).sentences
    assert any("before verifying 1,298 of the 1,300 tokens that it named" in one for one in part)
    for limits, raised in (
        ({}, "Raise budget,"),
        ({"budget": 2}, "Raise budget,"),
        ({"iterations": 1}, "Raise iterations,"),
        ({"iterations": 9, "budget": 2}, "Raise iterations and budget,"),
    ):
        limited = replace(mine, params={"search": "range", **limits})
        sentences = headline(run_of(tmp_path / raised / str(len(limits)), limited)).sentences
        assert any(raised in one for one in sentences)
    none = replace(mine, metrics={"left": Metric(0, 0)}, params={"search": "pattern"})
    assert any("named no token" in one for one in headline(run_of(tmp_path / "c", none)).sentences)
    walk = headline(run_of(tmp_path / "b", replace(mine, params={"search": "random"}))).sentences
    assert not any("ran out of budget" in one for one in walk)


@pytest.mark.parametrize("low", [1.0, None])
def test_a_cascade_that_verified_everything_mentions_no_audit(
    tmp_path: Path, low: float | None
) -> None:
    scores = Screened((1, 2), (-1.0, -9.0), (0.0, 5.0))
    mine = step("mine", "mine", scores, verified(1), verified(2))
    every = replace(mine, params={"search": "cascade"}, metrics={"recall_low": Metric(low, 2)})
    sentences = headline(run_of(tmp_path, every)).sentences
    assert "Step mine verified every token in scope, so it missed no glitch token." in sentences
    assert not any("audit" in one for one in sentences)


def test_attempts_saved_by_sequential_testing_are_reported(tmp_path: Path) -> None:
    asr = step("asr", "validate", sampled(2, 5), sampled(3, 4))
    saved = {"attempts": Metric(10, 2), "attempts_saved": Metric(30, 2)}
    saving = replace(asr, metrics={**saved, "stopped_early": Metric(2, 2)})
    assert (
        "Step asr stopped early on 2 tokens, as soon as the verdict was certain, which saved 30 of "
        "40 attempts."
    ) in headline(run_of(tmp_path / "a", saving)).sentences
    whole = replace(asr, metrics={"attempts": Metric(10, 2), "attempts_saved": Metric(0, 2)})
    sentences = headline(run_of(tmp_path / "b", whole)).sentences
    assert not any("saved" in one for one in sentences)


def test_the_headline_names_the_checks_that_did_not_pass(tmp_path: Path) -> None:
    rows = [
        ("loading", "pass", "all 4 requirements met"),
        ("chat", "fail", "no\nend"),
        ("memory", "skip", "none"),
    ]
    entries = tuple(
        Entry("checks", {"check": name, "outcome": outcome, "reason": reason})
        for name, outcome, reason in rows
    )
    counts = {"failed": 1, "passed": 1, "skipped": 1, "checks": 3}
    metrics = {name: Metric(value, 3) for name, value in counts.items()}
    checked = replace(step("check", "check", *entries), metrics=metrics)
    top = headline(run_of(tmp_path, checked))
    assert (top.number, top.unit) == (1, "check failed")
    assert top.result == (
        "Failed: chat: no⟨LF⟩end",
        "Skipped: memory: none",
        "1 of 3 checks passed, 1 failed, 1 were skipped. A skipped check has not passed.",
    )


def test_unsampled_tokens_are_not_called_confirmed(tmp_path: Path) -> None:
    severe = {**GLITCH, "p": 1e-4}
    facts = [verified(1), verified(2, **GLITCH), verified(3, **severe)]
    top = headline(run_of(tmp_path, step("scan", "scan", *facts)))
    assert (top.number, top.unit) == (1, "severe glitch token, not sampled")
    assert "Of 3 verified tokens" in top.result[0]
    assert top.result[1] == "They are «␣t3» (p 0.000100) and «␣t2» (p 0.0100)."
    assert "Of the 2 glitch tokens, 1 (50 %) is severe" in top.details[0]
    assert "no step that samples" in top.caveats[-1]
    mild = headline(run_of(tmp_path / "mild", step("scan", "scan", *facts[:2])))
    assert (mild.number, mild.unit) == (1, "glitch token, none of them severe, not sampled")
    assert mild.result[1] == "It is «␣t2» (p 0.0100)."


def test_severity_is_not_mentioned_where_every_glitch_token_is_severe(tmp_path: Path) -> None:
    scan = step("scan", "scan", verified(1, p=1e-4, passed=False, glitch=True))
    record = run_of(tmp_path, scan)
    strict = replace(record, spec={**record.spec, "thresholds": {"probability": 0.001}})
    assert not any("severe" in text for text in headline(strict).details)
    assert any("severe" in text for text in headline(record).details)


def test_a_run_that_found_nothing_has_the_number_zero(tmp_path: Path) -> None:
    mine, asr = step("mine", "mine", verified(1)), step("asr", "validate")
    top = headline(run_of(tmp_path, mine, asr))
    assert (top.number, top.unit) == (0, "glitch tokens")


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_the_headline_of_an_unfinished_run_starts_with_its_status(
    tmp_path: Path, status: str
) -> None:
    record = write_run(tmp_path, Invented(status=status))
    first = headline(record).sentences[0]
    assert {"KILLED": "stopped", "FAILED": "failed", "RUNNING": "not over"}[status] in first


def test_a_failed_run_without_facts_has_no_number(tmp_path: Path) -> None:
    record = replace(run_of(tmp_path, status="FAILED"), error="RunError: out of memory", model=None)
    top = headline(record)
    assert top.number is None
    assert "Reason: RunError: out of memory" in top.sentences


def test_tallies_count_every_token_once(tmp_path: Path) -> None:
    mine = step(
        "mine",
        "mine",
        verified(1),
        verified(2, **GLITCH),
        verified(3, **NEAR),
        verified(4, category="byte", **GLITCH),
    )
    first, second, third = tallies(
        run_of(tmp_path, mine, step("asr", "validate", sampled(2, 5), sampled(5, 0)))
    )
    assert (first.category, first.verified, first.passed, first.near_miss, first.glitch) == (
        "normal",
        3,
        1,
        1,
        1,
    )
    assert (second.category, second.verified, second.glitch) == ("byte", 1, 1)
    assert (third.step, third.verified, third.sampled, third.confirmed) == ("asr", 0, 2, 1)


def test_the_table_joins_verdict_and_samples(tmp_path: Path) -> None:
    mine = step("mine", "mine", verified(1), verified(2, **GLITCH), verified(3, **NEAR))
    asr = step("asr", "validate", sampled(2, 2), sampled(9, 5))
    record = run_of(tmp_path, mine, asr)
    rows = token_rows(record)
    assert [(row.token.id, row.verdict, row.steps) for row in rows] == [
        (1, "passed", ("mine",)),
        (2, "unconfirmed", ("mine", "asr")),
        (3, "near miss", ("mine",)),
        (9, "confirmed", ("asr",)),
    ]
    assert [row.token.id for row in most_interesting_first(record)] == [9, 2, 3, 1]


def test_a_second_validation_has_rows_of_its_own(tmp_path: Path) -> None:
    mine = step("mine", "mine", verified(2, **GLITCH))
    first = step("asr", "validate", sampled(2, 5))
    second = step("again", "validate", sampled(2, 1))
    rows = token_rows(run_of(tmp_path, mine, first, second))
    assert [(row.steps, row.verdict) for row in rows] == [
        (("mine", "asr"), "confirmed"),
        (("again",), "unconfirmed"),
    ]


def test_the_closest_probe_is_the_one_with_the_highest_probability(tmp_path: Path) -> None:
    fact = verified(1, **GLITCH)
    likelier = replace(fact.probes["repeat"], p=0.4)
    undefined = replace(fact.probes["repeat"], p=math.nan)
    probes = {"question": undefined, **fact.probes, "explain": likelier}
    record = run_of(tmp_path, step("scan", "scan", replace(fact, probes=probes)))
    (row,) = token_rows(record)
    assert row.closest == ("explain", likelier)
    assert not_finite(record) == 1


def test_kinds_of_answer_count_glitch_tokens_only(tmp_path: Path) -> None:
    odd = replace(verified(3, **NEAR), emitted="prefix")
    record = run_of(tmp_path, step("scan", "scan", verified(1), verified(2, **GLITCH), odd))
    assert {kind for kind, number in severity(record).emitted.items() if number} == {"other"}
    assert severity(record).emitted["other"] == severity(record).near_miss == 1


def cascade() -> StepRecord:
    """Screens 9 tokens, verifies 4 of them and then 2 controls."""
    control = Control(1, True, verified(8))
    made = [
        Batch((Screened(tuple(range(9)), (0.0,) * 9, (0.0,) * 9),), 9, 9, stage="screen"),
        Batch((verified(1), verified(2), verified(3)), 3, None, stage="front"),
        Batch((verified(4),), 1, 1, stage="audit"),
        Batch((control, replace(control, fact=verified(9))), 2, 2, stage="controls"),
    ]
    return replace(
        step("mine", "mine"), batches=tuple(TimedBatch(1, one) for one in made), ended_at=2
    )


def test_tokens_are_counted_once_and_screens_and_controls_not_at_all(tmp_path: Path) -> None:
    finished = cascade()
    assert finished.examined == 4
    assert step_count(finished) == "4"
    (row,) = run_json(run_of(tmp_path, finished))["steps"]
    assert (row["tokens"], row["stage"], row["done"], row["total"]) == (4, "controls", 2, 2)
    made = points(run_of(tmp_path, finished))
    counts = [(one.value, one.step) for one in made if one.key == "mine/verified"]
    assert counts[-2:] == [(3, 3), (4, 4)]


def test_an_unfinished_step_counts_the_items_of_its_stage() -> None:
    whole = replace(cascade(), ended_at=None)
    counts = [step_count(replace(whole, batches=whole.batches[:n])) for n in range(5)]
    assert counts == ["0", "screen 9 of 9", "front 3", "audit 1 of 1", "controls 2 of 2"]


def test_a_step_without_tokens_counts_the_items_of_its_stages() -> None:
    made = [Batch((), 1, 1, stage="baseline"), Batch((), 64, 64, stage="single tokens")]
    made += [Batch((), n, 9, stage="generations") for n in (1, 2)]
    timed = tuple(TimedBatch(1, one) for one in made)
    assert step_count(replace(step("evolve", "genetic"), batches=timed, ended_at=2)) == (
        "single tokens 64, generations 2"
    )
    (checks,) = (TimedBatch(1, Batch((), 7, 7, stage="checks")),)
    assert step_count(replace(step("check", "check"), batches=(checks,), ended_at=2)) == "7"


def test_counters_are_kept_by_step(tmp_path: Path) -> None:
    mine = step("mine", "mine", verified(1), rechecked=2, forwards=3)
    asr = step("asr", "validate", sampled(2, 1), forwards=4)
    record = replace(run_of(tmp_path, mine, asr), notes={"forwards": 8, "new_kind": 1})
    assert counters(record) == {
        "rechecked": {"mine": 2},
        "forwards": {"mine": 3, "asr": 4, None: 1},
        "new_kind": {None: 1},
    }


def test_the_summary_names_tokens_counts_and_files(tmp_path: Path) -> None:
    record = write_run(tmp_path)
    lines = summary_lines(record)
    text = "\n".join(lines)
    confirmed = sum(row.verdict == "confirmed" for row in token_rows(record))
    assert f"{confirmed} confirmed glitch tokens" in text
    assert str(record.artifacts / "report.html") in text
    assert f"… and {confirmed - 10} more tokens" in text
    assert "gate     pass: asr/confirmed >= 1" in text
    assert all(line.isprintable() for line in lines)


def test_sentences_of_the_summary_are_wrapped_to_a_terminal(tmp_path: Path) -> None:
    record = write_run(tmp_path)
    wrapped = summary_lines(record, 80)
    sentences = [line for line in wrapped if str(record.folder) not in line]
    assert max(map(len, sentences)) <= 80
    words, again = ("\n".join(lines).split() for lines in (wrapped, summary_lines(record)))
    assert words == again


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (percent(0), "0 %"),
        (percent(1), "100 %"),
        (percent(0.99999), "> 99.9 %"),
        (percent(0.00001), "< 0.01 %"),
        (percent(0.0526), "5.26 %"),
        (probability(6.9119e-6), "6.91e-06"),
        (probability(1e-4), "0.01 %"),
        (probability(0), "0 %"),
        (probability(0.0526), "5.26 %"),
        (fitness(0.97312), "0.9731"),
        (fitness(0.9999996123), "0.999999612"),
        (fitness(0.9999996142), "0.999999614"),
        (fitness(1 - 2e-16), "0.999999999999999778"),
        (fitness(1), "1"),
        (fitness(-0.25), "-0.2500"),
        (share(1, 0), "–"),
        (size(538_060_032), "538 MB"),
        (size(999), "999 B"),
        (size(1_000_000), "1 MB"),
        (size(None), "–"),
        (duration(4.25), "4.25 s"),
        (duration(185), "3 min 05 s"),
        (duration(7800), "2 h 10 min"),
        (figure(0.0000164), "1.64e-05"),
        (figure(49152), "49,152"),
        (figure(2.6789), "2.68"),
        (figure(math.nan), "nan"),
        (figure(None), "–"),
    ],
)
def test_number_formats(written: str, value: str) -> None:
    assert written == value


def test_false_alarms_are_listed_by_kind_and_doubtful_scripts_named(tmp_path: Path) -> None:
    wedge = "\U00012000\U00012001"
    own = [verified(1, text=wedge, **GLITCH), verified(2, text="...", **GLITCH), verified(3)]
    cuneiform = [Control(1, True, verified(i, text=wedge, **GLITCH)) for i in range(10, 14)]
    cuneiform += [Control(1, True, verified(14, text=wedge))]
    marks = [Control(2, True, verified(i, text="!?")) for i in range(20, 24)]
    words = [Control(1, False, verified(i, text="word"), elsewhere=True) for i in range(30, 36)]
    words[0] = Control(1, False, verified(30, text="word", **GLITCH), elsewhere=True)
    made = step("mine", "mine", *own)
    beside = step("mine", "mine", *cuneiform, *marks, *words)
    record = run_of(tmp_path, replace(made, batches=(*made.batches, *beside.batches)))
    (sentence,) = [one for one in headline(record).caveats if one.startswith("mine: ")]
    assert sentence.startswith(
        "mine: 4 of 9 matched ordinary tokens were also flagged (44.4 %, 95 % CI"
    )
    assert "against 2 of 3 candidates (66.7 %)." in sentence
    assert "By kind: other scripts 4 of 5, punctuation 0 of 4." in sentence
    assert "No control with a letter or digit" not in sentence
    assert "1 of the 2 flagged candidates contains no letter or digit." in sentence
    assert "At least half of the controls in cuneiform were flagged." in sentence
    assert "Of 6 controls from other scripts, 1 was flagged (16.7 %)." in sentence
    (alarms,) = run_json(record)["false_alarms"]
    assert (alarms["controls"], alarms["elsewhere"], alarms["doubtful"]) == (
        *(9, 6, ["cuneiform"]),
    )
    for page in (render(record), markdown(record)):
        assert "scripts other than cuneiform" in page
        assert "0 % to 49 %" in page  # Wilson's interval of 0 of 4
    lines = [row for row in rows(record) if row["control_elsewhere"]]
    assert [row["token_id"] for row in lines] == [*range(30, 36)]
    assert all(row["glitch"] is None for row in lines)


def test_false_alarms_of_unreadable_tokens_only_are_called_so(tmp_path: Path) -> None:
    own = step("mine", "mine", verified(1, **GLITCH))
    marks = [Control(1, True, verified(i, text="!?", **GLITCH)) for i in range(20, 22)]
    words = [Control(1, True, verified(i, text="word")) for i in range(30, 36)]
    beside = step("mine", "mine", *marks, *words)
    record = run_of(tmp_path, replace(own, batches=(*own.batches, *beside.batches)))
    sentence = headline(record).caveats[0]
    assert "By kind: words 0 of 6, punctuation 2 of 2. No control with a letter or digit was" in (
        sentence
    )


def test_an_interrupted_run_is_called_interrupted_and_resumable(tmp_path: Path) -> None:
    record = run_of(tmp_path, step("scan", "scan", verified(1)), status="KILLED")
    first, *rest = summary_lines(record)
    assert first.endswith(": INTERRUPTED (resumable)")
    assert "It can be resumed" in "\n".join(rest)
    assert not any("KILLED" in line for line in [first, *rest, run_description(record)])
    assert run_json(record)["status"] == "KILLED"  # MLflow's word, and the contract's


def test_the_headline_names_the_winning_sequence(tmp_path: Path) -> None:
    baseline = {"target": " fox", "target_id": 3, "target_p": 0.73, "wanted": None}
    best = {"text": " a\x1bb", "ids": "1 2", "fitness": 0.97, "target_p": 0.002, "wanted_p": None}
    worse = best | {"text": "worse"}
    rows = [Entry("baseline", baseline), Entry("best", best), Entry("best", worse)]
    assert headline(run_of(tmp_path, step("evolve", "genetic", *rows))).result == (
        "The best sequence is «␣a⟨ESC⟩b» (ids 1 2).",
        "It changes the probability of the target «␣fox» from 73 % to 0.2 %.",
    )


def test_the_headline_names_the_predictions(tmp_path: Path) -> None:
    known = {"case": "fox (raw)", "output": " dog", "output_p": 0.5, "expected": " fox"}
    asked = known | {"rank": 2, "p": 2e-6}
    open_ = {"case": "free (raw)", "output": " x", "output_p": 1e-5, "expected": None}
    rows = [Entry("predictions", cells) for cells in (asked, open_, *[open_] * 5)]
    asked_step = replace(step("next", "predict", *rows), metrics={"improvement": Metric(None, 0)})
    top = headline(run_of(tmp_path, asked_step))
    assert (top.number, top.unit) == (None, "Next-token predictions")
    assert top.result == (
        "fox (raw): «␣dog» (50 %); the expected «␣fox» has rank 2 (2.00e-06).",
        *["free (raw): «␣x» (1.00e-05)."] * 4,
        "2 more rows: tables/next.predictions.json.",
    )


def test_the_headline_names_the_tokens_that_behave_unusually(tmp_path: Path) -> None:
    shares = {"rate_low": 0.1, "rate_high": 0.9, "control_low": 0.0, "control_high": 0.3}
    seen = {"class": "length", "token_id": 7, "flagged": True, "rate": 0.6, "control": 0.15}
    rows = [
        Entry("classes", shares | seen | {"token": " b", "difference": 0.2}),
        Entry("classes", shares | seen | {"token": " a", "difference": 0.4}),
        Entry("classes", shares | seen | {"token": " c", "flagged": False, "difference": 0.9}),
        Entry("categories", {"token_id": 7, "token": " a", "category": "normal", "reason": "r"}),
        Entry("categories", {"token_id": 8, "token": "z", "category": "unused", "reason": "r"}),
    ]
    worst, second, unused = headline(run_of(tmp_path, step("ask", "classify", *rows))).result
    assert worst == (
        "«␣a» (7), length: 60 % of its answers (95 % CI 10 % to 90 %), "
        "15 % of its controls' (95 % CI 0 % to 30 %)."
    )
    assert "«␣b»" in second
    assert unused == "«z» (8) is in category unused: r."


@pytest.mark.parametrize(("source", "listed"), [("ids", True), ("texts", True), ("from", False)])
def test_passed_tokens_are_listed_if_the_spec_names_them(
    tmp_path: Path, source: str, listed: bool
) -> None:
    facts = [verified(1), verified(2, **GLITCH), verified(3, **NEAR)]
    named = replace(step("ask", "test", *facts), params={"tokens": {source: [1, 2, 3]}})
    record = run_of(tmp_path, named)
    lines = "\n".join(summary_lines(record))
    assert lines.count("«␣t2»  glitch") == 1
    assert ("«␣t1» passed." in headline(record).result) == listed
    assert ("«␣t1»  passed  p 0.900" in lines) == listed
    assert ("«␣t3»  near miss" in lines) == listed
    many = [verified(i) for i in range(15)]
    long = replace(named, batches=step("ask", "test", *many).batches)
    lines = "\n".join(summary_lines(run_of(tmp_path / "b", long)))
    assert ("… and 5 more named tokens" in lines) == listed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.5, "-50 %"),
        (-0.003, "-0.3 %"),
        (-1e-6, "> -0.01 %"),
        (-1, "-100 %"),
        (-0.99999, "< -99.9 %"),
        (1e-6, "< 0.01 %"),
        (0.99999, "> 99.9 %"),
        (0.0, "0 %"),
        (-0.0, "0 %"),
        (0.025, "2.5 %"),
    ],
)
def test_negative_percentages(value: float, text: str) -> None:
    assert percent(value) == text


def test_a_random_search_is_no_choice_of_tokens(tmp_path: Path) -> None:
    facts = [verified(5, p=0.01, passed=False, glitch=True), verified(6)]
    hints = [
        "A search verifies tokens where it expects"
        in render(run_of(tmp_path, replace(found, params={"search": name})))
        for found in (step("m", "mine", *facts),)
        for name in ("random", "stratified", "surrogate")
    ]
    assert hints == [False, False, True]
