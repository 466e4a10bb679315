"""Searches drawn as they run: in the terminal and in a window."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageGrab
from rich.console import Console

from glitchrun.errors import ExitCode, PreflightError
from glitchrun.events import Batch, Entry
from glitchrun.events_json import batch_to_json
from glitchrun.report.formatting import fitness
from glitchrun.runner.live.search_view import SearchView
from glitchrun.runner.live.terminal_display import LiveDisplay, Picture
from glitchrun.runner.live.window import Window
from glitchrun.runner.live.window_display import WindowDisplay
from glitchrun.runner.progress import Display
from glitchrun.spec.strategy import STRATEGIES
from tests.support.engine import context
from tests.support.screens import NO_WINDOWS, run_in_terminal, virtual_display

PARAMS = {"population": 10, "generations": 3, "elite": 2, "impact_tokens": 30}
SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: tiny}
model: {path: ./model, device: cpu}
template: chatml
steps:
  - {id: evolve, strategy: genetic, base_text: The quick brown, population: 10, generations: 3,
    impact_tokens: 20}
"""


@pytest.fixture(scope="module")
def batches(llama_folder: Path) -> list[Batch]:
    config = STRATEGIES["genetic"].configure(
        {"base_text": "The quick brown", "wanted": 90} | PARAMS
    )
    events = STRATEGIES["genetic"].run(config, context(llama_folder), ())
    return [event for event in events if isinstance(event, Batch)]


@pytest.fixture(scope="module")
def view(batches: list[Batch]) -> SearchView:
    seen = SearchView("evolve")
    for batch in batches:
        seen.take(batch)
    return seen


def drawn(view: SearchView, width: int = 100, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    console.print(Picture(view))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_view_collects_the_batches(view: SearchView, batches: list[Batch]) -> None:
    best = [e.cells for e in batches[-1].entries if e.table == "best"]
    assert [row["ids"] for row in view.best] == [row["ids"] for row in best[: len(view.best)]]
    before = SearchView("evolve")  # without the last batch, which names the best
    for batch in batches[:-1]:
        before.take(batch)
    assert [row["ids"] for row in before.best] == [row["ids"] for row in view.best]
    assert [row["generation"] for row in view.generations] == [0, 1, 2, 3]
    assert view.evaluations == sum(batch.counters["evaluations"] for batch in batches)
    assert (view.done, view.total) == (1, 1)
    values = [row["fitness"] for row in view.best]
    assert values == sorted(values, reverse=True)
    assert view.goals(repr).startswith("raise ")


def test_terminal_shows_curve_diversity_and_sequences(view: SearchView) -> None:
    picture = drawn(view)
    assert "generation 3" in picture
    assert "━" in picture
    assert "╌" in picture
    assert f"best {fitness(view.generations[-1]['best'])}" in picture
    assert f"{view.generations[-1]['diversity']:.2f}" in picture
    assert f"{view.evaluations} evaluations" in picture
    assert max(map(len, picture.splitlines())) == 100


@pytest.mark.parametrize("width", [24, 60, 200])
def test_picture_fits_the_terminal(view: SearchView, width: int) -> None:
    assert max(map(len, drawn(view, width).splitlines())) <= width


def test_terminal_without_unicode(view: SearchView) -> None:
    picture = drawn(view, encoding="ascii")
    assert "* best" in picture
    assert "- mean" in picture


def test_lines_without_a_terminal(batches: list[Batch], capsys: pytest.CaptureFixture[str]) -> None:
    with LiveDisplay().step("evolve") as shown:
        for batch in batches:
            shown.show(batch)
    printed = capsys.readouterr().err
    assert printed.startswith("evolve: finished in ")
    assert "generation 3" not in printed


def test_window_draws_each_batch(batches: list[Batch]) -> None:
    window = Window(Figure())
    assert window.figure.get_suptitle() == "waiting for the first batch"
    for batch in batches:
        window.take(json.dumps({"step": "evolve", "batch": batch_to_json(batch)}))
        window.draw()
    best, mean = window.above.lines[:2]
    assert window.view
    assert list(best.get_ydata()) == [row["best"] for row in window.view.generations]
    assert list(mean.get_ydata()) == [row["mean"] for row in window.view.generations]
    assert len(window.below.lines[0].get_ydata()) == 4
    (table,) = window.listing.tables
    assert table[1, 0].get_text().get_text() == fitness(window.view.best[0]["fitness"])
    window.take(None)
    window.draw()
    assert "evolve (over)" in window.figure.get_suptitle()
    window.take(json.dumps({"step": "other", "batch": batch_to_json(batches[0])}))
    assert window.view.generations == []  # the next step starts a new picture


@pytest.mark.parametrize(
    ("display", "reason"),
    [("", "neither DISPLAY nor WAYLAND_DISPLAY is set"), (":987", "the display :987 does not")],
)
def test_missing_display_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, display: str, reason: str
) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with pytest.raises(PreflightError, match=reason) as error:
        WindowDisplay(Display()).open()
    assert error.value.exit_code == ExitCode.PREFLIGHT
    message = str(error.value)
    assert "--live draws the same in a terminal" in message
    assert len(message) < 180
    assert "Agg" not in message  # no list of the toolkits tried


def colours(display: str) -> dict[tuple[int, ...], int]:
    """How many pixels of each colour the display shows."""
    shot = ImageGrab.grab(xdisplay=display)
    assert isinstance(shot, Image.Image)
    counted = shot.convert("RGB").getcolors(1 << 24)
    return {colour: count for count, colour in counted or []}  # type: ignore[misc]


CURVE = (0xB9, 0x4A, 0x05)
"""The palette's colour of the fitness curve."""
WHITE = (255, 255, 255)


def waited_for(display: str, fewest: int, colour: tuple[int, ...] = CURVE) -> int:
    """The number of pixels of a colour: waits until there are `fewest`, at most a minute."""
    deadline = time.monotonic() + 60
    while (found := colours(display).get(colour, 0)) < fewest and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.skipif(bool(NO_WINDOWS), reason=NO_WINDOWS)
def test_real_window_follows_the_run_and_may_be_closed(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = WindowDisplay(Display())
    with virtual_display() as name:
        monkeypatch.setenv("DISPLAY", name)
        monkeypatch.delenv("MPLBACKEND", raising=False)
        display.open()
        assert waited_for(name, 100_000, WHITE) >= 100_000
        assert CURVE not in colours(name)
        with display.step("evolve") as shown:
            for batch in batches[:3]:
                shown.show(batch)
            few = waited_for(name, 10)
            assert few >= 10
            for batch in batches[3:]:
                shown.show(batch)
            assert waited_for(name, few + 50) >= few + 50
    # The display has ended, and the window with it: the run continues.
    process = display._process
    assert process
    process.wait(timeout=30)
    with display.step("evolve") as shown:
        shown.show(batches[0])
    assert "the window was closed; the run continues" in capsys.readouterr().err
    display.release()


@pytest.mark.skipif(bool(NO_WINDOWS), reason=NO_WINDOWS)
def test_apply_draws_on_terminal_and_window(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "model").symlink_to(llama_folder)
    (tmp_path / "spec.yaml").write_text(SPEC)
    with virtual_display() as name:
        environment = {"DISPLAY": name, "MPLBACKEND": ""}
        code, text = run_in_terminal(
            tmp_path, "apply", "spec.yaml", "--live", "--gui", **environment
        )
        assert waited_for(name, 50) >= 50  # it stays after the command has ended
    assert code == 0, text
    assert "generation 3" in text
    assert "the window stays until you close it" in text


def test_window_process_does_not_import_torch() -> None:
    """It would start slowly and take memory."""
    code = "import sys, glitchrun.runner.live.window; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_view_ranks_like_the_search() -> None:
    """The fittest first, then the shorter, then the lower ids, in any order of arrival."""
    lacking = {"9 9": 3e-9, "8": 9e-8, "7 1": 0.5, "7 0": 0.5, "6": 0.5, "5": 0.5 + 1e-9}
    rows = [
        Entry("sequences", {"ids": ids, "fitness": 1 - lack, "parents": []})
        for ids, lack in lacking.items()
    ]
    view = SearchView("evolve")
    view.take(Batch(tuple(rows), 1, 2))
    assert [row["ids"] for row in view.best] == ["9 9", "8", "5", "6", "7 0", "7 1"]
