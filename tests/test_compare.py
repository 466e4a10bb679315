"""`glitchrun compare`: its statistics, and whole comparisons recomputed from the records."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from glitchrun.behaviour.significance import wilson
from glitchrun.cli import main
from glitchrun.errors import UsageError
from glitchrun.events import ProbeResult, Token
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.ledger.record import Metric
from glitchrun.report.comparison.output import as_text
from glitchrun.report.comparison.pairs import Counts, Overlap, all_pairs, disjoint, pair
from glitchrun.report.comparison.results import cells_json, leader_sentence, results
from glitchrun.report.comparison.sections import matrix_section, sections
from glitchrun.report.comparison.sides import Side, side_of_run, with_verdicts
from glitchrun.report.formatting import in_one_unit
from glitchrun.runner.lookup import find_cells
from tests.support.records import Invented, write_matrix, write_run
from tests.support.reporting import rows, run_of, sampled, step, verified

LEGACY = Path(__file__).parent / "data" / "legacy"


@pytest.fixture(autouse=True)
def unlimited_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pipe; pytest-xdist sets the width of its workers."""
    monkeypatch.delenv("COLUMNS", raising=False)


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
    assert "asr/validated" in everything
    assert "mine/verified" not in text  # equal on both sides


def test_more_than_two_sides_are_compared_pairwise(runs: list[Any]) -> None:
    names = [f"quantization={name}" for name in ("float32", "int8", "int4")]
    found = document(*names)
    assert [(p["left"], p["right"]) for p in found["pairs"]] == [("A", "B"), ("A", "C"), ("B", "C")]
    (alone,) = document(names[1], names[2])["pairs"]
    assert found["pairs"][2]["kappa"] == alone["kappa"]
    text = compared(*names).stdout
    assert "tokens with different verdicts" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["model.quantization", "results", "float32", "int8", "int4"] in lines


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


def test_tokens_of_different_vocabularies_are_matched_by_text(tmp_path: Path) -> None:
    left = listed(tmp_path, "a.json", (1, "been", True), (2, "MT", True), (3, " x", False))
    right = listed(tmp_path, "b.json", (1, " been", True), (2, "ций", True), (3, "835", False))
    (pair,) = document(left, right)["pairs"]
    assert (pair["matched_by"], pair["tokens"]) == ("text", 0)
    right = listed(tmp_path, "b.json", (1, " been", True), (2, "ций", True), (3, "x", True))
    (pair,) = document(left, right)["pairs"]
    assert (pair["matched_by"], pair["tokens"], pair["other_texts"]) == ("id", 2, 1)


def test_what_is_not_matched_by_text_is_counted(tmp_path: Path) -> None:
    def side(name: str, start: int, *tokens: tuple[str, bool]) -> Path:
        return listed(
            tmp_path, name, *((start + n, text, found) for n, (text, found) in enumerate(tokens))
        )

    shared = [(f" w{n}", n < 3) for n in range(10)]
    left = side("a.json", 0, *shared, ("only", True), ("\ufffd", True), ("x", True), ("x", False))
    right = side("b.json", 1, *((text, n < 2) for n, (text, _) in enumerate(shared)), ("y", True))
    (pair,) = (compared_pair := document(left, right))["pairs"]
    assert (pair["matched_by"], pair["tokens"]) == ("text", 10)
    assert (pair["both"], pair["only_left"], pair["only_right"], pair["neither"]) == (2, 1, 0, 7)
    assert pair["unmatched"] == {"left": 1, "right": 1}
    assert [side["unmatchable"] for side in compared_pair["sides"]] == [3, 0]
    (overlap,) = pair["overlaps"]
    assert (overlap["scope"], overlap["left"], overlap["right"]) == (10, 3, 2)
    assert overlap["expected"] == 0.6
    (different,) = pair["differences"]
    assert (different["token_id"], different["right_token_id"]) == (2, 3)
    text = compared(left, right).stdout
    assert "Not listed by the other side: 1 of the 11 tokens of A and 1 of the 11 tokens" in text
    assert "A: 3 tokens left out whose text does not identify the token" in text
    assert document(left, right, "--match", "id")["pairs"][0]["matched_by"] == "id"


def test_a_list_of_texts_is_compared_by_text(tmp_path: Path) -> None:
    left = listed(tmp_path, "a.json", (5, " been", True), (6, "MT", False))
    (tmp_path / "texts.json").write_text('["MT", " been", "other"]')
    (pair,) = document(left, tmp_path / "texts.json")["pairs"]
    assert (pair["both"], pair["only_right"], pair["unmatched"]) == (1, 1, {"left": 0, "right": 1})
    third = listed(tmp_path, "b.json", (1, " been", False))
    text = compared(left, tmp_path / "texts.json", third).stdout
    assert "tokens are matched by their text" in text


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


def test_profiles_begin_with_their_figures(tmp_path: Path) -> None:
    def profile(name: str, speed: float) -> RunRecord:
        metrics = {
            "generation_tokens_per_second": Metric(speed),
            "weight_bytes": Metric(658_752),
            "peak_bytes": Metric(638_000_000 if speed > 5 else 1_057_000_000),
            "estimate_deviation": Metric(None),
        }
        made = replace(step("p", "profile"), metrics=metrics)
        return named(run_of(tmp_path / name, made), name)

    sides = sides_of(profile("one", 5.0), profile("two", 17.25), profile("three", 17.25))
    text = as_text(sections("verdict", sides, all_pairs(sides), 20))
    leader = (
        "Tie for the highest generation tokens per second: 17.25 (two and three); lowest: 5.00 "
        "(one)."
    )
    assert text.splitlines()[:4] == [
        "Compared",
        f"  {leader}",
        "                            Generation",
        "                            tokens per",
    ]
    assert [line for line in text.splitlines() if line and line[0] != " "] == [
        "Compared",
        "Metrics",
        "What differs",
    ]
    rows = [line.split() for line in text.splitlines()]
    assert ["p/peak_bytes", "1.057", "0.638", "0.638", "GB"] in rows
    assert "p/weight_bytes" not in text  # equal on all sides
    assert "estimate_deviation" not in text  # no side has it
    assert "Verified" not in text


def named(record: RunRecord, name: str, **identity: Any) -> RunRecord:
    return replace(record, identity=replace(record.identity, name=name, **identity))


def sides_of(*records: RunRecord, by: str | None = None) -> list[Side]:
    labelled = zip("ABCDE", records, strict=False)
    return with_verdicts([side_of_run(label, record) for label, record in labelled], by)[1]


def test_unsampled_glitches_are_not_added_to_confirmed_tokens(tmp_path: Path) -> None:
    """Three glitch tokens, one of them sampled and confirmed; the other run samples nothing."""
    facts = [verified(i, p=1e-4, passed=False, glitch=True) for i in (1, 2, 3)]
    facts.append(verified(4))
    some = run_of(tmp_path / "a", step("t", "test", *facts), step("asr", "validate", sampled(1, 5)))
    none = run_of(tmp_path / "b", step("t", "test", *facts))
    by, (left, right) = with_verdicts([side_of_run("A", some), side_of_run("B", none)], None)
    assert by == "glitch"
    assert pair(left, right).counts == Counts(3, 0, 0, 1)
    assert [(one.name, one.values) for one in results([left, right])] == [
        ("verified", (4, 4)),
        ("glitch", (3, 3)),
        ("severe", (3, 3)),
        ("sampled", (1, None)),
        ("confirmed", (1, None)),
    ]
    asked = sides_of(some, none, by="verdict")
    agreement = next(s for s in sections("verdict", asked, [pair(*asked)], 20) if s.columns[1:])
    text = as_text(sections("verdict", asked, [pair(*asked)], 20))
    assert "A: 1 token confirmed; 2 by the probes alone." in text
    assert agreement.title == "Compared"


@pytest.mark.parametrize(
    ("strategy", "params", "chose"),
    [
        ("test", {"tokens": {"ids": [1, 2]}}, False),
        ("scan", {}, False),
        ("mine", {"search": "random"}, True),
        ("mine", {"search": "range", "ranges": [[0, 9]]}, False),
    ],
)
def test_overlap_is_compared_with_chance_for_tokens_that_runs_chose(
    tmp_path: Path, strategy: str, params: dict[str, Any], chose: bool
) -> None:
    facts = [verified(i, p=1e-4, passed=False, glitch=True) for i in (1, 2)]
    examined = replace(step("t", strategy, *facts), params=params)
    tried = replace(step("asr", "validate", sampled(1, 5)), params={"tokens": {"from": "t"}})
    record = run_of(tmp_path, examined, tried)
    assert record.model
    model = replace(record.model, categories={"normal": 459, "byte": 178}, excluded=9)
    left, right = sides_of(*[replace(record, model=model)] * 2)
    assert left.chose == chose
    compared = pair(left, right)
    assert [one.scope for one in compared.overlaps] == ([450] * 4 + [2]) * chose
    titles = [one.title for one in sections("verdict", [left, right], [compared], 20)]
    assert ("Overlap and chance" in titles) == chose


def test_tokens_are_readable_and_aligned_at_80_columns(tmp_path: Path) -> None:
    """Parts of characters show their bytes; wide characters take two columns."""
    byte = Token(5, "\ufffd", "æĹ", "byte", 1.0)
    odd = [
        replace(verified(5), token=byte),
        verified(6, text="한국어"),
        verified(7, text="\u202ex"),
    ]
    failed = [replace(f, glitch=True, probes={"repeat": probe(1e-5)}) for f in odd]
    runs = [
        named(run_of(tmp_path / name, step("t", "test", *facts)), f"model.quantization={name}")
        for name, facts in (("float32", odd), ("int4", failed))
    ]
    sides = sides_of(*runs)
    lines = as_text(sections("glitch", sides, all_pairs(sides), 20), 80).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert any(line.startswith("    A  model.quantization=float32  ") for line in lines)
    tokens = [line for line in lines if "«" in line]
    assert [line.split()[:3] for line in tokens[:1]] == [["«⟨E6", "97⟩»", "5"]]
    assert "«⟨U+202E⟩x»" in tokens[2]
    assert len({cell_len(line[: line.index("passed")]) for line in tokens}) == 1
    assert [line.split()[-1] for line in tokens] == ["1.00e-05"] * 3


def probe(p: float) -> ProbeResult:
    return ProbeResult(p, 2, 1.0, 0, 1.0, False, "float32", True)


@pytest.mark.parametrize(
    ("values", "unit", "shown"),
    [
        ([658_752, 147_200, None], "bytes", ("kB", ["659", "147", "–"])),
        ([0.0697, 0.0], "share", ("%", ["6.97", "0.00"])),
        ([0.994, 1.0], "share", ("%", ["99.4", "100.0"])),
        ([7200, 900], "s", ("", ["2 h 00 min", "0 h 15 min"])),
        ([185.0, 4.2], "s", ("", ["3 min 05 s", "0 min 04 s"])),
        ([4.2, 0.04], "s", ("s", ["4.200", "0.040"])),
        ([0.25, 6e-6, 0.0], "probability", ("", ["2.50e-01", "6.00e-06", "0.00e+00"])),
        ([49_152, 12], "tokens", ("tokens", ["49,152", "12"])),
        ([-0.2, 0.1], "nats", ("nats", ["-0.200", "0.100"])),
        ([], "s", ("s", [])),
    ],
)
def test_numbers_of_a_column_have_one_unit(
    values: list[float | None], unit: str, shown: tuple[str, list[str]]
) -> None:
    assert in_one_unit(values, unit) == shown


class ComparisonPage(HTMLParser):
    """The figures, and the rows of the tables: whether all sides agree, and cells with a class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[str] = []
        self.rows: list[tuple[bool, list[tuple[str, str]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "figure":
            self.figures.append(found["id"])
        elif tag == "tr":
            self.rows.append((found.get("class") == "equal", []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append((found.get("class", ""), ""))
        elif tag == "bdi":
            self.rows[-1][1][-1] = (found["class"], "")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1][1]:
            kind, text = self.rows[-1][1][-1]
            self.rows[-1][1][-1] = (kind, text + data.strip())


def test_the_page_shows_figures_and_only_rows_that_differ(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    path = tmp_path / "compared.html"
    done = compared(*(run.identity.key for run in runs[:2]), "-o", "html", "--file", path)
    assert (done.exit_code, done.output) == (0, f"{path}\n")
    page = ComparisonPage(path.read_text())
    assert page.figures == ["figure-counts", "figure-probabilities"]
    pair = document(*(run.identity.key for run in runs[:2]))["pairs"][0]
    differing = {str(one["token_id"]) for one in pair["differences"]}
    tokens = [row for row in page.rows if row[1][0][0] == "token"]
    shown = {cells[1][1] for equal, cells in tokens if not equal}
    assert shown == differing
    assert {kind for _, cells in tokens for kind, _ in cells[1:2]} == {"number"}
    metrics = {cells[0][1]: (equal, cells[1:3]) for equal, cells in page.rows if len(cells) == 4}
    assert metrics["mine/verified"] == (True, [("number", "200"), ("number", "200")])
    equal, cells = metrics["mine/glitch"]
    assert not equal
    assert cells == [("number", f"{run.metrics['mine/glitch'].value:,.0f}") for run in runs[:2]]


def test_a_file_is_only_for_the_page(runs: list[RunRecord], tmp_path: Path) -> None:
    keys = [run.identity.key for run in runs[:2]]
    assert compared(*keys, "--file", tmp_path / "x").exit_code == 2
    missing = compared(*keys, "-o", "html", "--file", tmp_path / "none" / "x.html")
    assert missing.exit_code == 2
    assert "does not exist; create it first" in missing.stderr
    assert compared(*keys, "-o", "html").output.startswith("<!doctype html>")


def test_a_matrix_ends_with_a_table_of_its_cells(runs: list[RunRecord]) -> None:
    section = matrix_section(runs)
    text = as_text([section]).splitlines()
    assert text[0] == "quantization-sweep: 3 cells"
    confirmed = [run.metrics["asr/confirmed"].value for run in runs]
    heads = [column.label for column in section.columns]
    assert [int(row[heads.index("Confirmed")]) for row in section.rows] == confirmed
    assert [row[0] for row in section.rows] == [run.identity.name for run in runs]
    assert [row[heads.index("Gates")] for row in section.rows] == ["1 pass"] * 3
    found = cells_json(runs)
    assert found["compare"] == "glitchrun compare quantization-sweep"
    assert [cell["results"]["confirmed"] for cell in found["cells"]] == confirmed
    assert [cell["gates"] for cell in found["cells"]] == [{"pass": 1}] * 3


def test_cells_with_equal_results_tie(runs: list[RunRecord]) -> None:
    first = named(runs[0], "again")
    assert leader_sentence(sides_of(runs[0], first)) == "Both tie: confirmed = 21."
    assert leader_sentence(sides_of(runs[0], first, runs[2])) == (
        "Highest confirmed: 33 (quantization=int4); lowest: 21 (quantization=float32 and again)."
    )


def test_names_that_stand_for_several_runs(runs: list[RunRecord], tmp_path: Path) -> None:
    assert len(document("sweep over quantization")["sides"]) == 3  # the parent's name in MLflow
    for key, share in (("b" * 16, 0.1), ("c" * 16, 0.2)):
        write_run(
            tmp_path / ROOT, Invented(experiment="own", name="own", key=key, glitch_share=share)
        )
    names = [side["name"] for side in document("own")["sides"]]
    assert names == [f"own · own {key * 12}#1" for key in "bc"]
    newer = Invented(
        experiment="quantization-sweep",
        name="quantization-sweep",
        key="d" * 16,
        started_at=runs[2].started_at + 9,
    )
    write_run(tmp_path / ROOT, newer)  # the matrix was removed from the spec
    assert find_cells("quantization-sweep", tmp_path / ROOT) == []


def test_steps_of_one_run_are_compared_as_two_definitions(tmp_path: Path) -> None:
    strict = [verified(n, p=0.1, passed=n > 2, glitch=n <= 2) for n in range(6)]
    shown = [verified(n, p=0.1, passed=n > 0, glitch=n <= 0) for n in range(6)]
    record = run_of(tmp_path, step("strict", "test", *strict), step("shown", "test", *shown))
    one, other = (
        side_of_run(label, record, name) for label, name in (("A", "strict"), ("B", "shown"))
    )
    _, sides = with_verdicts([one, other], None)
    (found,) = all_pairs(sides, None)
    assert found.counts == Counts(1, 2, 0, 3)
    assert found.counts.kappa == pytest.approx(1 / 3)  # (4/6 - 18/36) / (1 - 18/36)
    assert "step shown" in other.name
    assert side_of_run("A", record).tokens.keys() == one.tokens.keys()
    with pytest.raises(UsageError, match="has no step 'none'; its steps are strict, shown"):
        side_of_run("A", record, "none")


def test_a_step_is_given_once_or_for_each_run(runs: list[Any]) -> None:
    done = compared(*(run.identity.key for run in runs), "--step", "a", "--step", "b")
    assert done.exit_code == 2
    assert "--step is given 2 times for 3 runs" in done.stderr
