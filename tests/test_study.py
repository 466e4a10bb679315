"""The report of a study, recomputed from the records of its cells."""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from glitchrun.behaviour.significance import McNemar, Mean
from glitchrun.cli import main
from glitchrun.ledger import ROOT, RunRecord, find_runs
from glitchrun.ledger.record import Metric, StepRecord
from glitchrun.report.figures.style import style
from glitchrun.report.study import Study, places_of_best
from glitchrun.report.study_sections import drawings, sections
from tests.support.records import Invented, write_run
from tests.support.reporting import rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two precisions × three seeds, 60 tokens each; the narrower one has more glitch tokens."""
    root = tmp_path_factory.mktemp("study")
    for place, (name, share) in enumerate([("float32", 0.2), ("int4", 0.5)]):
        for seed in range(3):
            write_run(
                root / ROOT,
                Invented(
                    experiment="study",
                    name=f"quantization={name}, seed={seed}",
                    key=f"{10 * place + seed + 1:016x}",
                    parent="fa11000000000002",
                    assignments={"model.quantization": name, "seed": seed},
                    quantization=name,
                    seed=seed,
                    tokens=60,
                    glitch_share=share,
                    started_at=1_750_000_000_000 + 1000 * (3 * place + seed),
                ),
            )
    return root


@pytest.fixture
def study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Its JSON."""
    monkeypatch.chdir(folder)
    found: dict[str, Any] = json.loads(reported("--format", "json").stdout)
    return found


def reported(*words: str) -> Result:
    done = CliRunner().invoke(main, ["report", "study", *words])
    assert done.exit_code == 0, done.stderr
    return done


def records() -> dict[str, list[RunRecord]]:
    """The cells by precision, in the order of the seeds."""
    from glitchrun.runner.lookup import find_cells

    found: dict[str, list[RunRecord]] = {}
    for record in find_cells("study", ROOT):
        found.setdefault(record.identity.assignments["model.quantization"], []).append(record)
    return found


def test_means_over_seeds_have_students_interval(study: dict[str, Any]) -> None:
    metrics = {one["name"]: one for one in study["metrics"]}
    for name in ("mine/glitch", "asr/confirmed"):
        for one, cells in zip(metrics[name]["means"], records().values(), strict=True):
            values = [float(cell.metrics[name].value or 0) for cell in cells]
            half = 4.302653 * stdev(values) / sqrt(3)  # t, 2 degrees of freedom, 97.5 %
            assert one["n"] == 3
            assert one["mean"] == pytest.approx(fmean(values), rel=1e-6)
            assert one["high"] == pytest.approx(fmean(values) + half, rel=1e-6)


def test_pairs_count_each_token_once_with_the_verdict_of_most_seeds(study: dict[str, Any]) -> None:
    by_value = []
    for cells in records().values():
        votes: dict[int, list[bool]] = {}
        for cell in cells:
            found: dict[int, bool] = {}
            for row in rows(cell):
                verdict = row["glitch"] if row["confirmed"] is None else row["confirmed"]
                if verdict is not None:
                    found[row["token_id"]] = verdict
            for token_id, verdict in found.items():
                votes.setdefault(token_id, []).append(verdict)
        by_value.append({i: sum(v) / len(v) for i, v in votes.items() if sum(v) != len(v) / 2})
    common = [i for i in by_value[0] if i in by_value[1]]
    kinds = [(by_value[0][i] > 0.5, by_value[1][i] > 0.5) for i in common]
    (pair,) = study["pairs"]
    assert (pair["left"], pair["right"]) == ("float32", "int4")
    assert [pair[name] for name in ("both", "only_left", "only_right", "neither")] == [
        kinds.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))
    ]
    test = McNemar(len(kinds), kinds.count((True, False)), kinds.count((False, True)))
    assert pair["p"] == pair["p_adjusted"] == pytest.approx(test.p, rel=1e-6)
    flips = {one["token_id"] for one in study["flips"]["model.quantization"]}
    assert flips == {i for i, (one, other) in zip(common, kinds, strict=True) if one != other}


def test_stability_counts_tokens_by_how_many_seeds_find_them(study: dict[str, Any]) -> None:
    whole = study["groups"][0]["tokens"]
    cells = records()["float32"]
    found = [{row["token_id"] for row in rows(cell) if row["confirmed"]} for cell in cells]
    assert whole["every_seed"] == len(set.intersection(*found))
    assert whole["some_seeds"] <= len(set.union(*found) - set.intersection(*found))
    every = [one for some in records().values() for one in some]
    judged = [{row["token_id"] for row in rows(cell) if row["step"] == "mine"} for cell in every]
    counted = len(set.intersection(*judged)), len(set.union(*judged))
    assert Study(every).judged == counted
    assert Study(every).seeds_choose == (counted[0] < counted[1])


def test_best_values_and_ties_are_marked() -> None:
    assert places_of_best([3, 1, None, 1.0], "lower") == [1, 3]
    assert places_of_best([3, 1, 2], "higher") == [0]
    assert places_of_best([2, 2], "higher") == []
    assert places_of_best([3, 1], "") == []


def test_fewer_glitch_tokens_are_better_unless_the_cells_search(folder: Path) -> None:
    cells = find_runs(folder / ROOT)
    assert Study(cells).fewer == "lower"

    def moved(axis: str) -> Study:
        return Study(
            [
                replace(cell, identity=replace(cell.identity, assignments={axis: i, "seed": 0}))
                for i, cell in enumerate(cells)
            ]
        )

    assert moved("steps.mine.k").fewer == "higher"
    assert moved("thresholds.asr").fewer == ""
    titles = [one.title for one in sections(moved("steps.mine.k"))]
    assert not any("seeds" in title for title in titles)


def test_cells_of_other_vocabularies_are_matched_by_text(folder: Path) -> None:
    """One id may be another token in another model."""
    cells = [one for one in find_runs(folder / ROOT) if one.identity.assignments["seed"] == 0]
    moved = []
    for cell in cells:
        digests, steps = dict(cell.identity.digests), cell.steps
        if cell.identity.assignments["model.quantization"] == "int4":
            digests["model"] = "another"
            steps = tuple(_shifted(step) for step in steps)
        identity = replace(cell.identity, digests=digests)
        moved.append(replace(cell, identity=identity, steps=steps))
    own, found = Study(cells), Study(moved)
    assert (own.by_text, found.by_text) == (False, True)
    (pair,), (same,) = found.pairs, own.pairs
    assert pair.counts.n == same.counts.n - 2  # they have no text of their own
    assert (pair.counts.both, pair.counts.only_left) == (same.counts.both, same.counts.only_left)
    flips, texts = (
        [flip.token.text for flip in one.flips("model.quantization")] for one in (found, own)
    )
    assert set(flips) < set(texts)
    said = [text for section in sections(found) for text in section.sentences]
    assert any("matched by their text" in text for text in said)


def _shifted(step: StepRecord) -> StepRecord:
    """The step with other ids for the same tokens."""

    def shifted(fact: Any) -> Any:
        token = getattr(fact, "token", None)
        return replace(fact, token=replace(token, id=token.id + 7)) if token else fact

    batches = [
        replace(one, batch=replace(one.batch, facts=tuple(map(shifted, one.batch.facts))))
        for one in step.batches
    ]
    return replace(step, batches=tuple(batches))


def test_values_that_look_alike_are_different_settings(folder: Path) -> None:
    cells = []
    for seed, cell in enumerate(find_runs(folder / ROOT)):
        values = {"model.path": ("a/model", "b/model")[seed % 2], "seed": seed}
        cells.append(replace(cell, identity=replace(cell.identity, assignments=values)))
    assert Study(cells).axes["model.path"] == ["a/model", "b/model"]
    assert [len(group.places) for group in Study(cells).groups] == [3, 3]


def test_a_mean_whose_interval_contains_another_is_not_marked(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Study([cell for cells in records().values() for cell in cells])
    measure = next(one for one in found.measures if one.result.name == "mine/glitch")
    for half, best in ((0.4, [0]), (1.0, []), (None, [])):
        means = [Mean(3.0, 3, half), Mean(4.0, 3, None)]
        monkeypatch.setattr(found, "means", lambda _, means=means: means)
        assert found.best_groups(measure) == best
    one, other = ([_with_step_key(cell, key) for cell in cells]
                  for cells, key in zip(records().values(), "ab", strict=True))  # fmt: skip
    fixed = Study([*one, *other])  # the seeds of a setting share the step
    monkeypatch.setattr(fixed, "means", lambda _: [Mean(3.0, 3, None), Mean(4.0, 3, None)])
    assert fixed.best_groups(measure) == [0]
    assert not Study([*one, *other[1:], _with_step_key(other[0], "c")]).is_fixed(measure)


def _with_step_key(record: RunRecord, key: str) -> RunRecord:
    return replace(record, steps=tuple(replace(step, key=key) for step in record.steps))


def test_a_mean_of_equal_values_has_no_interval(folder: Path) -> None:
    cells = find_runs(folder / ROOT)
    rates = dict(zip((cell.identity.key for cell in cells), (1, 1, 1, 0.2, 0.9, 1), strict=True))
    changed = []
    for cell in cells:
        mine, asr = cell.steps
        rate = Metric(rates[cell.identity.key], 60)
        metrics = {**asr.metrics, "asr_mean": rate, "false_alarm_rate": rate}
        changed.append(replace(cell, steps=(mine, replace(asr, metrics=metrics))))
    found = Study(changed)
    measure = next(one for one in found.measures if one.result.name == "asr/false_alarm_rate")
    same, varied = found.means(measure)
    assert (same.low, same.high, same.half) == (None, None, None) if same else False
    assert varied is not None
    assert (varied.low, varied.high) == (0.0, 1.0)  # 0.7 ± 1.08
    (means, *_) = sections(found)
    heads = [column.label for column in means.columns]
    cells_of = [row[heads.index("false alarm rate (%)")] for row in means.rows]
    assert cells_of == ["100", "70 (0 to 100)"]
    said = " ".join(means.sentences)
    assert "ends there: (low to high)" in said
    assert "A mean without ± is of equal values" in said
    with style():
        drawings(found)


def test_a_panel_without_a_metric_is_not_drawn(folder: Path) -> None:
    found = Study(find_runs(folder / ROOT))
    vary = [one for one in found.measures if len(set(one.result.values)) > 1]
    found.measures = vary[:3]
    with style():
        (drawn,) = drawings(found)
    assert [panel.get_visible() for panel in drawn.figure.axes] == [True, True, True, False]


def test_a_report_knows_cells_that_an_earlier_matrix_executed(
    study: dict[str, Any], folder: Path
) -> None:
    """An extended matrix has another parent; the cells that it reuses keep the old one."""
    extended = folder / ROOT / "studies" / ("e" * 16)
    extended.mkdir(parents=True)
    (extended / "study.json").write_text(json.dumps(study))
    done = CliRunner().invoke(main, ["report", "e" * 16, "--format", "json"])
    assert json.loads(done.stdout)["cells"] == study["cells"]
    (extended / "study.json").write_text("[]")
    assert CliRunner().invoke(main, ["report", "e" * 16]).exit_code == 2


def test_the_page_markdown_and_junit_have_every_cell(study: dict[str, Any], folder: Path) -> None:
    path = Path(reported().stdout.strip())
    page = path.read_text(encoding="utf-8")
    assert path.parent.name == study["parent"]
    assert json.loads((path.parent / "study.json").read_text())["cells"] == study["cells"]
    text = reported("--format", "md").stdout
    assert text == (path.parent / "study.md").read_text()
    for title in ("Means over seeds", "6 cells", "Agreement of the settings"):
        assert title in page
        assert f"### {title}" in text
    assert "Results by setting" in page
    suites = ElementTree.fromstring(reported("--format", "junit").stdout)
    assert len(suites.findall("testsuite")) == 6
    assert int(suites.get("tests", "0")) == 12


def test_counts_of_failing_tokens_are_not_marked_where_other_tokens_were_judged(
    study: dict[str, Any],
) -> None:
    def marked(cells: list[RunRecord]) -> tuple[str, bool]:
        found = Study(cells).measures
        one = next(one for one in found if one.result.name == "mine/glitch")
        return one.better, one.uneven

    cells = [cell for some in records().values() for cell in some]
    assert marked(cells) == ("lower", False)
    others = [*cells[:-1], _with_another_token(cells[-1])]
    assert [run.metrics["mine/glitch"].n for run in others] == [60] * 6
    assert marked(others) == ("", True)


def _with_another_token(record: RunRecord) -> RunRecord:
    """The run with the id of its first token moved beyond those of all others."""
    moved = next(fact.token.id for step in record.steps for fact in step.batches[0].batch.facts)

    def changed(timed: Any) -> Any:
        facts = tuple(
            replace(fact, token=replace(fact.token, id=9999)) if fact.token.id == moved else fact
            for fact in timed.batch.facts
        )
        return replace(timed, batch=replace(timed.batch, facts=facts))

    steps = tuple(replace(step, batches=tuple(map(changed, step.batches))) for step in record.steps)
    return replace(record, steps=steps)
