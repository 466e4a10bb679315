"""`--redo`, `--until` and `--limit`: what is measured again, and what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glitchrun.cli.plan import command as plan
from glitchrun.errors import ExitCode, UsageError
from glitchrun.events import Verified
from glitchrun.ledger import find_runs, read_run
from glitchrun.ledger.record import RunRecord
from glitchrun.probing.frozen_suffix import Screener
from glitchrun.report.headline import headline
from glitchrun.report.run_details import apply_command
from glitchrun.runner.apply import _chosen as chosen
from glitchrun.runner.apply import apply
from glitchrun.runner.options import Options, adjusted, make_plan, read_until
from glitchrun.runner.signals import Interrupt, Stopped
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.strategies.judging import Judge
from glitchrun.strategies.predict import FORMATS
from glitchrun.tracking.params_and_tags import run_params, run_tags
from tests.support import quiet
from tests.support.oracle import FOLDER as ORACLE
from tests.support.quiet import Quiet

SPEC = f"""\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: options}}
model: {{path: {ORACLE}, device: cpu}}
steps:
  - {{id: some, strategy: test, tokens: {{ids: [300, 310, 320]}}}}
  - {{id: mine, strategy: mine, search: random, iterations: 4, batch_size: 4}}
  - {{id: again, strategy: test, tokens: {{from: mine, select: all}}}}
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet.without_store_and_report(monkeypatch)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the tokens that the model is asked about, in order."""
    asked: list[int] = []
    judge = Judge.judge

    def counted(self: Judge, ids: Sequence[int]) -> list[Verified]:
        asked.extend(ids)
        return judge(self, ids)

    monkeypatch.setattr(Judge, "judge", counted)
    return asked


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def ran(spec: Path, heard: list[str] | None = None, **options: Any) -> RunRecord:
    said = (lambda line: None) if heard is None else heard.append
    root = spec.parent / "mlruns"
    done = apply(load_experiment(spec), root, Options(**options), Quiet(said))
    assert not done.failures
    (outcome,) = done.outcomes
    return outcome.record


def actions(spec: Path, **options: Any) -> dict[str, str]:
    made = make_plan(load_experiment(spec), spec.parent / "mlruns", Options(**options))
    return {step.key.id: step.action for step in made.runs[0].steps}


def attempts(record: RunRecord) -> dict[str, tuple[int, bool]]:
    return {step.id: (step.attempt, step.reused) for step in record.steps}


def test_redone_step_and_its_readers_are_measured_again(spec: Path, judged: list[int]) -> None:
    first = ran(spec)
    assert len(judged) == 3 + 16 + 16
    judged.clear()
    redo = frozenset(["mine"])
    assert actions(spec, redo=redo) == {"some": "reuse", "mine": "start", "again": "start"}
    second = ran(spec, redo=redo)
    assert len(judged) == 16 + 16
    assert attempts(second) == {"some": (1, True), "mine": (2, False), "again": (2, False)}
    assert (second.identity.key, second.identity.attempt) == (first.identity.key, 2)
    old = read_run(first.folder)
    assert attempts(old) == {"some": (1, False), "mine": (1, False), "again": (1, False)}
    assert [run.status for run in find_runs(spec.parent / "mlruns")] == ["FINISHED"] * 2
    judged.clear()
    assert ran(spec).folder == second.folder
    assert judged == []


def test_plan_resumes_a_redone_step_that_was_interrupted(
    spec: Path, judged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(spec)
    judged.clear()
    stopped(spec, judged, 8, monkeypatch, redo=frozenset(["mine"]))
    assert actions(spec) == {"some": "reuse", "mine": "resume", "again": "start"}
    assert attempts(ran(spec)) == {"some": (1, True), "mine": (2, False), "again": (2, False)}
    assert len(judged) == 8 + 16  # the rest of the search, and what reads it


def test_plan_says_where_a_step_comes_from(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(spec)
    monkeypatch.chdir(spec.parent)
    spec.write_text(SPEC.replace("iterations: 4, batch_size: 4", "iterations: 5, batch_size: 4"))
    lines = CliRunner().invoke(plan, [str(spec)]).output.splitlines()
    shown = [line.removeprefix("  step    ") for line in lines if line.startswith("  step ")]
    assert shown[0].startswith("some (test), reuse from options ")
    assert shown[1].startswith("mine (mine), resume from options ")
    assert "at most 20 tokens" in shown[1]
    assert shown[2].startswith("again (test), start: at most 20 tokens")


def stopped(
    spec: Path, judged: list[int], count: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[str]:
    """Applies the spec, with a Ctrl-C once `count` tokens are verified. Returns what is said."""
    lines: list[str] = []

    def check(self: Interrupt) -> None:
        if len(judged) >= count:
            raise Stopped(ExitCode.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "check", check)
        assert ran(spec, lines, **options).status == "KILLED"
    judged.clear()
    return lines


def test_search_ends_early_with_what_there_is(
    spec: Path, judged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = stopped(spec, judged, 3 + 8, monkeypatch)
    assert "apply with --until mine=8" in lines[-1]
    early = ran(spec, lines, until={"mine": 10})
    assert "mine: ends after 8 verifications, the last whole round before 10" in lines
    assert len(judged) == 8  # the step `again` reads them
    assert [len(step.batches) for step in early.steps][1] == 2
    assert early.spec["steps"][1]["budget"] == 8
    sentence = "The user ended the search of step mine early, after 8 verifications"
    assert headline(early).notices == (f"{sentence} (--until mine=10).",)
    assert apply_command(early) == f"glitchrun apply {spec} --until mine=10"
    judged.clear()
    whole = ran(spec)  # goes on with the search of the run that was stopped
    assert len(judged) == 8 + 16
    assert whole.identity.key != early.identity.key
    assert headline(whole).notices == ()


def test_cascade_ends_early_without_a_pass_of_the_model(
    spec: Path, judged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = SPEC[: SPEC.index("steps:")]
    spec.write_text(f"{head}steps:\n  - {{id: mine, strategy: mine, search: cascade}}\n")
    ran(spec)
    judged.clear()
    monkeypatch.delattr(Screener, "screen")
    early = ran(spec, until={"mine": 21})
    assert judged == []
    assert early.metrics["mine/glitch"].n == 21


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ({"some": 2}, "is no search"),
        ({"mine": 3}, "fewer than one round"),
        ({"other": 8}, "it has: again, mine, some"),
    ],
)
def test_until_that_does_not_suit_the_step_is_refused(
    spec: Path, until: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        adjusted(load_experiment(spec), Options(until=until))


def test_until_is_refused_where_controls_follow_the_search(spec: Path) -> None:
    spec.write_text(SPEC.replace("batch_size: 4", "batch_size: 4, controls: 2"))
    with pytest.raises(UsageError, match="controls"):
        adjusted(load_experiment(spec), Options(until={"mine": 8}))


def test_until_beyond_the_end_of_a_search_changes_nothing(spec: Path) -> None:
    experiment = load_experiment(spec)
    same, notes = adjusted(experiment, Options(until={"mine": 20}))
    assert same == experiment
    assert notes == ["mine: ends after 16 verifications anyway"]


@pytest.mark.parametrize("text", ["mine", "mine=", "mine=0", "=3", "mine=3.5"])
def test_until_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="STEP=N"):
        read_until([text])


LIMITED = f"""\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: smoke}}
model: {{path: {ORACLE}, device: cpu}}
steps:
  - {{id: scan, strategy: scan, controls: 9}}
  - {{id: listed, strategy: test, tokens: {{ids: [300, 310, 320, 330]}}, controls: 9}}
  - {{id: walk, strategy: mine, search: gradient, batch_size: 2, controls: 9}}
  - {{id: range, strategy: mine, search: range, ranges: [[400, 500]]}}
  - {{id: cascade, strategy: mine, search: cascade}}
  - {{id: asr, strategy: validate, tokens: {{from: [scan, range], select: all}}, attempts: 1}}
  - {{id: classes, strategy: classify, tokens: {{from: scan, select: all}}, tests: []}}
  - {{id: next, strategy: predict, prompts: [{{text: a}}, {{text: b}}, {{text: c}}, {{text: d}}]}}
  - {{id: sequences, strategy: genetic, base_text: a b, population: 6}}
  - {{id: works, strategy: check, checks: [verification], glitch: [400, 401, 402, 403]}}
  - {{id: costs, strategy: profile, workload: {{repeats: 5}}}}
"""


def test_smoke_run_examines_at_most_n_items_per_step(spec: Path, judged: list[int]) -> None:
    spec.write_text(LIMITED)
    whole, limited = (
        make_plan(adjusted(load_experiment(spec), options)[0], spec.parent, options).runs[0]
        for options in (Options(), Options(limit=3))
    )
    assert limited.cell.name == "smoke, limit=3"
    assert not {key.key for key in whole.keys} & {key.key for key in limited.keys}
    assert whole.key != limited.key
    (classes,) = (step.params for step in limited.cell.spec.steps if step.id == "classes")
    assert (classes["attempts"], classes["controls"]) == (3, 1)
    record = ran(spec, limit=3)
    assert record.status == "FINISHED"
    steps = {step.id: [timed.batch for timed in step.batches] for step in record.steps}
    for name, most in {work.step: work.tokens for work in limited.work}.items():
        facts = [fact for batch in steps[name] for fact in batch.token_facts]
        assert len(facts) <= 3, name
        assert all(len(batch.controls) <= 3 for batch in steps[name]), name
        assert sum(len(batch.facts) for batch in steps[name] if batch.token_facts) <= (most or 0)
    screened = [fact for batch in steps["cascade"] for fact in batch.screened]
    assert sum(len(fact.token_ids) for fact in screened) == 3
    assert all(
        400 <= fact.token.id <= 500 for batch in steps["range"] for fact in batch.token_facts
    )
    assert len([fact for batch in steps["asr"] for fact in batch.token_facts]) == 3
    tables = Counter(
        (step, row.table) for step, batches in steps.items() for b in batches for row in b.entries
    )
    assert len(judged) == 7 * 3  # scan, listed, walk and its controls, range, cascade, works
    assert tables["classes", "categories"] == 3
    assert tables["next", "prompts"] == 3 * len(FORMATS)
    assert tables["sequences", "impacts"] == 3
    assert tables["sequences", "generations"] == 1 + 3
    assert tables["costs", "speed"] == 2 * 3
    assert headline(record).notices == ("Smoke run: at most 3 items per step.",)
    assert record.spec["limit"] == 3
    tags = run_tags(record)
    assert (tags["glitchrun.limit"], tags["glitchrun.residency"]) == ("3", "resident")
    assert run_params(record)[0]["model.residency"] == "auto"
    assert apply_command(record) == f"glitchrun apply {spec} --limit 3"


def test_cell_of_a_smoke_run_is_named_either_way(spec: Path) -> None:
    spec.write_text(SPEC + "matrix: {axes: {seed: [1, 2]}}\n")
    for only in ("seed=2", "seed=2, limit=4"):
        options = Options(only=only, until={"mine": 8}, limit=4)
        changed, _ = adjusted(load_experiment(spec), options)
        assert [cell.name for cell in changed.cells] == ["seed=1, limit=4", "seed=2, limit=4"]
        plan = make_plan(changed, spec.parent, options)
        assert [run.cell.name for run in chosen(plan, options)] == ["seed=2, limit=4"]
        origins = {path: str(one) for path, one in changed.cells[1].spec.origins.items()}
        assert origins["steps[1].budget"].endswith("(--until mine=8)")
        assert origins["limit"].endswith("(--limit 4)")
        with pytest.raises(UsageError, match="give 1 or more"):
            adjusted(load_experiment(spec), replace(options, limit=0))
