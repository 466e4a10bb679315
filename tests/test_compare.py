"""`glitchrun compare`: its statistics, and whole comparisons recomputed from the records."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glitchrun.behaviour.rates import wilson
from glitchrun.cli import compare, main
from glitchrun.ledger import ROOT
from glitchrun.ledger.record import Metric
from glitchrun.report.comparison.pairs import Counts, Overlap, disjoint
from glitchrun.runner.lookup import find_cells
from tests.support.records import Invented, write_matrix, write_run
from tests.support.reporting import rows, run_of, step

LEGACY = Path(__file__).parent / "data" / "legacy"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs of the same 200 tokens in float32, int8 and int4, with different verdicts."""
    monkeypatch.chdir(tmp_path)
    return write_matrix(tmp_path / ROOT)


def compared(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, words)])


def document(*words: str | Path) -> dict[str, Any]:
    done = compared(*words, "-o", "json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def listed(folder: Path, name: str, *tokens: tuple[int, str, bool | None]) -> Path:
    path = folder / name
    items = [{"id": i, "text": text, "glitch": found} for i, text, found in tokens]
    path.write_text(json.dumps({"tokens": items}))
    return path


def verdicts(record: Any) -> dict[int, bool]:
    """The verdicts of tokens.jsonl: `confirmed` of sampled tokens, `glitch` of the others."""
    found: dict[int, bool] = {}
    for row in rows(record):
        if row["confirmed"] is not None:
            found[row["token_id"]] = row["confirmed"]
        elif row["glitch"] is not None:
            found.setdefault(row["token_id"], row["glitch"])
    return found


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        (Counts(20, 5, 10, 15), 0.4),
        (Counts(45, 15, 25, 15), 0.1304),
        (Counts(25, 35, 5, 35), 0.2593),
        (Counts(3, 0, 0, 7), 1.0),
        (Counts(0, 5, 5, 0), -1.0),
        (Counts(5, 0, 0, 0), None),
        (Counts(0, 0, 0, 0), None),
    ],
)
def test_kappa_of_published_tables(counts: Counts, kappa: float | None) -> None:
    assert counts.kappa == (None if kappa is None else pytest.approx(kappa, abs=1e-4))


def test_expected_overlap_matches_an_enumeration_of_all_draws() -> None:
    scope, left, right = 8, 3, 4
    drawn = [len({0, 1, 2} & set(draw)) for draw in combinations(range(scope), right)]
    for observed in range(4):
        overlap = Overlap("", left, right, observed, scope)
        assert overlap.expected == pytest.approx(sum(drawn) / len(drawn))
        more = sum(count >= observed for count in drawn) / comb(scope, right)
        fewer = sum(count <= observed for count in drawn) / comb(scope, right)
        assert (overlap.p_more, overlap.p_fewer) == pytest.approx((more, fewer))


@pytest.mark.parametrize(
    ("observed", "at_least", "reading"),
    [
        (6, False, "as chance"),
        (20, False, "more than chance"),
        (0, False, "fewer than chance"),
        (0, True, "as chance"),
    ],
)
def test_the_overlap_in_glitchers_paper_is_what_chance_gives(
    observed: int, at_least: bool, reading: str
) -> None:
    """255 tokens mined, 2,000 scanned, 6 in common, of a vocabulary of 128,256."""
    overlap = Overlap("found by A, examined by B", 255, 2000, observed, 128_256, at_least)
    assert overlap.expected == pytest.approx(3.976, abs=1e-3)
    assert overlap.reading == reading


def test_intervals_without_a_common_point_are_disjoint() -> None:
    none, all_of_them = wilson(0, 5), wilson(5, 5)
    assert (none.low, none.high) == pytest.approx((0, 0.4345), abs=1e-4)  # Wilson 1927, by hand
    assert (all_of_them.low, all_of_them.high) == pytest.approx((0.5655, 1), abs=1e-4)
    assert disjoint(none, all_of_them)
    assert disjoint(all_of_them, none)
    assert not disjoint(wilson(1, 5), wilson(4, 5))


def test_counts_of_a_pair_match_the_tokens_of_its_runs(runs: list[Any]) -> None:
    left, right = verdicts(runs[0]), verdicts(runs[2])
    assert left.keys() == right.keys()
    found = document("quantization=float32", "quantization=int4")
    (pair,) = found["pairs"]
    kinds = [(left[i], right[i]) for i in left]
    assert pair["both"] == kinds.count((True, True))
    assert pair["only_left"] == kinds.count((True, False))
    assert pair["only_right"] == kinds.count((False, True))
    assert pair["neither"] == kinds.count((False, False))
    assert {d["token_id"] for d in pair["differences"]} == {i for i in left if left[i] != right[i]}
    assert [side["found"] for side in found["sides"]] == [sum(left.values()), sum(right.values())]
    assert [c["path"] for c in pair["changes"]] == ["model.quantization"]


def test_asr_is_compared_for_tokens_that_both_sampled(runs: list[Any]) -> None:
    (pair,) = document("quantization=float32", "quantization=int4")["pairs"]
    samples = [
        {row["token_id"]: row for row in rows(run) if row["attempts"]} for run in (runs[0], runs[2])
    ]
    both = samples[0].keys() & samples[1].keys()
    far = {
        i
        for i in both
        if samples[0][i]["asr_high"] < samples[1][i]["asr_low"]
        or samples[1][i]["asr_high"] < samples[0][i]["asr_low"]
    }
    assert pair["asr"]["tokens"] == len(both) > 0
    assert {one["token_id"] for one in pair["asr"]["apart"]} == far != set()


def test_option_by_selects_the_verdict_to_compare(runs: list[Any]) -> None:
    (by_probes,) = document("quantization=float32", "quantization=int4", "--by", "glitch")["pairs"]
    glitch = [{r["token_id"]: r["glitch"] for r in rows(run) if r["probes"]} for run in runs]
    assert by_probes["both"] == sum(glitch[0][i] and glitch[2][i] for i in glitch[0])
    (by_asr,) = document("quantization=float32", "quantization=int4", "--by", "confirmed")["pairs"]
    assert by_asr["tokens"] == by_asr["asr"]["tokens"]


def test_a_run_agrees_with_itself(runs: list[Any]) -> None:
    name = "quantization=int8"
    (pair,) = document(name, name)["pairs"]
    assert (pair["kappa"], pair["differences"], pair["changes"]) == (1, [], [])
    assert pair["p_distance"] == 0
    assert "None: the same spec, model contents and versions." in compared(name, name).stdout


def test_text_and_markdown_show_the_same_numbers(runs: list[Any]) -> None:
    text = compared("quantization=float32", "quantization=int4").stdout
    markdown = compared("quantization=float32", "quantization=int4", "-o", "md").stdout
    for shown in ("Cohen's kappa is 0.0227", "Both have a verdict on 200 tokens."):
        assert shown in text
        assert shown in markdown
    assert "… 26 more; --all lists them" in text
    assert "| `␣petertodd` |" in markdown
    everything = compared("quantization=float32", "quantization=int4", "--all").stdout
    assert "--all lists them" not in everything
    assert len(everything.splitlines()) == len(text.splitlines()) + 26 - 1


def test_more_than_two_sides_are_compared_pairwise(runs: list[Any]) -> None:
    names = [f"quantization={name}" for name in ("float32", "int8", "int4")]
    found = document(*names)
    assert [(p["left"], p["right"]) for p in found["pairs"]] == [("A", "B"), ("A", "C"), ("B", "C")]
    (alone,) = document(names[1], names[2])["pairs"]
    assert found["pairs"][2]["kappa"] == alone["kappa"]
    text = compared(*names).stdout
    assert "tokens with different verdicts" in text
    assert "Differences between A and C" in text


def test_a_file_is_compared_with_a_run(runs: list[Any], tmp_path: Path) -> None:
    """A run's own tokens.jsonl, read as a file, agrees with the run completely."""
    path = tmp_path / "tokens.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(runs[0])))
    (pair,) = document("quantization=float32", path)["pairs"]
    assert pair["tokens"] == 200
    assert (pair["kappa"], pair["changes"]) == (1, [])
    assert pair["p_distance"] == pytest.approx(0, abs=1e-6)  # the file has 7 digits
    assert pair["asr"]["apart"] == []


def test_lists_of_findings_state_what_is_unknown() -> None:
    found = document(LEGACY / "glitch_tokens.json", LEGACY / "vocab_scan_results.json")
    (pair,) = found["pairs"]
    assert pair["kappa"] is None
    assert found["sides"][0]["looked_at"] is None
    assert found["sides"][1]["note"] == "lists 3 of the 10 tokens examined"
    words = [LEGACY / "glitch_tokens.json", LEGACY / "vocab_scan_results.json", "--scope", "32000"]
    overlaps = {one["what"]: one for one in document(*words)["pairs"][0]["overlaps"]}
    assert "examined by both" not in overlaps
    overlap = overlaps["found by A, examined by B"]
    assert (overlap["left"], overlap["right"], overlap["at_least"]) == (8, 10, True)
    text = compared(*words).stdout
    assert "Cohen's kappa is not defined" in text
    assert "The number of tokens that A examined is not known" in text


def test_scope_is_requested_if_the_vocabulary_is_unknown() -> None:
    text = compared(LEGACY / "ids.json", LEGACY / "glitchminer.json").stdout
    assert "gives no verdicts: every listed token counts as found" in text
    assert "The vocabulary's size is not known: give the number of tokens" in text


def test_ids_of_different_vocabularies_are_not_compared(tmp_path: Path) -> None:
    left = listed(tmp_path, "a.json", (1, "been", True), (2, "MT", True), (3, " x", False))
    right = listed(tmp_path, "b.json", (1, " been", True), (2, "ций", True), (3, "835", False))
    done = compared(left, right)
    assert done.exit_code == 2
    assert "2 of 3 ids that both list have different texts (2 is «MT» and «ций»" in done.stderr
    right = listed(tmp_path, "b.json", (1, " been", True), (2, "ций", True), (3, "x", True))
    (pair,) = document(left, right)["pairs"]
    assert (pair["tokens"], pair["other_texts"]) == (2, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantization=int8"], "compare takes 2 to 26 runs, got 1"),
        (["quantization=int8", "nothing"], "no run is called 'nothing'"),
        (["quantization=int8", "quantization=int4", "--scope", "10"], "examined 200 tokens"),
    ],
)
def test_invalid_comparisons_are_refused_with_the_reason(
    runs: list[Any], words: list[str], message: str
) -> None:
    done = compared(*words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_an_interrupted_run_is_compared_by_the_tokens_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / ROOT, Invented(name="whole", key="a" * 16))
    write_run(tmp_path / ROOT, Invented(name="cut", key="b" * 16, status="KILLED"))
    found = document("whole", "cut")
    assert found["sides"][1]["note"] == "the run is INTERRUPTED"
    assert found["pairs"][0]["tokens"] == found["sides"][1]["tokens"] < 200


def test_the_name_of_a_matrix_selects_its_cells(runs: list[Any], tmp_path: Path) -> None:
    earlier = Invented(
        experiment="quantization-sweep",
        name="seed=7",
        key="e" * 16,
        parent="f" * 16,
        assignments={"seed": 7},
        started_at=runs[0].started_at - 1,
    )
    write_run(tmp_path / ROOT, earlier)  # a cell of the matrix before its axes changed
    names = [run.identity.name for run in runs]
    for words in (["quantization-sweep"], [runs[0].identity.parent]):
        sides = document(*words)["sides"]
        assert [side["name"].split(" · ")[1].split(" ")[0] for side in sides] == names
    mixed = document("quantization-sweep", listed(tmp_path, "other.json", (1, "a", True)))
    assert [side["kind"] for side in mixed["sides"]] == ["run", "run", "run", "file"]


def test_an_unreadable_cell_is_reported(
    runs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (runs[0].folder / "run.json").write_text("{}")
    assert len(find_cells("quantization-sweep", tmp_path / ROOT)) == len(runs) - 1
    reported = capsys.readouterr().err
    assert reported.startswith("1 run could not be read:")
    assert str(runs[0].folder) in reported


def test_the_newest_finished_run_of_a_cell_is_compared(runs: list[Any], tmp_path: Path) -> None:
    cell = runs[1].identity
    again = Invented(
        experiment=cell.experiment,
        name=cell.name,
        key="e" * 16,
        parent=cell.parent,
        assignments=cell.assignments,
        started_at=runs[2].started_at + 9,
    )
    write_run(tmp_path / ROOT, replace(again, status="FAILED"))
    sides = document("quantization-sweep")["sides"]
    assert len(sides) == 3
    assert any(cell.key[:12] in side["name"] for side in sides)


def test_runs_without_verdicts_are_compared_by_metrics_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"tokens_per_second": Metric(5.0), "estimate_deviation": Metric(None)}
    profiles = [
        replace(run_of(tmp_path / name), steps=(replace(step("p", "profile"), metrics=speed),))
        for name in "abc"
    ]
    for count in (2, 3):
        found = iter(profiles)
        monkeypatch.setattr(compare, "find_cells", lambda *_: [])
        monkeypatch.setattr(compare, "find_run", lambda *_, found=found: next(found))
        done = compared(*"abc"[:count])
        assert done.exit_code == 0, done.stderr
        titles = [line for line in done.stdout.splitlines() if line and line[0] != " "]
        assert titles[:2] == ["Compared", "Metrics"]
        assert all(title.startswith("Differences") for title in titles[2:])
        assert "Examined" not in done.stdout
        assert "p/tokens_per_second" in done.stdout
        assert "estimate_deviation" not in done.stdout  # no side has it
