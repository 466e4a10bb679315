"""Output that cannot be written, or would mislead, whatever the command."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glitchrun.cli.chat import _harmless
from glitchrun.cli.status import _line
from glitchrun.events import Batch
from glitchrun.runner.progress import Display
from glitchrun.runner.signals import Interrupt, Stopped
from glitchrun.terminal import QuietStream, emit_json, fitted, say, styled, visible, visible_lines
from tests.support.commands import ENVIRONMENT
from tests.support.records import Invented, write_run

COMMAND = (sys.executable, "-m", "glitchrun")
HOSTILE = "a\x1b[31m\x9b2J\u202e\u2066\u200b\u2028\u061c\ufeff\U000e0041b"


SPEC = """
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: unseen}
model: {path: some/model}
steps: [{id: t, strategy: test, tokens: {ids: [1]}}]
"""


def _nobody_reads() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def _run(
    folder: Path, words: tuple[str, ...], redirect: str, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Runs a command with the shell's redirections; `{gone}` is a pipe that nobody reads."""
    gone = _nobody_reads()
    try:
        return subprocess.run(
            ["bash", "-c", f'"$@" {redirect.format(gone=gone)}', "sh", *COMMAND, *words],
            cwd=folder,
            env={**ENVIRONMENT, **environment},
            pass_fds=[gone],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(gone)


@pytest.mark.parametrize(
    ("words", "code", "unbuffered"),
    [
        (("--help",), 0, ""),
        (("schema",), 0, "1"),
        (("validate", "broken.yaml"), 3, ""),
        (("report", "latest"), 2, "1"),
    ],
)
def test_closed_pipe_does_not_change_the_exit_code(
    tmp_path: Path, words: tuple[str, ...], code: int, unbuffered: str
) -> None:
    (tmp_path / "broken.yaml").write_text("apiVersion: glitchrun/v1\nkind: Experiment\n")
    done = _run(tmp_path, words, ">&{gone}", {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize("redirect", [">&- 2>&-", "<&- >&{gone} 2>&{gone}", ">&{gone} 2>/dev/full"])
def test_closed_and_broken_streams_change_no_exit_code(tmp_path: Path, redirect: str) -> None:
    assert _run(tmp_path, ("explain", "latest", "x"), redirect).returncode == 2


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    done = _run(tmp_path, ("list", "templates"), ">/dev/full")
    assert done.returncode == 1
    assert "standard output is incomplete: No space left on device" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_of_the_terminal_is_too_small(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("apiVersion: glitchrun/v1\nkind: 訳\n", encoding="utf-8")
    environment = {"PYTHONIOENCODING": encoding, "LANG": "C"}
    done = _run(tmp_path, ("validate", "spec.yaml"), "", environment)
    assert done.returncode == 3
    assert ("訳" if encoding == "utf-8" else "\\u8a33") in done.stdout
    found = _run(tmp_path, ("validate", "--format", "json", "spec.yaml"), "", environment)
    assert json.loads(found.stdout)["files"] == 1


APPLY = """
import sys
from pathlib import Path
from glitchrun.cli import main
from glitchrun.errors import ExitCode
from glitchrun.ledger import read_run
from glitchrun.runner import apply as module
from glitchrun.runner.execute import Outcome

def apply(experiment, root, options, display, confirm):
    for place in range(2_000):
        display.say(f"line {place}")
    outcome = Outcome(read_run(Path(sys.argv[1])), ExitCode.GATE_FAILED)
    return module.Applied((outcome,), (), ExitCode.GATE_FAILED)

module.apply = apply
main(["apply", "spec.yaml"])
"""


def test_failed_gate_sets_the_exit_code_without_a_reader(tmp_path: Path) -> None:
    record = write_run(tmp_path / "mlruns")
    (tmp_path / "spec.yaml").write_text(SPEC)
    with_head = '("$@" 2>&1; echo $? >code) | head -n 1'
    done = subprocess.run(
        ["bash", "-c", with_head, "sh", sys.executable, "-c", APPLY, str(record.folder)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "line 0\n"
    assert (tmp_path / "code").read_text() == "5\n"


class _Broken(io.StringIO):
    """A stream that can no longer be written, for one of several reasons."""

    def __init__(self, error: Exception, terminal: bool) -> None:
        super().__init__()
        self._error = error
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_progress_that_cannot_be_written_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, terminal: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", _Broken(error, terminal))
    _show_progress()
    say("unseen", err=True)


def test_progress_needs_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    _show_progress()


def _show_progress() -> None:
    display = Display()
    display.say("loading")
    with display.step("mine") as shown:
        for done in range(1, 4):
            shown.show(Batch(facts=(), done=done, total=3, seconds=0.1))


def test_progress_shows_nothing_that_could_rearrange_the_terminal() -> None:
    display = Display()
    file = io.StringIO()
    display.console = Console(file=file)
    display.say(f"loading {HOSTILE}")
    assert file.getvalue() == f"loading {visible(HOSTILE)}\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("NO_COLOR", "", "\x1b[31mfailed\x1b[0m"),
        ("NO_COLOR", "1", "failed"),
        ("TERM", "dumb", "failed"),
    ],
)
def test_styled_text_is_coloured_on_a_terminal_that_wants_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shown: str
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stdout", _Terminal())
    say(f"{styled('failed', 'bad')} \x1b[31m")
    assert sys.stdout.getvalue() == f"{shown} \\x1b[31m\n"


def test_a_line_is_wrapped_to_the_terminal_and_no_key_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = f"  step        mine  probes: strict  {'key' * 20}/{'path' * 10} end"
    assert fitted(line) == line  # a pipe
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    assert fitted(line).splitlines() == [
        "  step        mine  probes: strict",
        f"              {'key' * 20}/{'path' * 10}",
        "              end",
    ]


def test_styled_text_is_plain_in_a_pipe_and_a_mark_from_outside_is_escaped() -> None:
    assert styled("failed", "bad") == "failed"
    assert visible("a\ufdd2b") == "a\\ufdd2b"


def test_character_missing_in_the_encoding_is_escaped() -> None:
    raw = io.BytesIO()
    stream = QuietStream(io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    stream.write("«訳»\n")
    stream.flush()
    assert raw.getvalue() == b"\\xab\\u8a33\\xbb\n"


def test_nothing_hidden_stays_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    shown = visible(HOSTILE)
    assert shown == ("a\\x1b[31m\\x9b2J\\u202e\\u2066\\u200b\\u2028\\u061c\\ufeff\\U000e0041b")
    assert visible("a\n\tb\r") == "a\\x0a\\x09b\\x0d"
    assert visible_lines("a\n\tb\r") == "a\n\tb\\x0d"
    say(HOSTILE)
    emit_json({"name": HOSTILE, "é": "\ud800"})
    text, document = capsys.readouterr().out.split("\n", 1)
    assert text == shown
    assert json.loads(document) == {"name": HOSTILE, "é": "\ud800"}
    assert not set(HOSTILE) & set(document) - set("a[31m2Jb")
    assert "é" in document


def test_run_name_cannot_add_a_line_to_status() -> None:
    row: dict[str, Any] = {
        "status": "FINISHED",
        "started": "2026-01-01T00:00:00",
        "experiment": f"x\n{HOSTILE}",
        "name": HOSTILE,
        "key": "0" * 16,
        "attempt": 1,
        "steps": [],
        "started_at": 0,
        "gates": None,
        "failed_checks": 0,
        "delivered": True,
        "repairs": [],
        "age": 60,
        "bytes": 1000,
        "step_bytes": 0,
        "tags": {"a": HOSTILE},
    }
    assert visible(_line(row)) == _line(row)


def test_commands_show_a_hostile_name_as_escapes(tmp_path: Path) -> None:
    write_run(tmp_path / "mlruns", Invented(experiment=HOSTILE.replace("\x1b", ""), name="n\u202e"))
    for words in (("status",), ("explain", "latest", "nothing"), ("diff", "none.yaml", HOSTILE)):
        done = _run(tmp_path, words, "2>&1")
        assert not set(done.stdout) & set(HOSTILE) - set("a[31m2Jb"), words


def test_chat_keeps_joiners_and_escapes_direction_marks() -> None:
    assert _harmless("👩\u200d🚀 \u202eabc\x9b\u2028") == "👩\u200d🚀 ⟨U+202E⟩abc⟨U+009B⟩⟨U+2028⟩"


def test_signal_message_bypasses_the_streams(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", _Broken(RuntimeError("reentrant call"), terminal=True))
    interrupt = Interrupt()
    interrupt.receive(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        interrupt.check()
    assert (
        capfd.readouterr().err
        == "stopping after the current batch; a second signal stops immediately\n"
    )
