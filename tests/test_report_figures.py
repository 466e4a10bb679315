"""The figures of a run, and their labels."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from glitchrun.events import Control, Entry
from glitchrun.ledger.record import RunRecord, StepRecord, TimedBatch
from glitchrun.report.figures import drawings, failures, put_title, write_plots
from glitchrun.report.figures.discovery import draw_discovery
from glitchrun.report.figures.generations import draw_ancestry, draw_fitness
from glitchrun.report.figures.next_token import draw_before_after
from glitchrun.report.figures.style import label, style
from glitchrun.report.figures.verdict_histograms import draw_entropy, draw_norms, draw_rank
from tests.support.invented_facts import WEIRD
from tests.support.records import Invented, write_run
from tests.support.reporting import run_of, sampled, step, verified

GLITCH = {"p": 0.01, "passed": False, "glitch": True}


def test_a_full_run_has_every_figure_once(tmp_path: Path) -> None:
    names = [drawing.name for drawing in drawings(write_run(tmp_path))]
    assert names == ["severity", "discovery", "norms", "entropy", "rank", "asr"]


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    scan = step("scan", "scan", verified(1), verified(2, **GLITCH))
    names = [drawing.name for drawing in drawings(run_of(tmp_path, scan))]
    assert names == ["severity", "norms", "entropy", "rank"]  # no search, no samples
    assert drawings(run_of(tmp_path, step("mine", "mine"))) == []


def plots(record: RunRecord, folder: Path) -> list[Path]:
    with style():
        return write_plots(drawings(record), folder)


def test_hostile_labels_are_drawn_without_a_warning(tmp_path: Path) -> None:
    texts = [*WEIRD, "$x^{2$", "日本語", "คำ", "שלום", "\U0001f469\u200d\U0001f4bb", "a" * 200]
    mine = [verified(i, text=text, **GLITCH) for i, text in enumerate(texts)]
    tokens = [sampled(i, i % 6, text=text) for i, text in enumerate(texts)]
    record = run_of(tmp_path, step("mine", "mine", *mine), step("asr", "validate", *tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = plots(record, tmp_path)
    assert len(paths) == 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n", "⟨LF⟩"),
        ("\x1b[31m", "⟨ESC⟩[31m"),
        ("\u202e", "⟨U+202E⟩"),
        ("語", "⟨U+8A9E⟩"),  # the font has no such glyph
        ("Привет", "Привет"),
        ("x" * 30, "x" * 21 + "…"),
    ],
)
def test_labels_are_what_the_font_can_draw(text: str, shown: str) -> None:
    assert label(text) == shown


def test_the_discovery_curve_counts_the_tokens_found(tmp_path: Path) -> None:
    severe = {**GLITCH, "p": 1e-4}
    looks = {2: severe, 3: GLITCH, 7: severe}
    found = [verified(i, **looks.get(i, {})) for i in range(10)]
    searched = step("mine", "mine", *found, gradients=3, screens=500)
    control = replace(searched.batches[0].batch, facts=(Control(2, True, verified(99, **severe)),))
    with_controls = replace(searched, batches=(*searched.batches, TimedBatch(2000, control)))
    drawing = draw_discovery(run_of(tmp_path, with_controls).steps)
    assert drawing
    by_count, by_time = drawing.figure.axes
    counts, severe_counts = [0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 3], [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    for axes, spent in ((by_count, range(11)), (by_time, [i / 10 for i in range(11)])):
        lines = [line.get_data() for line in axes.lines]
        assert [list(y) for _, y in lines] == [counts, severe_counts]
        assert list(lines[0][0]) == pytest.approx(list(spent))
    assert (
        "mine: 3 of 10 (30 %), 2 of them severe, for 10 verifications, 3 gradients, 500 screens "
        "and 1 s." in drawing.caption
    )


def test_severity_bars_are_shares_of_each_decade(tmp_path: Path) -> None:
    facts = [
        replace(verified(i, p=p, passed=False, glitch=True), emitted=kind)
        for i, (p, kind) in enumerate(
            [(2e-6, "other"), (5e-4, "prefix"), (9e-4, "other"), (0.2, "prefix"), (1.0, "prefix")]
        )
    ]
    drawing = failures.draw_severity(run_of(tmp_path, step("scan", "scan", verified(9), *facts)))
    assert drawing
    (axes,) = drawing.figure.axes
    other, prefix = ([bar.get_width() for bar in c] for c in axes.containers)
    assert other == [100, 0, 50, 0, 0, 0]
    assert prefix == [0, 0, 50, 0, 0, 100]
    assert [text.get_text() for text in axes.texts] == ["1", "0", "2", "0", "0", "2", "severe ↑"]
    assert "5 tokens failed every probe, 3 of them" in drawing.caption
    assert "for 60 % of them, and 33.3 % of the severe ones" in drawing.caption


def test_norm_shares_are_of_groups_of_equal_size(tmp_path: Path) -> None:
    facts = [verified(i, norm=float(i), **(GLITCH if i < 10 else {})) for i in range(100)]
    drawing = draw_norms(run_of(tmp_path, step("scan", "scan", *facts)))
    assert drawing
    shares = [container.lines[0].get_ydata()[0] for container in drawing.figure.axes[1].containers]
    assert shares == [100] + [0] * 9
    assert "glitch 4.50, not glitch 54.5" in drawing.caption


def test_rank_bins_hold_every_token(tmp_path: Path) -> None:
    facts = [verified(i, **(GLITCH if i % 2 else {})) for i in range(9)]
    drawing = draw_rank(run_of(tmp_path, step("scan", "scan", *facts)))
    assert drawing
    heights = [[bar.get_height() for bar in c] for c in drawing.figure.axes[0].containers]
    assert heights == [[100, 0], [0, 100]]
    assert [text.get_text() for text in drawing.figure.axes[0].get_xticklabels()] == ["1", "2–3"]


def test_nan_and_infinities_are_left_out_and_counted(tmp_path: Path) -> None:
    facts = [verified(i, norm=math.nan if i < 2 else 3.0) for i in range(6)]
    drawing = draw_norms(run_of(tmp_path, step("scan", "scan", *facts)))
    assert drawing
    assert drawing.caption.endswith("2 left out: not finite.")
    assert "not glitch (n = 4)" in drawing.figure.axes[0].get_legend().texts[0].get_text()


def test_one_token_can_be_drawn(tmp_path: Path) -> None:
    record = run_of(
        tmp_path,
        step("mine", "mine", verified(1, **GLITCH)),
        step("asr", "validate", sampled(1, 1)),
    )
    assert len(plots(record, tmp_path)) == 6


@pytest.mark.parametrize("count", [failures.LABELLED, failures.LABELLED + 1])
def test_asr_names_tokens_only_if_they_are_few(tmp_path: Path, count: int) -> None:
    tokens = [sampled(i, i % 6) for i in range(count)]
    drawing = failures.draw_asr(run_of(tmp_path, step("asr", "validate", *tokens)))
    assert drawing
    confirmed = sum(token.confirmed for token in tokens)
    assert drawing.caption.startswith(f"Failed attempts of {count} sampled tokens")
    assert f"{confirmed} reach 80 %" in drawing.caption
    named = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert ("␣t3 · 3" in named) == (count == failures.LABELLED)


def test_equal_records_give_equal_plots(tmp_path: Path) -> None:
    record = write_run(tmp_path, Invented(tokens=40))
    first = [path.read_bytes() for path in plots(record, tmp_path)]
    assert [path.read_bytes() for path in plots(record, tmp_path)] == first


def test_entropy_medians_are_by_verdict(tmp_path: Path) -> None:
    drawing = draw_entropy(run_of(tmp_path, step("scan", "scan", verified(1), verified(2))))
    assert drawing
    assert "Median: not glitch 1 nats." in drawing.caption


def born(ids: str, generation: int, *parents: str, text: str = " x") -> Entry:
    how = ("random", "mutation", "crossover")[len(parents)]
    cells = {"generation": generation, "how": how, "ids": ids, "text": text, "fitness": 0.5}
    return Entry("ancestry", {**cells, "parents": list(parents)})


def evolved(*entries: Entry) -> StepRecord:
    """A genetic step that lowered token 1 from 0.8 to 0.1, in three generations."""
    start = {"target_id": 1, "wanted_id": None}
    curve = [
        {"generation": number, "best": best, "mean": best / 2, "diversity": 0.9, "injected": fresh}
        for number, (best, fresh) in enumerate([(0.1, 0), (0.1, 3), (0.875, 0)])
    ]
    next_token = [
        {"token": text, "token_id": place, "p_before": p, "p_after": q, "rank_before": place}
        | {"rank_after": 9}
        for place, (text, p, q) in enumerate([(" fox", 0.8, 0.1), (" dog", 0.1, 0.7)], start=1)
    ]
    rows = [("baseline", start), *(("generations", row) for row in curve)]
    rows += [("distribution", row) for row in next_token]
    return step("evolve", "genetic", *(Entry(name, cells) for name, cells in rows), *entries)


def test_the_fitness_curve_matches_the_generations(tmp_path: Path) -> None:
    drawing = draw_fitness(run_of(tmp_path, evolved()).steps)
    assert drawing
    above, below = drawing.figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in above.lines}
    assert lines == {
        "best": [0.1, 0.1, 0.875],
        "mean": [0.05, 0.05, 0.4375],
        "fresh sequences": [0.1],
    }
    assert list(below.lines[0].get_ydata()) == [0.9] * 3
    assert "evolve: from 0.100 to 0.875 in 2 generations" in drawing.caption


def test_the_ancestry_joins_children_to_their_parents(tmp_path: Path) -> None:
    line = [born("1 2", 5, "1", "2"), born("1", 3, "3"), born("2", 2), born("3", 0)]
    drawing = draw_ancestry(run_of(tmp_path, evolved(*line)).steps)
    assert drawing
    (axes,) = drawing.figure.axes
    joins = {
        tuple(zip(*line.get_data(), strict=True))
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_marker() == "None"
    }
    assert joins == {((5, 0), (3, 1)), ((5, 0), (2, 2)), ((3, 1), (0, 3))}
    assert "evolve: appeared in generation 5 and has 3 ancestors" in drawing.caption


def test_a_long_ancestry_is_cut_and_its_caption_says_so(tmp_path: Path) -> None:
    line = [born(str(n), 30 - n, str(n + 1)) for n in range(30)]
    drawing = draw_ancestry(run_of(tmp_path, evolved(*line, born("30", 0))).steps)
    assert drawing
    assert len(drawing.figure.axes[0].get_yticks()) == 16
    assert "30 ancestors, of which the 15 youngest are drawn" in drawing.caption


def test_next_tokens_are_drawn_before_and_after_the_sequence(tmp_path: Path) -> None:
    drawing = draw_before_after(run_of(tmp_path, evolved()).steps)
    assert drawing
    before, after = drawing.figure.axes[0].containers
    assert [bar.get_width() for bar in before] == [80, 10]
    assert [bar.get_width() for bar in after] == [pytest.approx(10), pytest.approx(70)]
    assert "the target '␣fox' goes from 80 % (rank 1) to 10 % (rank 9)" in drawing.caption


def test_no_title_overprints_a_legend_or_an_axis(tmp_path: Path) -> None:
    search = step("mine", "mine", *(verified(n, **GLITCH) for n in range(9)), gradients=1)
    samples = step("asr", "validate", *(sampled(n, n % 6) for n in range(9)))
    found = drawings(run_of(tmp_path, search, samples, evolved(born("1", 0))))
    assert len(found) == 9
    for drawing in found:
        put_title(drawing)
        figure = drawing.figure
        figure.draw_without_rendering()
        title = figure._suptitle.get_window_extent()
        axes = [one.get_tightbbox() for one in figure.axes]
        legends = [legend.get_window_extent() for legend in figure.legends]
        assert not any(title.overlaps(box) for box in [*axes, *legends]), drawing.name


def test_two_searches_share_the_figures_and_hostile_texts_are_drawn(tmp_path: Path) -> None:
    lines = [born(str(n), 0, text=text) for n, text in enumerate([*WEIRD, "日本語"])]
    record = run_of(tmp_path, evolved(*lines), replace(evolved(born("1", 0)), id="other"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [path.stem for path in plots(record, tmp_path)]
    assert names == ["fitness", "ancestry", "next_token"]


def test_many_searches_of_one_line_each_have_room(tmp_path: Path) -> None:
    steps = [replace(evolved(born("1", 0)), id=f"step{number}") for number in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots(run_of(tmp_path, *steps), tmp_path)
