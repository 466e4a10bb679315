"""What is shown of a running step: counts, rates and times, in a log and in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from glitchrun.events import Batch, Sampled, Stage, Token
from glitchrun.model import load
from glitchrun.runner.progress import Display, Log, TerminalLine
from glitchrun.runner.step_progress import StepProgress
from glitchrun.spec.types import ModelSpec


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def screened(done: int, seconds: float = 8.0) -> Batch:
    return Batch((), done, 48_814, search_seconds=seconds, stage="screen")


def found(count: int, done: int, total: int | None, stage: str, seconds: float = 4.0) -> Batch:
    token = Token(1, "x", "x", "normal", 1.0)
    facts = (Sampled(token, (True,), 1.0, 0.2, 1.0, True),) * count
    return Batch(facts, done, total, seconds, {"continuations": 40}, stage=stage)


def test_line_of_a_stage_with_a_known_total(clock: Clock) -> None:
    progress = StepProgress("mine", clock)
    assert progress.line == "mine: preparing, 0 s elapsed"
    progress.begin(Stage("screen", 48_814))
    clock.now += 10
    assert progress.line == "mine: screen 0 of 48,814 tokens (0 %), 10 s elapsed"
    progress.take(screened(2_000))
    clock.now += 16
    assert progress.line == (
        "mine: screen 2,000 of 48,814 tokens (4 %), 250 tokens/s, "
        "about 2 min 51 s left in screen, 26 s elapsed"
    )
    progress.take(screened(48_814))
    assert progress.line.startswith("mine: screen 48,814 of 48,814 tokens (100 %), ")
    assert "left" not in progress.line


def test_per_cent_are_rounded_down(clock: Clock) -> None:
    progress = StepProgress("mine", clock)
    progress.take(screened(48_813))
    assert progress.percent == "99 %"


def test_a_bound_is_no_total(clock: Clock) -> None:
    """A front has an upper bound. The count of the screen before it does not enter its own."""
    progress = StepProgress("mine", clock)
    progress.begin(Stage("screen", 48_814))
    progress.take(screened(48_814))
    progress.begin(Stage("front", None, most=1000))
    assert (progress.done, progress.share, progress.percent) == (0, None, "")
    progress.take(found(3, 200, None, "front"))
    assert progress.line == (
        "mine: front 200 of at most 1,000 tokens, 3 found, 50 tokens/s, "
        "at most 16 s left in front, 0 s elapsed"
    )


def test_a_stage_that_comes_again_goes_on_counting(clock: Clock) -> None:
    progress = StepProgress("mine", clock)
    progress.take(found(3, 200, None, "front"))
    progress.begin(Stage("audit", 50))
    progress.take(found(1, 50, 50, "audit"))
    progress.begin(Stage("front", None, most=600))
    assert (progress.done, progress.found) == (200, 4)


def test_rate_of_the_work_and_time_left_of_the_items(clock: Clock) -> None:
    progress = StepProgress("asr", clock)
    progress.begin(Stage("sampling", 30, work="continuations"))
    progress.take(found(10, 10, 30, "sampling"))
    assert progress.rate == "10 continuations/s"
    assert progress.left == 8.0
    progress.begin(Stage("sampling", 30, work="continuations", ahead=6.0))
    assert progress.left == 3.5  # 14 of them, as 16 in 4 s


def test_a_stage_named_like_its_unit_is_named_once(clock: Clock) -> None:
    progress = StepProgress("check", clock)
    progress.begin(Stage("checks", 7, unit="checks"))
    assert progress.line == "check: 0 of 7 checks (0 %), 0 s elapsed"


def test_resuming_shows_the_recorded_part_at_once(clock: Clock) -> None:
    progress = StepProgress("mine", clock)
    progress.resume(screened(4_000, seconds=20))
    assert progress.line == (
        "mine: screen 4,000 of 48,814 items (8 %), 200 items/s, "
        "about 3 min 44 s left in screen, 20 s elapsed"
    )
    progress.begin(Stage("screen", 48_814))
    assert "4,000 of 48,814 tokens" in progress.line
    clock.now += 5
    progress.take(screened(8_000, seconds=5))
    assert progress.rate == "800 tokens/s"  # of this session, perhaps on another machine
    assert progress.elapsed == 25


def test_the_duration_of_a_step_includes_everything(clock: Clock) -> None:
    progress = StepProgress("mine", clock)
    clock.now += 4
    progress.begin(Stage("screen", 48_814))
    clock.now += 200
    progress.take(screened(48_814))
    progress.begin(Stage("front", None))
    clock.now += 60
    progress.take(found(1, 64, None, "front"))
    assert progress.finished() == (
        "mine: finished in 4 min 24 s (preparation 4 s, screen 3 min 20 s, front 60 s), "
        "1 token found"
    )


def test_old_records_have_no_stage(clock: Clock) -> None:
    progress = StepProgress("scan", clock)
    progress.resume(Batch((), 3, 9))
    assert progress.line == "scan: 3 of 9 items (33 %), 0 s elapsed"
    assert progress.finished() == "scan: finished in 0 s"


def test_a_log_has_a_line_at_most_every_10_s_and_at_least_every_minute(clock: Clock) -> None:
    progress, lines = StepProgress("mine", clock), list[tuple[float, str]]()
    log = Log(progress, lambda line: lines.append((clock.now, line)), clock=clock)
    progress.begin(Stage("screen", 48_814))
    for second in range(1, 181):
        clock.now += 1
        if second <= 30:
            progress.take(screened(100 * second))
        log.tick()
    times = [at - 1000 for at, _ in lines]
    assert times == [2, 12, 22, 32, 92, 152]
    assert [line.split(", ")[0] for _, line in lines[:2]] == [
        "mine: screen 200 of 48,814 tokens (0 %)",
        "mine: screen 1,200 of 48,814 tokens (2 %)",
    ]


def drawn(progress: StepProgress, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(TerminalLine(progress))
    return captured.get()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_line_fits_the_terminal(clock: Clock, width: int) -> None:
    progress = StepProgress("quite-a-long-name-of-a-step", clock)
    progress.begin(Stage("sampling", 48_814, work="continuations"))
    progress.take(found(1_000, 12_345, 48_814, "sampling"))
    line, rest = drawn(progress, width).split("\n")
    assert not rest
    assert len(line) <= width
    assert "25 %" in line


def test_a_wide_terminal_shows_everything(clock: Clock) -> None:
    progress = StepProgress("mine", clock)
    progress.begin(Stage("screen", 48_814))
    clock.now += 8
    progress.take(screened(12_000))
    words = " ".join(drawn(progress, 120).replace("━", "").replace("╸", "").split())
    assert words == ("mine: screen 24 % 12,000/48,814 tokens 1,500 tokens/s 0:25 left 0:08 elapsed")
    progress.begin(Stage("front", None, most=600))
    progress.take(found(2, 100, None, "front"))
    assert "100/max 600 tokens  2 found  25 tokens/s  max 0:20 left" in drawn(progress, 120)


def test_a_finished_step_leaves_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Display().step("mine") as shown:
        shown.begin(Stage("screen", 48_814))
        shown.show(screened(48_814))
    assert capsys.readouterr().err.startswith("mine: finished in ")
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    assert capsys.readouterr().err.startswith("mine: screen 2,000 of 48,814")


def _interrupted() -> None:
    with Display().step("mine") as shown:
        shown.resume([screened(2_000)])
        raise KeyboardInterrupt


def test_loading_reports_its_stages(llama_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for quantization, name in (("none", "reading"), ("int8", "quantizing")):
        seen: list[tuple[Stage, int]] = []
        spec = ModelSpec(str(llama_folder), device="cpu", quantization=quantization)
        load(spec, report=lambda stage, done, seen=seen: seen.append((stage, done)))  # type: ignore[misc]
        assert {stage.name for stage, _ in seen} == {name}
        last, done = seen[-1]
        assert last.total == done > 0
    assert capfd.readouterr().err == ""
