"""The ledger: durable entries, resuming, locks, and records read back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from glitchrun.errors import RunError, RunLocked
from glitchrun.events import Attempt, Batch, Entry, ProbeResult, Sampled, Token, Verified
from glitchrun.events_json import batch_from_json, batch_to_json
from glitchrun.ledger import (
    Journal,
    existing_status,
    find_runs,
    hold,
    is_held,
    latest_attempt,
    mark_killed,
    read_run,
    run_folder,
    unreadable_lines,
)
from glitchrun.ledger.files import IDENTITY, LEDGER
from glitchrun.ledger.record import Metric, RunIdentity

TOKEN = Token(7, " odd\u202e", "Ġodd", "normal", 0.5)
PROBE = ProbeResult(0.1, 2, 3.0, 4, 0.5, False, "float32", False)
SAID = (
    Attempt("repeat", 0, False, 'od\u202e"\n', (4, 5, 2)),
    Attempt("repeat", 1, True, " odd\u202e", (7,)),
    Attempt("explain", 0, False, "", ()),
)
BATCH = Batch(
    (
        Verified(TOKEN, {"repeat": PROBE}, True, "prefix"),
        Sampled(TOKEN, (True, False), 0.5, 0.1, 0.9, False, continuations=SAID),
        Entry("answers", {"text": "\ud800 x", "p": 0.25, "ids": [1, 2], "rank": None}),
    ),
    done=2,
    total=None,
    seconds=0.25,
    counters={"rechecked": 1},
    search_seconds=0.125,
)
SPEC = {"steps": [{"id": "mine", "strategy": "mine", "k": 3}]}


def identity(key: str = "k1", attempt: int = 1) -> RunIdentity:
    return RunIdentity(
        "exp a/b", "cell", key, attempt, None, {}, "s.yaml", {}, {}, "", "sqlite:///x.db"
    )


def journal(root: Path, key: str = "k1") -> Journal:
    folder = run_folder(root, "exp a/b", key) / "attempt-1"
    made = Journal.create(folder, identity(key), SPEC, {"steps[0].k": "s.yaml:3:4"})
    made.append("session", pid=1, host="here", plan={"key": key}, environment={"python": "3"})
    return made


MODEL = {
    "load_seconds": 3.0,
    "bytes": 1,
    "peak_bytes": 1,
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none",
    "architecture": "A",
    "vocabulary_size": 9,
    "census": {},
    "unquantized": [],
    "template": "raw",
    "template_rule": "",
}


def test_step_time_excludes_pauses_between_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000]
    monkeypatch.setattr("glitchrun.ledger.journal.now", lambda: clock[0])
    batch = batch_to_json(BATCH)
    session = {"pid": 1, "host": "here", "plan": {}, "environment": {}}
    later = {**MODEL, "load_seconds": 0.5}
    entries = [
        (5_000, "model", {"model": MODEL}),
        (5_500, "step", {"step": "mine"}),
        (7_000, "batch", {"step": "mine", **batch}),
        (7_250, "ended", {"status": "KILLED", "error": None}),
        (90_000, "session", session),
        (91_000, "model", {"model": later}),
        (92_000, "step", {"step": "mine"}),
        (94_000, "batch", {"step": "mine", **batch}),
        (95_000, "step_done", {"step": "mine"}),
    ]
    with journal(tmp_path) as made:
        for clock[0], kind, fields in entries:
            made.append(kind, **fields)
    record = read_run(made.folder)
    assert record.steps[0].seconds == (7 - 5.5) + (95 - 92)
    assert record.loading_seconds == 3.0 + 0.5


def test_record_round_trips_through_the_ledger(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        made.append("step", step="mine")
        made.append("batch", step="mine", **batch_to_json(BATCH))
        made.append("measured", step="mine", name="glitch", value=1.0, n=2)
        made.append("step_done", step="mine")
        made.append("ended", status="FINISHED", error=None)
        live = made.record
    read = read_run(made.folder)
    assert read == live
    assert read.steps[0].batches[0].batch == BATCH
    assert read.metrics["mine/glitch"] == Metric(1.0, 2)
    assert read.steps[0].finished
    assert read.status == "FINISHED"
    assert read.notes == {"rechecked": 1}
    assert read.origins == {"steps[0].k": "s.yaml:3:4"}


def test_samples_of_earlier_versions_have_no_continuations() -> None:
    older = batch_to_json(BATCH)
    del older["facts"][1]["continuations"]
    (fact,) = (one for one in batch_from_json(older).facts if isinstance(one, Sampled))
    assert fact.continuations == ()
    assert fact.outcomes == (True, False)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_only_an_incomplete_last_line_is_removed(tmp_path: Path, cut: int) -> None:
    with journal(tmp_path) as made:
        made.append("batch", step="mine", **batch_to_json(BATCH))
        whole = (made.folder / LEDGER).read_bytes()
        made.append("batch", step="mine", **batch_to_json(BATCH))
    path = made.folder / LEDGER
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    assert len(read_run(made.folder).steps[0].batches) == 1
    with Journal(made.folder) as again:
        again.append("batch", step="mine", **batch_to_json(BATCH))
    assert len(read_run(made.folder).steps[0].batches) == 2


@pytest.mark.parametrize(
    "line", ["{ not json", "[]", "null", "{}", '{"kind":"x"}', '{"kind":"batch"}', "[" * 9999]
)
def test_invalid_line_is_reported_as_damage(tmp_path: Path, line: str) -> None:
    with journal(tmp_path) as made:
        made.append("step", step="mine")
    path = made.folder / LEDGER
    path.write_bytes(line.encode() + b"\n" + path.read_bytes())
    read = read_run(made.folder)
    assert read.status == "DAMAGED"
    assert re.search(r"attempt-1/ledger\.jsonl:[12]: .*--fresh", str(read.damage))
    with Journal(made.folder) as again:
        assert again.repaired
    assert read_run(made.folder).damage is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"identity": {}}', '{"identity": 1, "spec": 2}'])
def test_invalid_run_json_is_reported_or_restored(tmp_path: Path, text: str) -> None:
    made = journal(tmp_path)
    made.close()
    right = read_run(made.folder)
    (made.folder / IDENTITY).write_text(text)
    assert read_run(made.folder) == right  # the ledger repeats it
    (made.folder / LEDGER).write_text("")
    with pytest.raises(RunError, match=r"attempt-1"):
        read_run(made.folder)


def test_interrupted_creation_leaves_no_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "exp a/b", "k1") / "attempt-1"
    (folder / "artifacts").mkdir(parents=True)
    assert latest_attempt(folder.parent) == 0
    assert find_runs(tmp_path) == []
    assert existing_status(tmp_path, "exp a/b", "k1") is None


def test_lock_error_names_the_process_that_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = (
        "import sys, pathlib; from glitchrun.ledger import hold\n"
        f"with hold(pathlib.Path({str(folder)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        assert is_held(folder)
        with pytest.raises(RunLocked, match=f"pid {other.pid}"), hold(folder):
            raise AssertionError("two processes hold the lock")
        other.kill()
    assert not is_held(folder)
    with hold(folder):
        assert is_held(folder)


def test_killed_process_does_not_hold_a_run_while_shutting_down(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    dying = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with hold(folder):
        owner = {"pid": dying.pid, "host": socket.gethostname()}
        (folder / "owner.json").write_text(json.dumps(owner))
        assert is_held(folder)
        dying.kill()
        # Killed and not yet waited for: a zombie.
        os.waitid(os.P_PID, dying.pid, os.WEXITED | os.WNOWAIT)
        assert not is_held(folder)
        release = threading.Timer(1.5, lambda: (folder / "lock").rename(folder / "gone"))
        release.start()
        with hold(folder):  # waits longer than for a living process
            pass
        release.join()
    dying.communicate()


def test_process_name_of_the_owner_may_be_any_bytes(tmp_path: Path) -> None:
    """The kernel truncates a name after 15 bytes, even within a character."""
    code = "open('/proc/self/comm', 'wb').write(b'\\xe6\\x97) Z'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as named:
        assert named.stdout
        named.stdout.readline()
        with hold(tmp_path):
            owner = {"pid": named.pid, "host": socket.gethostname()}
            (tmp_path / "owner.json").write_text(json.dumps(owner))
            assert is_held(tmp_path)
        named.communicate(b"\n")


def test_runs_of_dead_processes_are_marked_killed_once(tmp_path: Path) -> None:
    journal(tmp_path, "dead").close()
    with journal(tmp_path, "done") as made:
        made.append("ended", status="FINISHED", error=None)
    live = run_folder(tmp_path, "exp a/b", "live")
    with hold(live), journal(tmp_path, "live"):
        assert existing_status(tmp_path, "exp a/b", "dead") == "KILLED"
        assert existing_status(tmp_path, "exp a/b", "live") == "RUNNING"
        assert [run.identity.key for run in mark_killed(tmp_path)] == ["dead"]
        assert mark_killed(tmp_path) == []
    states = {run.identity.key: run.status for run in find_runs(tmp_path)}
    assert states == {"dead": "KILLED", "done": "FINISHED", "live": "RUNNING"}


def test_experiment_name_may_contain_any_character(tmp_path: Path) -> None:
    for name in ("../../etc", "a b", "..", "ü/%?#", "x" * 40):
        folder = run_folder(tmp_path, name, "k").resolve()
        assert folder.is_relative_to(tmp_path / "runs")
        assert len(folder.relative_to(tmp_path).parts) == 3


def test_entry_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    made = journal(tmp_path)
    made.append("batch", step="mine", **batch_to_json(BATCH))
    lines = (made.folder / LEDGER).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["ledger", "session", "batch"]
    made.close()


def test_unreadable_run_does_not_hide_other_runs(tmp_path: Path) -> None:
    journal(tmp_path, "sound").close()
    with journal(tmp_path, "broken") as made:
        path = made.folder / LEDGER
    path.unlink()
    path.mkdir()
    unreadable: list[RunError] = []
    assert [run.identity.key for run in find_runs(tmp_path, unreadable.append)] == ["sound"]
    assert "broken" in str(unreadable)
    assert "a folder is in the place of a file" in str(unreadable)
    assert [run.identity.key for run in mark_killed(tmp_path)] == ["sound"]
    assert unreadable_lines(unreadable) == [f"1 run could not be read: {unreadable[0]}"]


def test_run_that_ends_while_it_is_checked_is_not_marked_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = journal(tmp_path)

    def ends(folder: Path) -> bool:
        made.append("ended", status="FINISHED", error=None)
        made.close()
        return False

    monkeypatch.setattr("glitchrun.ledger.folders.is_held", ends)
    assert mark_killed(tmp_path) == []
    assert read_run(made.folder).status == "FINISHED"


def test_brief_lock_of_another_process_does_not_refuse_a_run(tmp_path: Path) -> None:
    """`status` takes the lock for a moment to test whether it is held."""
    folder = tmp_path / "run"
    with hold(folder):
        pass
    with (folder / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with hold(folder):
            timer.join()
