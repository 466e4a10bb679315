"""The figures: drawn from any record, with labels that can be drawn."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest

from glitchrun.report.figures import asr, discovery, drawings, entropy, norms, rank
from glitchrun.report.figures.style import label
from glitchrun.report.plots import write_plots
from tests.support.invented_facts import WEIRD
from tests.support.records import Invented, write_run
from tests.support.reporting import run_of, sampled, step, verified

GLITCH = {"p": 0.01, "passed": False, "glitch": True}


def test_a_full_run_has_every_figure_once(tmp_path: Path) -> None:
    names = [drawing.name for drawing in drawings(write_run(tmp_path))]
    assert names == ["discovery", "norms", "entropy", "rank", "asr"]


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    scan = step("scan", "scan", verified(1), verified(2, **GLITCH))
    names = [drawing.name for drawing in drawings(run_of(tmp_path, scan))]
    assert names == ["norms", "entropy", "rank"]  # no search, no samples
    assert drawings(run_of(tmp_path, step("mine", "mine"))) == []


def test_hostile_labels_are_drawn_without_a_warning(tmp_path: Path) -> None:
    texts = [*WEIRD, "$x^{2$", "日本語", "คำ", "שלום", "\U0001f469\u200d\U0001f4bb", "a" * 200]
    mine = [verified(i, text=text, **GLITCH) for i, text in enumerate(texts)]
    tokens = [sampled(i, i % 6, text=text) for i, text in enumerate(texts)]
    record = run_of(tmp_path, step("mine", "mine", *mine), step("asr", "validate", *tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write_plots(record, tmp_path)
    assert len(paths) == 5


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


def test_the_discovery_curve_counts_what_was_found(tmp_path: Path) -> None:
    found = [verified(i, **(GLITCH if i in (2, 3, 7) else {})) for i in range(10)]
    drawing = discovery.draw(run_of(tmp_path, step("mine", "mine", *found)))
    assert drawing
    (line,) = drawing.figure.axes[0].lines
    assert list(zip(*line.get_data(), strict=True)) == [(0, 0), (3, 1), (4, 2), (8, 3), (10, 3)]
    assert "mine: 3 of 10 (30 %)" in drawing.caption


def test_norm_shares_are_of_groups_of_equal_size(tmp_path: Path) -> None:
    facts = [verified(i, norm=float(i), **(GLITCH if i < 10 else {})) for i in range(100)]
    drawing = norms.draw(run_of(tmp_path, step("scan", "scan", *facts)))
    assert drawing
    shares = [container.lines[0].get_ydata()[0] for container in drawing.figure.axes[1].containers]
    assert shares == [100] + [0] * 9
    assert "glitch 4.50, not glitch 54.5" in drawing.caption


def test_rank_bins_hold_every_token(tmp_path: Path) -> None:
    facts = [verified(i, **(GLITCH if i % 2 else {})) for i in range(9)]
    drawing = rank.draw(run_of(tmp_path, step("scan", "scan", *facts)))
    assert drawing
    heights = [[bar.get_height() for bar in c] for c in drawing.figure.axes[0].containers]
    assert heights == [[100, 0], [0, 100]]
    assert [text.get_text() for text in drawing.figure.axes[0].get_xticklabels()] == ["1", "2–3"]


def test_what_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    facts = [verified(i, norm=math.nan if i < 2 else 3.0) for i in range(6)]
    drawing = norms.draw(run_of(tmp_path, step("scan", "scan", *facts)))
    assert drawing
    assert drawing.caption.endswith("2 left out: no finite number.")
    assert "not glitch (n = 4)" in drawing.figure.axes[0].get_legend().texts[0].get_text()


def test_one_token_can_be_drawn(tmp_path: Path) -> None:
    record = run_of(
        tmp_path,
        step("mine", "mine", verified(1, **GLITCH)),
        step("asr", "validate", sampled(1, 1)),
    )
    assert len(write_plots(record, tmp_path)) == 5


@pytest.mark.parametrize("count", [asr.LABELLED, asr.LABELLED + 1])
def test_asr_is_drawn_for_few_and_for_many(tmp_path: Path, count: int) -> None:
    tokens = [sampled(i, i % 6) for i in range(count)]
    drawing = asr.draw(run_of(tmp_path, step("asr", "validate", *tokens)))
    assert drawing
    confirmed = sum(token.confirmed for token in tokens)
    assert drawing.caption.startswith(f"Failed attempts of {count} sampled tokens")
    assert f"{confirmed} reach 80 %" in drawing.caption
    named = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert ("␣t3 · 3" in named) == (count == asr.LABELLED)


def test_equal_records_give_equal_plots(tmp_path: Path) -> None:
    record = write_run(tmp_path, Invented(tokens=40))
    first = [path.read_bytes() for path in write_plots(record, tmp_path)]
    assert [path.read_bytes() for path in write_plots(record, tmp_path)] == first


def test_entropy_medians_are_by_verdict(tmp_path: Path) -> None:
    drawing = entropy.draw(run_of(tmp_path, step("scan", "scan", verified(1), verified(2))))
    assert drawing
    assert "Median: not glitch 1 nats." in drawing.caption
