"""What the operating system refuses becomes a message with the path, the cause and a remedy."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glitchrun.cli import main
from glitchrun.errors import ModelUnavailable, PreflightError, RunError, file_access
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
)
from glitchrun.ledger.files import DELIVERED, IDENTITY, LEDGER, write_atomically
from tests.support import raw_checkpoints
from tests.support.permissions import unprivileged
from tests.support.records import Invented, invented_document, invented_identity, write_run
from tests.support.reporting import rows


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, with no tracking store configured."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir(name)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Path(name)
        for path in [Path(name), *Path(name).glob("**/")]:
            path.chmod(0o755)


def invoke(*words: str) -> Result:
    """A command line; anything but its own messages and exit codes fails the test."""
    done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.ENOSPC, errno.EIO, errno.ENAMETOOLONG, errno.EROFS, errno.ENOTDIR, 999],
)
def test_the_message_names_path_cause_and_remedy(number: int) -> None:
    with pytest.raises(RunError) as caught, file_access("/a/b", "cannot be written"):
        raise OSError(number, os.strerror(number))
    path, message = str(caught.value).split(": ", 1)
    assert path == "/a/b"
    assert message.startswith(f"cannot be written ({os.strerror(number)}); ")
    assert len(message.rpartition("; ")[2]) > 8
    with (
        pytest.raises(ModelUnavailable, match=r"^/c: "),
        file_access("/a/b", error=ModelUnavailable),
    ):
        raise OSError(number, os.strerror(number), "/c")


def test_other_errors_pass_through() -> None:
    for error in (BrokenPipeError(errno.EPIPE, "gone"), OSError("of a library")):
        with pytest.raises(OSError, match=str(error.args[-1])), file_access("/a/b"):
            raise error


def unreadable_folder(attempt: Path) -> None:
    attempt.chmod(0)


def unreadable_experiment(attempt: Path) -> None:
    attempt.parent.parent.chmod(0)


def unreadable_ledger(attempt: Path) -> None:
    (attempt / LEDGER).chmod(0)


def a_folder_as_ledger(attempt: Path) -> None:
    (attempt / LEDGER).unlink()
    (attempt / LEDGER).mkdir()


def a_pipe_as_ledger(attempt: Path) -> None:
    (attempt / LEDGER).unlink()
    os.mkfifo(attempt / LEDGER)


def a_pipe_as_run_json(attempt: Path) -> None:
    (attempt / IDENTITY).unlink()
    os.mkfifo(attempt / IDENTITY)


def a_loop_as_ledger(attempt: Path) -> None:
    (attempt / LEDGER).unlink()
    (attempt / LEDGER).symlink_to(LEDGER)


def a_newer_run(attempt: Path) -> None:
    (attempt / LEDGER).write_text('{"kind":"ledger","version":9}\n')


@pytest.mark.parametrize(
    "spoil",
    [
        unreadable_folder,
        unreadable_experiment,
        unreadable_ledger,
        a_folder_as_ledger,
        a_pipe_as_ledger,
        a_pipe_as_run_json,
        a_loop_as_ledger,
        a_newer_run,
    ],
)
def test_unreadable_run_is_counted_and_hides_no_other_run(
    open_folder: Path, spoil: Callable[[Path], None]
) -> None:
    root = open_folder / "mlruns"
    mine = write_run(root)
    spoil(write_run(root, Invented(experiment="theirs", key="feed", status="RUNNING")).folder)
    with unprivileged():
        listed = invoke("status")
        shown = invoke("report", mine.identity.key[:6], "--format", "json")
        newest = invoke("report", mine.identity.name, "--format", "md")
        unreadable: list[Exception] = []
        mark_killed(root, unreadable.append)
    assert listed.exit_code == shown.exit_code == newest.exit_code == 0
    assert mine.identity.name in listed.stdout
    assert json.loads(shown.stdout)["key"] == mine.identity.key
    for done in (listed, shown, newest):
        assert "1 run could not be read: " in done.stderr
        assert "theirs" in done.stderr
    assert len(unreadable) == 1


def test_another_user_s_lock_counts_as_held(open_folder: Path) -> None:
    with hold(open_folder / "run"):
        pass
    (open_folder / "run" / "lock").chmod(0)
    with unprivileged():
        assert is_held(open_folder / "run")
        with (
            pytest.raises(PreflightError, match=r"run.*Permission denied.*permissions"),
            hold(open_folder / "run"),
        ):
            raise AssertionError("the lock was given")


def test_unwritable_run_folder_is_a_preflight_error(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with (
        unprivileged(),
        pytest.raises(PreflightError, match="Permission denied"),
        hold(open_folder / "runs" / "x" / "k"),
    ):
        raise AssertionError("the lock was given")
    assert PreflightError.exit_code == 4


@pytest.mark.parametrize("text", ["", "[]", "null", '{"ending": 3}', "{" * 9999])
def test_an_odd_note_of_the_delivery_says_nothing(tmp_path: Path, text: str) -> None:
    record = write_run(tmp_path)
    (record.folder / DELIVERED).write_text(text)
    assert read_run(record.folder) == record
    (record.folder / DELIVERED).unlink()
    (record.folder / DELIVERED).mkdir()
    assert read_run(record.folder) == record


def test_only_attempts_count_as_attempts(tmp_path: Path) -> None:
    record = write_run(tmp_path)
    key = record.folder.parent
    for name in ("attempt-1.bak", "attempt-0", "attempt-x", "attempt-02", "attempt-٣", "attempt-"):
        (key / name).mkdir()
        (key / name / IDENTITY).write_text("{}")
    (key / "attempt-7").write_text("a file")
    assert latest_attempt(key) == 1
    assert find_runs(tmp_path) == [record]


def test_an_odd_owner_names_nobody(tmp_path: Path) -> None:
    with hold(tmp_path):
        for text in ("[]", "", "3", '{"pid": []}'):
            (tmp_path / "owner.json").write_text(text)
            assert is_held(tmp_path)


@pytest.mark.parametrize("name", ["字" * 86, "a" * 256, "é" * 200, "a b", ".", "ü/%?#", "-x-"])
def test_any_name_has_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    record = write_run(tmp_path, Invented(experiment=name))
    assert find_runs(tmp_path) == [record]
    assert len(os.fsencode(record.folder.parent.parent.name)) < 120
    alike = [name + "'", name.replace(" ", "-"), name[:-1], "experiment", "字" * 85]
    for other in set(alike) - {name}:
        assert run_folder(tmp_path, other, "k").parent != record.folder.parent.parent
    assert existing_status(tmp_path, name, record.identity.key) == "FINISHED"


def test_folders_of_the_earlier_rule_are_found_by_their_own_experiment(
    tmp_path: Path,
) -> None:
    record = write_run(tmp_path, Invented(experiment="a b"))
    before = tmp_path / "runs" / "a-b"
    record.folder.parent.parent.rename(before)
    key = record.identity.key
    assert run_folder(tmp_path, "a b", key) == before / key
    assert existing_status(tmp_path, "a b", key) == "FINISHED"
    assert run_folder(tmp_path, "a-b", "other") == before / "other"


def test_new_names_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    made = Invented()
    folder = run_folder(tmp_path, made.experiment, made.key) / "attempt-1"
    identity = invented_identity(made, tmp_path)
    with Journal.create(folder, identity, invented_document(made), {}) as journal:
        assert {folder, folder.parent, folder.parent.parent, tmp_path / "runs"} <= set(synced)
        synced.clear()
        journal.append("gates", gates=[])
        assert synced == []  # a line needs no folder
    write_atomically(tmp_path / "x", "text")
    assert synced == [tmp_path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_half_a_line_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    made = Invented()
    folder = tmp_path / "runs" / "e" / "k" / "attempt-1"
    identity = invented_identity(made, tmp_path)
    real = os.write

    def write(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(number, os.strerror(number))
        return real(descriptor, data[:10])

    with Journal.create(folder, identity, invented_document(made), {}) as journal:
        whole = (folder / LEDGER).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(RunError, match="apply again"):
                journal.append("gates", gates=[])
        assert (folder / LEDGER).read_bytes() == whole
        journal.append("ended", status="FAILED", error="the disk")
    read = read_run(folder)
    assert read.damage is None
    assert read.status == "FAILED"


def test_two_writers_of_one_file_both_succeed(tmp_path: Path) -> None:
    path = tmp_path / "delivered.json"

    def write(letter: str) -> set[str]:
        seen = set()
        for _ in range(20):
            write_atomically(path, letter * 4000)
            seen.add(path.read_text())
        return seen

    with ThreadPoolExecutor(2) as pool:
        seen = set().union(*pool.map(write, "ab"))
    assert seen <= {"a" * 4000, "b" * 4000}
    assert [one.name for one in tmp_path.iterdir()] == ["delivered.json"]


def test_removed_ledger_is_noticed_at_the_next_line(tmp_path: Path) -> None:
    made = Invented()
    folder = tmp_path / "runs" / "e" / "k" / "attempt-1"
    identity = invented_identity(made, tmp_path)
    with Journal.create(folder, identity, invented_document(made), {}) as journal:
        journal.append("gates", gates=[])
        (folder / LEDGER).unlink()
        with pytest.raises(RunError, match=r"ledger\.jsonl: .*removed meanwhile.*apply again"):
            journal.append("ended", status="FINISHED", error=None)


def test_reports_go_where_they_can_or_say_why_not(open_folder: Path) -> None:
    record = write_run(open_folder / "mlruns")
    assert rows(record)
    long = "x" * 250  # as long as a name may be, and too long with anything added
    assert invoke("report", "latest", "--format", "md", "-o", f"{long}.md").exit_code == 0
    for target in (f"{long * 2}.md", "/proc/none.md"):
        failed = invoke("report", "latest", "--format", "md", "-o", target)
        assert failed.exit_code in (1, 2), target
        assert target[:50] in failed.stderr.replace("\n", "")


@pytest.mark.parametrize("text", ["x" * 300, "字" * 86, "a/" * 3000, "no\0thing"])
def test_run_argument_may_be_any_text(open_folder: Path, text: str) -> None:
    write_run(open_folder / "mlruns")
    for words in (["report", text], ["explain", text, "x"], ["compare", text, text]):
        refused = invoke(*words)
        assert refused.exit_code == 2
        assert "no run is called" in refused.stderr


@pytest.mark.parametrize("file", ["/proc/self/mem", "tokens.json"])
def test_tokens_that_cannot_be_read_are_a_preflight_error(open_folder: Path, file: str) -> None:
    raw_checkpoints.folder(open_folder / "model")
    (open_folder / "tokens.json").touch(mode=0)
    (open_folder / "spec.yaml").write_text(
        "apiVersion: glitchrun/v1\nkind: Experiment\nmetadata: {name: odd}\n"
        "model: {path: ./model, device: cpu}\n"
        f"steps: [{{id: test, strategy: test, tokens: {{file: {file}}}}}]\n"
    )
    with unprivileged():
        refused = invoke("plan", "spec.yaml")
    assert refused.exit_code == 4, refused.stderr
    assert file in refused.stderr
    assert "the tokens of step 'test' cannot be read" in refused.stderr


def test_unreadable_model_is_a_preflight_error(open_folder: Path) -> None:
    raw_checkpoints.folder(open_folder / "model")
    (open_folder / "spec.yaml").write_text(
        "apiVersion: glitchrun/v1\nkind: Experiment\nmetadata: {name: odd}\n"
        "model: {path: ./model, device: cpu}\nsteps: [{id: scan, strategy: scan}]\n"
    )
    for hidden in ("model/config.json", "model/model.safetensors", "model"):
        (open_folder / hidden).chmod(0)
        with unprivileged():
            refused = invoke("plan", "spec.yaml")
        (open_folder / hidden).chmod(0o755)
        assert refused.exit_code == 4, hidden
        assert "Permission denied" in refused.stderr
        assert "model" in refused.stderr
