"""Comparisons with earlier runs: the statistics, gates with a baseline, `compare --fail-on`."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from glitchrun.behaviour.significance import (
    McNemar,
    adjusted,
    fisher_more,
    mcnemar,
    mean,
    pairs_needed,
)
from glitchrun.cli import main
from glitchrun.cli.compare import _fail
from glitchrun.errors import PreflightError
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.ledger.record import GateResult, Metric
from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.report.comparison.regressions import Rule, regression_of_studies
from glitchrun.report.machine_readable import junit
from glitchrun.report.markdown import markdown
from glitchrun.report.regression import changes, uncompared
from glitchrun.report.summary import summary_lines
from glitchrun.runner.gates import evaluate, exit_code, with_baselines
from glitchrun.spec.types import Cell, Gate, ModelSpec, Origin, Spec
from tests.support.records import Invented, write_matrix, write_run
from tests.support.reporting import rows


def test_mcnemar_is_the_binomial_tail_of_the_discordant_pairs() -> None:
    assert McNemar(100, 1, 11).p == pytest.approx(2 * (1 + 12) / 2**12)
    assert McNemar(100, 11, 1).p == McNemar(100, 1, 11).p
    assert McNemar(100, 5, 5).p == 1
    assert mcnemar([True, True, False], [True, False, False]) == McNemar(3, 1, 0)


def test_power_is_stated_where_too_few_pairs_are_discordant() -> None:
    assert pairs_needed() == 6
    assert McNemar(9, 0, 6).p == McNemar(9, 0, 6).least == pytest.approx(0.03125)
    assert McNemar(9, 0, 6).power == ""
    assert "With 5 discordant pairs the smallest p is 0.062" in McNemar(9, 3, 2).power
    assert McNemar(9, 0, 0).p == 1
    assert "needs 6" in McNemar(9, 0, 0).power


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg_1995() -> None:
    """Section 4 of the paper: 4 of 15 hypotheses are rejected at 5 %."""
    ps = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    ps += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    found = adjusted(ps)
    assert sum(p <= 0.05 for p in found) == 4
    assert found[0] == pytest.approx(15 * 0.0001)
    assert adjusted([]) == []


def test_fisher_and_student_give_the_values_of_the_textbook() -> None:
    assert fisher_more(3, 4, 1, 4) == pytest.approx(17 / 70)  # the lady tasting tea
    three = mean([1.0, 2.0, 3.0])
    assert (three.low, three.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert mean([4.0]).half is None
    equal = mean([0.1 + 0.2, 0.3, 0.3])
    assert (equal.half, equal.low, equal.high) == (None, None, None)
    share = mean([0.0, 0.1], possible=(0.0, 1.0))
    assert (share.low, share.high) == (0.0, pytest.approx(0.05 + 12.7062 * 0.05, abs=1e-5))
    assert share.is_cut
    assert not three.is_cut


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RunRecord]]:
    folder = tmp_path_factory.mktemp("baselines")
    return folder, write_matrix(folder / ROOT)


@pytest.fixture
def runs(stored: tuple[Path, list[RunRecord]], monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    """float32, int8 and int4 of one study; the more glitch tokens, the narrower."""
    monkeypatch.chdir(stored[0])
    return stored[1]


def planned(name: str, *gates: Gate, key: str = "0" * 16) -> Plan:
    origins = {f"gates[{i}]": Origin("s.yaml", 10 + i, 5) for i in range(len(gates))}
    spec = Spec("next", ModelSpec("m"), (), gates=gates, origins=origins)
    cell = Cell(name, {}, spec)
    return Plan("next", (PlannedRun(cell, key, "start", "", None, (), None, "", {}),))


def judged(runs: list[RunRecord], record: RunRecord, *gates: Gate) -> list[GateResult]:
    """The results of a later run with the facts of `record`."""
    (run,) = with_baselines(planned(record.identity.name, *gates), ROOT).runs
    return evaluate(run.gates, record)


@pytest.mark.parametrize(
    ("op", "tolerance", "outcome"),
    [("<=", 0.0, "fail"), ("<=", 3.0, "pass"), ("<", 3.0, "pass"), (">=", 0.0, "pass"),
     ("==", 0.0, "fail"), ("==", 3.0, "pass"), ("!=", 0.0, "pass"), ("!=", 3.0, "fail")],
)  # fmt: skip
def test_a_gate_compares_with_the_baseline_within_its_tolerance(
    runs: list[RunRecord], op: str, tolerance: float, outcome: str
) -> None:
    first, _, last = runs
    gate = Gate("mine/glitch", op, baseline=first.identity.key, tolerance=tolerance)
    (result,) = judged(runs, last, gate)
    before, now = (run.metrics["mine/glitch"].value for run in (first, last))
    assert before is not None
    assert now is not None
    assert 0 < before < now < 4 * before
    assert (result.outcome, result.observed, result.baseline_value) == (outcome, now, before)
    sign = {"<": 1, "<=": 1, ">": -1, ">=": -1}.get(op, 0)
    assert result.value == pytest.approx(before + sign * tolerance * before)


def test_the_verdicts_behind_gates_are_tested_as_one_family(runs: list[RunRecord]) -> None:
    first, _, last = runs
    gates = [
        Gate(name, "<=", baseline=first.identity.key) for name in ("mine/glitch", "asr/attempts")
    ]
    glitch, attempts = judged(runs, last, *gates, Gate("mine/verified", ">=", 1.0))[:2]
    found = [
        {row["token_id"]: row["glitch"] for row in rows(run) if row["step"] == "mine"}
        for run in (first, last)
    ]
    pairs = [(found[0][i], found[1][i]) for i in found[0]]
    test = McNemar(len(pairs), pairs.count((True, False)), pairs.count((False, True)))
    assert glitch.p == glitch.p_adjusted == pytest.approx(test.p)
    assert f"{test.only_right} found only here, {test.only_left} only in" in str(glitch.test)
    assert "exact McNemar test" in str(glitch.test)
    assert "Benjamini-Hochberg over 1 gate with a baseline" in str(glitch.test)
    assert attempts.test is None
    shown = replace(last, gates=(glitch,))
    for text in ("\n".join(summary_lines(shown)), junit(shown), markdown(shown)):
        assert "Exact McNemar test" in text
        assert f"({glitch.baseline_value:g} in the baseline)" in text


def test_a_study_as_a_baseline_is_its_cell_of_the_same_name(runs: list[RunRecord]) -> None:
    gate = Gate("mine/glitch", "<=", baseline="quantization-sweep")
    (result,) = judged(runs, runs[1], gate)
    assert f" · {runs[1].identity.name} " in str(result.baseline)
    with pytest.raises(PreflightError, match=r"s\.yaml:10:5: .* without a cell named 'other'"):
        with_baselines(planned("other", gate), ROOT)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate("mine/glitch", "<=", baseline="absent"), "no other run is called 'absent'"),
        (Gate("mine/left", "<=", baseline="quantization=int8"), "has no metric 'mine/left'"),
    ],
)
def test_a_missing_baseline_is_an_error_before_anything_starts(
    runs: list[RunRecord], gate: Gate, message: str
) -> None:
    with pytest.raises(PreflightError, match=rf"^s\.yaml:10:5: .*{message}"):
        with_baselines(planned("quantization=int8", gate), ROOT)


def test_a_run_is_not_its_own_baseline(runs: list[RunRecord]) -> None:
    key = runs[0].identity.key
    gate = Gate("mine/glitch", "<=", baseline=key)
    with pytest.raises(PreflightError, match="no other run"):
        with_baselines(planned("quantization=float32", gate, key=key), ROOT)
    own = Gate("mine/glitch", "<=", baseline=str(runs[0].folder))
    with pytest.raises(PreflightError, match="is this run itself"):
        with_baselines(planned("quantization=float32", own, key=key), ROOT)


def test_a_gate_whose_baseline_is_removed_during_the_run_is_not_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, _, last = write_matrix(Path(ROOT), Invented(experiment="before", tokens=40))
    gates = (Gate("mine/glitch", ">=", baseline=first.identity.key), Gate("mine/glitch", ">=", 1))
    (run,) = with_baselines(planned(last.identity.name, *gates), ROOT).runs
    assert [one.outcome for one in evaluate(run.gates, last)] == ["pass", "pass"]
    write_run(Path(ROOT), Invented("before", key=first.identity.key, tokens=40, status="KILLED"))
    (changed, _) = evaluate(run.gates, last)
    assert changed.outcome == "inconclusive"
    assert "it is INTERRUPTED now" in str(changed.test)
    shutil.rmtree(first.folder)
    lost, other = results = evaluate(run.gates, last)
    assert (lost.outcome, other.outcome) == ("inconclusive", "pass")
    assert (lost.p, lost.baseline_value) == (None, first.metrics["mine/glitch"].value)
    assert str(first.folder) in str(lost.test)
    assert exit_code(results) == 6
    assert "Not decided" in markdown(replace(last, gates=tuple(results)))


def test_runs_that_are_not_finished_are_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, half = (
        write_run(Path(ROOT), Invented(key=f"{place + 1:016x}", status=status, tokens=40))
        for place, status in enumerate(("FINISHED", "KILLED"))
    )
    gate = Gate("mine/glitch", "<=", baseline=str(half.folder))
    with pytest.raises(PreflightError, match=r"s\.yaml:10:5: .* is INTERRUPTED"):
        with_baselines(planned("next", gate), ROOT)
    done = compared(whole.identity.key, half.identity.key, "--fail-on", "regression")
    assert done.exit_code == 2
    assert "--fail-on compares finished runs" in done.stderr


def compared(*words: str) -> Result:
    return CliRunner().invoke(main, ["compare", *words])


def test_compare_fails_on_a_regression_and_names_it(runs: list[RunRecord]) -> None:
    words = ("quantization=float32", "quantization=int4", "--fail-on", "regression")
    done = compared(*words, "-o", "json")
    assert done.exit_code == 5
    found: dict[str, Any] = json.loads(done.stdout)["regression"]
    assert "B:mine/glitch" in found["regressed"]
    metrics = {one["metric"]: one for one in found["metrics"]}
    assert "mine/tokens_per_second" not in metrics
    tests = [one["p"] for one in found["metrics"] if one["p"] is not None]
    assert found["family"] == len(tests)
    assert "mine/glitch_rate" not in metrics  # it says the same as the count
    assert "regression in B: mine/glitch: " in done.stderr
    backwards = compared(*reversed(words[:2]), "--fail-on", "regression", "-o", "json")
    assert "B:mine/glitch" not in json.loads(backwards.stdout)["regression"]["regressed"]


def test_two_studies_are_compared_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = write_matrix(Path(ROOT))
    write_matrix(
        Path(ROOT), Invented(experiment="later", glitch_share=0.9), "fa11000000000009", first=16
    )
    done = compared("quantization-sweep", "later", "--fail-on", "regression", "-o", "json")
    found = json.loads(done.stdout)["regression"]
    cells = {one["run"] for one in found["metrics"]}
    assert cells == {run.identity.name for run in runs}
    assert found["not_compared"] == []
    assert done.exit_code == (5 if found["regressed"] else 0)
    assert found["family"] == sum(one["p"] is not None for one in found["metrics"]) > 3


def with_metric(record: RunRecord, name: str, metric: Metric | None) -> RunRecord:
    """The run with another value of a metric of its first step; None removes the metric."""
    first, *others = record.steps
    kept = {known: value for known, value in first.metrics.items() if known != name}
    found = kept if metric is None else {**kept, name: metric}
    return replace(record, steps=(replace(first, metrics=found), *others))


@pytest.mark.parametrize(
    ("name", "left", "right", "reason", "undecided"),
    [
        ("recall", Metric(0.9, 5), Metric(None, 5), "no value there", True),
        ("recall", Metric(0.9, 5), Metric(None, 0), "no value there", True),
        ("recall", Metric(0.9, 5), Metric(math.nan, 5), "no value there", True),
        ("recall", Metric(0.9, 5), None, "not measured there", True),
        ("severe", Metric(2, 5), Metric(None, 0), "no value there, because it counts nothing",
         False),
        ("severe", Metric(2, 5), Metric(None, 5), "no value there", True),
        ("recall", Metric(None, 5), Metric(0.9, 5), "no value in the first run", False),
        ("recall", None, Metric(0.9, 5), "not measured in the first run", False),
        ("recall", Metric(None, 5), Metric(None, 5), None, False),
        ("tokens_per_second", Metric(3, 5), None, None, False),
    ],
)  # fmt: skip
def test_a_metric_that_one_run_lacks_is_named(
    runs: list[RunRecord],
    name: str,
    left: Metric | None,
    right: Metric | None,
    reason: str | None,
    undecided: bool,
) -> None:
    """It may have become worse, so that the comparison cannot pass, where only the first has it."""
    sides = [with_metric(runs[0], name, metric) for metric in (left, right)]
    found = regression_of_studies({"cell": sides[0]}, {"cell": sides[1]}, Rule())
    said = [one.sentence for one in found.uncompared]
    assert said == ([f"mine/{name} in cell: {reason}"] if reason else [])
    assert [one.metric for one in found.undecided] == [f"mine/{name}"] * undecided
    assert found.to_json()["undecided"] == [f"cell:mine/{name}"] * undecided
    assert not found.worse
    assert any(reason in text for text in found.section().sentences) if reason else not said
    assert len([*found.lines()]) == undecided
    if undecided:
        with pytest.raises(click.exceptions.Exit) as ended:
            _fail(click.Context(click.Command("compare")), found)
        assert ended.value.exit_code == 6


def test_the_mean_rate_of_different_tokens_is_not_compared(runs: list[RunRecord]) -> None:
    """Fewer found tokens with a higher mean ASR are no regression."""
    first, *_, last = runs
    names = [one.metric for one in changes(first, last)]
    assert "asr/asr_mean" not in names
    assert "asr/confirmed" in names
    (one,) = [one for one in uncompared(first, last, "B") if one.metric == "asr/asr_mean"]
    assert "of other tokens" in one.sentence
    assert not one.undecided
    assert "asr/asr_mean" in [one.metric for one in changes(first, first)]


def test_a_significant_regression_needs_the_adjusted_test_too(runs: list[RunRecord]) -> None:
    rule = ("--fail-on", "significant-regression", "-o", "json")
    done = compared("quantization=float32", "quantization=int4", *rule)
    found = json.loads(done.stdout)["regression"]
    worse = {one["metric"] for one in found["metrics"] if one["worse_by"] > 0}
    shown = {one["metric"] for one in found["metrics"] if (one["p_adjusted"] or 1) <= 0.05}
    assert {one.partition(":")[2] for one in found["regressed"]} == worse & shown
    assert done.exit_code == (5 if worse & shown else 0)
    allowed = compared("quantization=float32", "quantization=int4", *rule, "--tolerance", "100")
    assert allowed.exit_code == 0
