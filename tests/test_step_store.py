"""Steps are measured once: edits of a spec, shared cells, interruptions, and older run folders."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from glitchrun.cli.status import _row
from glitchrun.errors import ExitCode, RunError
from glitchrun.events import Artifact, Sampled, Token, Verified
from glitchrun.events_json import batch_to_json
from glitchrun.ledger import (
    Journal,
    checksums,
    current_attempt,
    existing_status,
    find_runs,
    read_run,
    step_fold,
    step_store,
)
from glitchrun.ledger.journal import StepJournal
from glitchrun.ledger.record import RunIdentity, RunRecord
from glitchrun.ledger.step_store import attempt_folder, attempts, read_step
from glitchrun.model import loading
from glitchrun.plan.build import build
from glitchrun.probing.sampling import Sampler
from glitchrun.report.summary import summary_lines
from glitchrun.report.token_files import write_tokens
from glitchrun.runner import apply as runner
from glitchrun.runner import execute
from glitchrun.runner.apply import Applied, Options, apply
from glitchrun.runner.options import make_plan
from glitchrun.runner.resolved import Resolver
from glitchrun.runner.signals import Stopped
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.judging import Judge
from glitchrun.tracking.params_and_tags import run_tags
from tests.support.oracle import FOLDER as ORACLE
from tests.support.quiet import NoTracker, Quiet
from tests.support.records import Invented, write_run

HEAD = f"""\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: NAME}}
model: {{path: {ORACLE}, device: cpu, quantization: float32}}
tokens: {{categories: [normal]}}
"""
MINE = "{id: mine, strategy: mine, search: random, iterations: 6, batch_size: 8}"
ASR = "{id: asr, strategy: validate, tokens: {from: mine}, attempts: 2, max_new_tokens: 4}"
SCAN = "{id: scan, strategy: scan}"


@dataclass
class Work:
    """What reached the model."""

    verified: list[int] = field(default_factory=list)
    sampled: list[tuple[int, int]] = field(default_factory=list)
    loaded: int = 0

    def take(self) -> tuple[int, int, int]:
        """Tokens verified, attempts sampled and models loaded since the last call."""
        found = len(self.verified), len(self.sampled), self.loaded
        self.verified.clear()
        self.sampled.clear()
        self.loaded = 0
        return found


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts the work, and leaves out MLflow and the report, which other tests cover."""
    counted = Work()
    judge, attempt, load = Judge.judge, Sampler.attempts_on, loading.load

    def judged(self: Judge, ids: Any) -> Any:
        counted.verified += ids
        return judge(self, ids)

    def attempted(self: Sampler, token: Token, numbers: range) -> Any:
        counted.sampled += [(token.id, number) for number in numbers]
        return attempt(self, token, numbers)

    def loaded(*given: Any, **options: Any) -> Any:
        counted.loaded += 1
        return load(*given, **options)

    monkeypatch.setattr(Judge, "judge", judged)
    monkeypatch.setattr(Sampler, "attempts_on", attempted)
    monkeypatch.setattr(loading, "load", loaded)
    monkeypatch.setattr(execute, "MlflowTracker", NoTracker)
    monkeypatch.setattr(execute, "write_report", lambda record: None)
    monkeypatch.setattr(runner, "ensure_store", lambda uri, root: None)
    monkeypatch.setattr(runner, "_undelivered", lambda record, session: None)
    return counted


def applied(
    folder: Path,
    *steps: str,
    more: str = "",
    name: str = "edits",
    root: str = "mlruns",
    quantization: str = "float32",
    **given: Any,
) -> Applied:
    """Applies a spec of these steps under `folder`."""
    spec = folder / f"{name}.yaml"
    lines = [f"  - {step}\n" for step in steps]
    head = HEAD.replace("NAME", name).replace("float32", quantization)
    spec.write_text(f"{head}{more}steps:\n{''.join(lines)}")
    return apply(load_experiment(spec), folder / root, Options(**given), Quiet())


def record(done: Applied) -> RunRecord:
    (outcome,) = done.outcomes
    assert outcome.record.status == "FINISHED", done
    return outcome.record


def tokens(run: RunRecord, folder: Path) -> bytes:
    """tokens.jsonl of the run."""
    folder.mkdir(exist_ok=True)
    return write_tokens(run, folder)[0].read_bytes()


def lines(run: RunRecord, folder: Path) -> list[Any]:
    """The lines of tokens.jsonl, with floats as exact as batches of other sizes give them."""
    text = tokens(run, folder).decode()
    parse: Any = lambda number: float(f"{float(number):.4g}")  # noqa: E731
    return [json.loads(line, parse_float=parse) for line in text.splitlines()]


def between_tokens(run: RunRecord) -> float:
    """A probability threshold far from every glitch token of the first step: none is a near-tie."""
    facts = [fact for timed in run.steps[0].batches for fact in timed.batch.token_facts]
    found = sorted(fact.p for fact in facts if isinstance(fact, Verified) and fact.glitch)
    gaps = {after / before: (after * before) ** 0.5 for before, after in pairwise(found)}
    return gaps[max(gaps)]


def said(run: RunRecord) -> list[Any]:
    """The continuations of every token, in their order."""
    facts = (fact for step in run.steps for timed in step.batches for fact in timed.batch.facts)
    return [fact.continuations for fact in facts if isinstance(fact, Sampled)]


def values(run: RunRecord) -> dict[str, float | None]:
    """The metrics that do not depend on the clock."""
    return {
        name: metric.value
        for name, metric in run.metrics.items()
        if "second" not in name and not name.startswith("model/")
    }


def test_edits_of_a_spec_measure_new_questions_only(tmp_path: Path, work: Work) -> None:
    first = record(applied(tmp_path, MINE))
    assert work.take() == (48, 0, 1)
    found = int(first.metrics["mine/glitch"].value or 0)
    assert found > 1

    appended = record(applied(tmp_path, MINE, ASR))
    assert work.take() == (0, 2 * found, 1)
    assert [step.reused for step in appended.steps] == [True, False]
    assert appended.steps[0].origin == f"edits {first.identity.key[:8]}#1"
    assert appended.steps[0].own_seconds == 0 < appended.steps[0].seconds
    assert run_tags(appended)["glitchrun.reused"].startswith("mine from edits ")
    assert "reused from edits" in "\n".join(summary_lines(appended))

    renamed = MINE.replace("id: mine", "id: other"), ASR.replace("from: mine", "from: other")
    again = record(applied(tmp_path, *renamed, name="renamed"))
    assert work.take() == (0, 0, 0)
    assert [step.id for step in again.steps] == ["other", "asr"]
    assert again.model is not None
    assert again.model.load_seconds == 0

    more = record(applied(tmp_path, MINE, ASR.replace("attempts: 2", "attempts: 3")))
    assert {number for _, number in work.sampled} == {2}
    assert work.take() == (0, found, 1)
    assert more.notes["reused_attempts"] == 2 * found
    assert "reused_tokens" not in more.notes  # each token needed one more

    strict = record(applied(tmp_path, MINE, ASR, more="thresholds: {asr: 1.0}\n"))
    assert work.take() == (0, 0, 0)
    facts = [fact for timed in strict.steps[1].batches for fact in timed.batch.token_facts]
    assert all(fact.confirmed == all(fact.outcomes) for fact in facts if isinstance(fact, Sampled))
    assert strict.metrics["asr/confirmed"].value == sum(fact.flagged for fact in facts)

    afresh = record(applied(tmp_path, MINE, ASR, more="thresholds: {asr: 1.0}\n", root="afresh"))
    assert tokens(strict, tmp_path / "a") == tokens(afresh, tmp_path / "b")
    assert values(strict) == values(afresh)


@pytest.mark.parametrize("more", ["", ", sequential: true, error_rate: 0.3"])
def test_steps_of_the_same_question_share_attempts(tmp_path: Path, work: Work, more: str) -> None:
    """Other tokens, other numbers of attempts, and rounds that end early."""

    def asr(ids: str, attempts: int, more: str = more) -> str:
        short = ASR.replace("from: mine", f"ids: [{ids}]")
        return short.replace("attempts: 2", f"attempts: {attempts}")[:-1] + more + "}"

    record(applied(tmp_path, asr("20, 21, 22, 23", 3, "")))
    assert work.take() == (0, 12, 1)
    edited = record(applied(tmp_path, asr("24, 22, 21, 25, 20", 5)))
    asked = list(work.sampled)
    assert {number for token, number in asked if token in (20, 21, 22)} <= {3, 4}
    assert 0 in {number for token, number in asked if token == 24}
    work.take()
    afresh = record(applied(tmp_path, asr("24, 22, 21, 25, 20", 5), root="afresh"))
    assert tokens(edited, tmp_path / "a") == tokens(afresh, tmp_path / "b")
    assert said(edited) == said(afresh)
    ignored = ("asr/attempts_per_second", "asr/resampled")
    kept = [{n: v for n, v in values(run).items() if n not in ignored} for run in (edited, afresh)]
    assert kept[0] == kept[1]
    other = asr("20, 21", 3).replace("max_new_tokens: 4", "max_new_tokens: 5")
    work.take()
    assert not record(applied(tmp_path, other)).notes.get("reused_attempts")


@pytest.mark.parametrize("more", ["", ", sequential: true, error_rate: 0.3"])
def test_a_step_with_known_attempts_needs_no_model(tmp_path: Path, work: Work, more: str) -> None:
    """Fewer tokens, by a stricter threshold, and fewer attempts."""

    def asr(attempts: int, more: str = "") -> str:
        chosen = ASR.replace("from: mine", "from: scan")
        return f"{chosen[:-1]}{more}}}".replace("attempts: 2", f"attempts: {attempts}")

    limited = SCAN.replace("}", ", batch_size: 64}")
    head = "thresholds: {{probability: {}, asr: 0.6}}\n"
    loose = record(applied(tmp_path, limited, asr(4), more=head.format(0.5)))
    strict = head.format(between_tokens(loose))
    work.take()
    edited = record(applied(tmp_path, limited, asr(3, more), more=strict))
    assert work.take() == (0, 0, 0)
    assert 0 < edited.metrics["asr/validated"].value < loose.metrics["asr/validated"].value  # type: ignore[operator]
    afresh = record(applied(tmp_path, limited, asr(3, more), more=strict, root="afresh"))
    assert tokens(edited, tmp_path / "a") == tokens(afresh, tmp_path / "b")
    assert said(edited) == said(afresh)
    prompts = [
        next(t.batch.prompts for t in run.steps[1].batches if t.batch.prompts)
        for run in (edited, afresh)
    ]
    assert prompts[0] == prompts[1]
    assert edited.notes.get("dropped_system") == afresh.notes.get("dropped_system")


def test_ledgers_that_cannot_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a newer version, one with a plain line, one that is no file, and one of a run."""
    document = {"key": "good", "strategy": "validate", "made_of": {}}
    StepJournal.create(attempt_folder(tmp_path, "good", 1), document)
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "VERSION", 99)
        newer = checksums.Chain(lambda kind: False).head_line(0, "step", document)
    of_a_run = checksums.Chain(lambda kind: False).head_line(0, "run", document)
    for name, line in {"newer": newer, "plain": b'{"kind":"batch"}\n', "run": of_a_run}.items():
        folder = attempt_folder(tmp_path, name, 1)
        folder.mkdir(parents=True)
        (folder / "ledger.jsonl").write_bytes(line)
    attempt_folder(tmp_path, "fifo", 1).mkdir(parents=True)
    os.mkfifo(attempt_folder(tmp_path, "fifo", 1) / "ledger.jsonl")
    (found,) = step_store.stored_steps(tmp_path)
    assert found == (attempt_folder(tmp_path, "good", 1), document)


def test_a_new_probability_judges_a_finished_scan_without_the_model(
    tmp_path: Path, work: Work
) -> None:
    loose = record(applied(tmp_path, SCAN))
    work.take()
    more = f"thresholds: {{probability: {between_tokens(loose)}}}\n"
    strict = record(applied(tmp_path, SCAN, more=more))
    assert work.take() == (0, 0, 0)
    counts = [run.metrics["scan/glitch"].value or 0 for run in (loose, strict)]
    assert counts[0] > counts[1] > 0
    afresh = record(applied(tmp_path, SCAN, more=more, root="afresh"))
    assert tokens(strict, tmp_path / "a") == tokens(afresh, tmp_path / "b")
    assert values(strict) == values(afresh)


@pytest.mark.parametrize("search", ["random", "gradient, k: 16", "surrogate", "cascade"])
def test_a_larger_budget_continues_from_a_smaller_one(
    tmp_path: Path, work: Work, search: str
) -> None:
    def mine(budget: int) -> str:
        size = "" if search == "cascade" else ", batch_size: 8"
        return f"{{id: mine, strategy: mine, search: {search}, budget: {budget}{size}}}"

    small = record(applied(tmp_path, mine(16)))
    assert work.take() == (16, 0, 1)
    large = record(applied(tmp_path, mine(32)))
    assert work.take() == (16, 0, 1)
    afresh = record(applied(tmp_path, mine(32), root="afresh"))
    work.take()
    assert lines(large, tmp_path / "a") == lines(afresh, tmp_path / "b")
    assert values(large) == values(afresh)
    assert tokens(read_run(small.folder), tmp_path / "c") == tokens(small, tmp_path / "d")
    assert record(applied(tmp_path, mine(16))).folder == small.folder
    other = record(applied(tmp_path, mine(24)))
    assert work.take()[0] == 0  # the store has the first 24 of 32
    assert other.metrics["mine/verified"].value == 24


def test_the_list_of_runs_reads_no_facts(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = record(applied(tmp_path, MINE, ASR))
    expected = _row(read_run(done.folder)) | {"age": 0}
    assert expected["steps"][0] == {
        "id": "mine",
        "finished": True,
        "stage": "verification",
        "done": 48,
        "total": 48,
    }

    def refuse(entry: Any) -> None:
        raise AssertionError("a batch was read")

    step_store._read_unchanged.cache_clear()
    monkeypatch.setattr(step_fold, "batch_from_json", refuse)
    (found,) = find_runs(tmp_path / "mlruns")
    assert _row(found) | {"age": 0} == expected
    assert found.metrics == done.metrics
    assert found.notes == done.notes
    with pytest.raises(AssertionError, match="a batch was read"):
        list(found.steps[0].batches)


def test_near_ties_at_a_new_threshold_are_counted(tmp_path: Path, work: Work) -> None:
    narrow = "execution: {arithmetic: weights}\n"
    first = record(applied(tmp_path, SCAN, more=narrow, quantization="bfloat16"))
    assert "near_threshold" not in first.notes
    facts = [fact for timed in first.steps[0].batches for fact in timed.batch.token_facts]
    near = next(fact.p for fact in facts if isinstance(fact, Verified) and fact.glitch)
    more = f"{narrow}thresholds: {{probability: {near}}}\n"
    strict = record(applied(tmp_path, SCAN, more=more, quantization="bfloat16"))
    assert strict.notes["near_threshold"] > 0
    again = {"redo": frozenset(["scan"])}
    redone = record(applied(tmp_path, SCAN, more=more, quantization="bfloat16", **again))
    assert "near_threshold" not in redone.notes


def test_part_of_a_round_does_not_continue_a_search_that_learns(tmp_path: Path, work: Work) -> None:
    mine = "{id: mine, strategy: mine, search: surrogate, batch_size: 8, budget: BUDGET}"
    applied(tmp_path, mine.replace("BUDGET", "12"))
    assert work.take()[0] == 12
    applied(tmp_path, mine.replace("BUDGET", "16"))
    assert work.take()[0] == 16


def test_cells_share_the_steps_before_the_axis(tmp_path: Path, work: Work) -> None:
    axis = "matrix: {axes: {'steps[1].attempts': [1, 2, 3]}}\n"
    done = applied(tmp_path, MINE, ASR, more=axis)
    verified, _, loaded = work.take()
    assert (verified, loaded) == (48, 1)
    assert [run.record.steps[0].reused for run in done.outcomes] == [False, True, True]
    assert {run.record.metrics["mine/glitch"].value for run in done.outcomes} != {0}
    spec = load_experiment(tmp_path / "edits.yaml")
    plan = build(spec, lambda key: None, fetch=False, resolve=Resolver())
    shared = [(run.steps[0].action, run.steps[0].origin) for run in plan.runs]
    names = [run.cell.name for run in plan.runs]
    assert shared == [("start", ""), ("reuse", names[0]), ("reuse", names[0])]


def test_an_interrupted_step_is_continued_by_another_run(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge.judge

    def fail(self: Judge, ids: Any) -> Any:
        if len(work.verified) >= 24:
            raise RunError("no luck")
        return judge(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "judge", fail)
        assert applied(tmp_path, MINE).exit_code == ExitCode.ERROR
    assert work.take()[0] == 24
    other = record(applied(tmp_path, MINE, name="another"))
    assert work.take()[0] == 24
    first = record(applied(tmp_path, MINE))
    assert work.take() == (0, 0, 0)
    assert tokens(first, tmp_path / "a") == tokens(other, tmp_path / "b")


def test_two_runs_that_want_one_step_measure_it_once(tmp_path: Path, work: Work) -> None:
    done: dict[str, Applied] = {}

    both = threading.Barrier(2)

    def go(name: str, asr: float) -> None:
        both.wait()
        more = f"thresholds: {{asr: {asr}}}\n"  # another run, with the same step
        done[name] = applied(tmp_path, SCAN, name=name, more=more)

    threads = [threading.Thread(target=go, args=given) for given in (("one", 0.25), ("two", 0.75))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = (record(done[name]) for name in ("one", "two"))
    assert len(work.verified) == one.metrics["scan/verified"].value
    assert sorted((one.steps[0].reused, two.steps[0].reused)) == [False, True]
    assert tokens(one, tmp_path / "a") == tokens(two, tmp_path / "b")


def test_fresh_and_redo_start_new_attempts_at_steps(tmp_path: Path, work: Work) -> None:
    first = record(applied(tmp_path, MINE, ASR))
    counts = work.take()
    again = record(applied(tmp_path, MINE, ASR, fresh=True))
    assert work.take()[:2] == counts[:2]
    assert [step.attempt for step in again.steps] == [2, 2]
    redone = record(applied(tmp_path, MINE, ASR, redo=frozenset(["asr"])))
    assert work.take()[:2] == (0, counts[1])
    assert [step.attempt for step in redone.steps] == [2, 3]
    assert [step.attempt for step in read_run(first.folder).steps] == [1, 1]
    contents = {tokens(run, tmp_path / "t") for run in (first, again, redone)}
    assert len(contents) == 1


@pytest.mark.parametrize("option", [{"fresh": True}, {"redo": frozenset(["scan", "asr"])}])
def test_an_interrupted_run_remembers_what_it_measures_again(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    ids = ASR.replace("from: mine", "ids: [20, 21]")
    applied(tmp_path, SCAN, ids)
    verified, sampled, _ = work.take()

    def fail(self: Judge, ids: Any) -> Any:
        raise Stopped(ExitCode.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "judge", fail)
        assert applied(tmp_path, SCAN, ids, **option).exit_code == ExitCode.SIGINT
    experiment = load_experiment(tmp_path / "edits.yaml")
    (planned,) = make_plan(experiment, tmp_path / "mlruns", Options()).runs
    assert [step.action for step in planned.steps] == ["resume", "start"]
    resumed = record(applied(tmp_path, SCAN, ids))
    assert work.take()[:2] == (verified, sampled)
    assert [step.attempt for step in resumed.steps] == [2, 2]


def test_a_version_of_a_strategy_enters_its_key(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied(tmp_path, SCAN)
    count = work.take()[0]
    monkeypatch.setattr(type(STRATEGIES["scan"]), "version", 2)
    applied(tmp_path, SCAN)
    assert work.take()[0] == count


def test_a_step_that_is_damaged_or_lost_is_measured_again(tmp_path: Path, work: Work) -> None:
    first = record(applied(tmp_path, MINE))
    right = tokens(first, tmp_path / "a")
    root, key = tmp_path / "mlruns", first.steps[0].key
    ledger = attempt_folder(root, key, 1) / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    changed = lines[5].replace(b'"p":', b'"p":1', 1)
    ledger.write_bytes(b"".join([*lines[:5], changed, *lines[6:]]))
    found = read_run(first.folder)
    assert found.status == "DAMAGED"
    assert f"{ledger}:6: it was altered" in str(found.damage)
    assert existing_status(root, "edits", first.identity.key) == "DAMAGED"
    work.take()
    mended = record(applied(tmp_path, MINE))
    assert 0 < work.take()[0] < 48
    assert tokens(mended, tmp_path / "b") == right
    assert len(mended.repairs) == 1
    ledger.unlink()
    assert read_run(first.folder).status == "DAMAGED"
    assert tokens(record(applied(tmp_path, MINE)), tmp_path / "c") == right
    assert attempts(root, key) == [1]


def test_facts_are_stored_without_verdicts(tmp_path: Path, work: Work) -> None:
    run = record(applied(tmp_path, MINE, ASR))
    for step in run.steps:
        folder = attempt_folder(tmp_path / "mlruns", step.key, step.attempt)
        text = (folder / "ledger.jsonl").read_text()
        assert '"kind":"batch"' in text
        assert '"glitch":' not in text
        assert '"confirmed":' not in text
        head = json.loads(text.splitlines()[0])["step"]
        assert head["key"] == step.key
        assert head["made_of"]["params"].keys() >= {"probes"}


def test_a_run_of_an_earlier_version_is_shown_and_continued(tmp_path: Path, work: Work) -> None:
    """Its ledger contained the facts of its steps."""
    whole = record(applied(tmp_path, MINE, ASR, root="whole"))
    work.take()
    root = tmp_path / "mlruns"
    plan = build(load_experiment(tmp_path / "edits.yaml"), lambda key: None, resolve=Resolver())
    key = plan.runs[0].key
    folder = root / "runs" / "edits" / key / "attempt-1"
    identity = RunIdentity(**{**_fields(whole.identity), "key": key})
    with Journal.create(folder, identity, whole.spec, whole.origins) as journal:
        journal.append("session", pid=1, host="here", plan={}, environment={})
        journal.append("step", step="mine")
        for timed in whole.steps[0].batches[:4]:
            journal.append("batch", step="mine", **batch_to_json(timed.batch))
        journal.append("ended", status="KILLED", error=None)
    before = (folder / "ledger.jsonl").read_bytes()
    assert sum(len(t.batch.facts) for t in read_run(folder).steps[0].batches) == 32
    done = record(applied(tmp_path, MINE, ASR))
    assert work.take()[0] == 16
    assert done.identity.attempt == 2
    assert tokens(done, tmp_path / "a") == tokens(whole, tmp_path / "b")
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert current_attempt(root, "edits", key) == done.folder


def _fields(identity: RunIdentity) -> dict[str, Any]:
    return {name: getattr(identity, name) for name in identity.__dataclass_fields__}


def test_a_finished_run_of_an_earlier_version_is_read_as_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path, Invented())
    assert run.status == "FINISHED"
    assert {step.key for step in run.steps} == {""}
    assert run.metrics["mine/glitch"].value


def test_the_store_says_what_a_key_was_made_of(tmp_path: Path, work: Work) -> None:
    run = record(applied(tmp_path, SCAN))
    step = run.steps[0]
    facts = read_step(attempt_folder(tmp_path / "mlruns", step.key, 1))
    assert facts.document["strategy"] == "scan"
    assert "seed" not in facts.document["made_of"]  # it changes nothing in a scan
    assert facts.workers[0]["experiment"] == "edits"


def test_a_larger_budget_changes_nothing_in_the_run_with_the_smaller_one(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000_000_000_000, 2_000_000_000_000, 1000))
    monkeypatch.setattr("glitchrun.ledger.journal.now", lambda: next(clock))
    mine = "{id: mine, strategy: mine, search: random, batch_size: 8, budget: BUDGET}"
    small = record(applied(tmp_path, mine.replace("BUDGET", "16")))
    before = small.steps[0].elapsed
    assert before
    large = record(applied(tmp_path, mine.replace("BUDGET", "32")))
    assert read_run(small.folder).steps[0].elapsed == before
    middle = record(applied(tmp_path, mine.replace("BUDGET", "24")))
    elapsed = [run.steps[0].elapsed or 0 for run in (small, middle, large)]
    assert elapsed == sorted(set(elapsed))


def test_a_run_killed_at_the_end_of_a_step_has_measured_it_itself(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> Any:
        raise RunError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "metrics", killed)
        assert applied(tmp_path, MINE).exit_code == ExitCode.ERROR
    assert work.take()[0] == 48
    run = record(applied(tmp_path, MINE))
    assert work.take() == (0, 0, 0)
    assert not run.steps[0].reused
    assert record(applied(tmp_path, MINE, ASR)).steps[0].reused


def test_a_step_whose_ledger_lost_its_end_is_damaged(tmp_path: Path, work: Work) -> None:
    mine = "{id: mine, strategy: mine, search: random, batch_size: 8, budget: BUDGET}"
    applied(tmp_path, mine.replace("BUDGET", "16"))
    large = record(applied(tmp_path, mine.replace("BUDGET", "32")))
    root, step = tmp_path / "mlruns", large.steps[0]
    ledger = attempt_folder(root, step.key, step.attempt) / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))  # the end with a budget of 16 is still there
    assert existing_status(root, "edits", large.identity.key) == "DAMAGED"
    work.take()
    record(applied(tmp_path, mine.replace("BUDGET", "32")))
    assert work.take()[0] == 0


def test_settings_that_mean_the_same_give_the_same_key(tmp_path: Path) -> None:
    def keys(*steps: str, more: str = "") -> list[str]:
        spec = tmp_path / "keys.yaml"
        spec.write_text(f"{HEAD}{more}steps:\n" + "".join(f"  - {step}\n" for step in steps))
        (run,) = build(load_experiment(spec), lambda key: None, resolve=Resolver()).runs
        return [key.key for key in run.keys]

    strict = "{id: scan, strategy: scan, probes: strict}"
    assert keys(strict) == keys(strict.replace("strict", "[repeat, explain, question]"))
    chosen = ASR.replace("from: mine", "from: mine, select: glitch")
    assert keys(MINE, ASR) == keys(MINE, chosen)
    assert keys(MINE, ASR) != keys(MINE, chosen.replace("glitch", "all"))
    predict = "{id: predict, strategy: predict, prompts: [{text: hi}]}"
    assert keys(predict) == keys(predict, more="seed: 77\n")


SEEDLESS = [
    "{id: one, strategy: mine, search: low-norm, budget: 8}",
    "{id: one, strategy: mine, search: indicator, budget: 8}",
    "{id: one, strategy: mine, search: gradient, budget: 8}",
    "{id: one, strategy: mine, search: range, ranges: [[300, 330]]}",
    "{id: one, strategy: validate, tokens: {ids: [300]}, temperature: 0}",
]
SEEDED = [
    "{id: one, strategy: mine, search: random, budget: 8}",
    "{id: one, strategy: mine, search: low-norm, budget: 8, controls: 1}",
    "{id: one, strategy: mine, search: range, ranges: [[300, 330]], sample_size: 4}",
    "{id: one, strategy: mine, search: screen, budget: 8}",
    "{id: one, strategy: validate, tokens: {ids: [300]}}",
    "{id: one, strategy: validate, tokens: {ids: [300]}, temperature: 0, controls: 1}",
]


@pytest.mark.parametrize("step", SEEDLESS + SEEDED)
def test_cells_that_differ_in_the_seed_share_the_steps_that_draw_nothing(
    tmp_path: Path, step: str
) -> None:
    spec = tmp_path / "seeds.yaml"
    spec.write_text(f"{HEAD}matrix: {{seeds: 2}}\nsteps:\n  - {step}\n")
    runs = build(load_experiment(spec), lambda key: None, resolve=Resolver()).runs
    first, second = (run.keys[0].key for run in runs)
    assert (first == second) is (step in SEEDLESS)


def test_files_of_a_step_are_in_every_run_that_uses_it(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(STRATEGIES["scan"])
    run = kind.run

    def with_file(*given: Any) -> Any:
        yield from run(*given)
        yield Artifact("notes/scan.txt", "seen")

    monkeypatch.setattr(kind, "run", with_file)
    first = record(applied(tmp_path, SCAN))
    other = record(applied(tmp_path, SCAN, more="thresholds: {asr: 0.9}\n"))
    assert work.take()[2] == 1
    assert other.steps[0].reused
    for found in (first, other):
        assert (found.artifacts / "notes" / "scan.txt").read_text() == "seen"
