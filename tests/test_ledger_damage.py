"""Damaged ledgers: detection, messages, the copy that is kept, and the repair."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.errors import RunError
from glitchrun.ledger import (
    Journal,
    RunRecord,
    existing_status,
    find_runs,
    latest_attempt,
    mark_killed,
    read_run,
    run_document,
    run_folder,
)
from glitchrun.ledger.checksums import VERSION
from glitchrun.ledger.files import DELIVERED, IDENTITY, LEDGER
from glitchrun.report.headline import headline
from tests.support.records import Invented, invented_document, invented_entries, invented_identity
from tests.support.reporting import rows

MADE = Invented(tokens=40, batch=4)
OLD = Path(__file__).parent / "data" / "ledger-format-1"
"""A run of 8 tokens, 4 of them sampled, in ledger format 1."""
OLD_KEY = json.loads((OLD / "attempt-1" / IDENTITY).read_text())["identity"]["key"]


def sound_run(root: Path, made: Invented = MADE, upto: int | None = None) -> Path:
    """An attempt's folder whose ledger was written entry by entry, up to the entry `upto`."""
    folder = run_folder(root, made.experiment, made.key) / f"attempt-{made.attempt}"
    with Journal.create(folder, invented_identity(made, root), invented_document(made), {}) as run:
        for entry in invented_entries(made)[:upto]:
            _append(run, entry)
    return folder


def resumed(folder: Path, made: Invented = MADE) -> tuple[RunRecord, str | None]:
    """The run completed as by `apply`, without the batches on record, and the damage that was found
    when its ledger was opened."""
    otherwise = run_document(invented_identity(made, folder), invented_document(made), {})
    with Journal(folder, otherwise) as run:
        have = {step.id: len(step.batches) for step in run.record.steps}
        for entry in invented_entries(made):
            if entry["kind"] == "batch" and have[entry["step"]]:
                have[entry["step"]] -= 1
            else:
                _append(run, entry)
        return run.record, run.repaired


def _append(run: Journal, entry: dict[str, object]) -> None:
    run.append(**{name: value for name, value in entry.items() if name != "at"})  # type: ignore[arg-type]


def doubled(lines: list[bytes], chance: random.Random) -> None:
    place = chance.randrange(len(lines))
    lines.insert(chance.randrange(len(lines) + 1), lines[place])


def exchanged(lines: list[bytes], chance: random.Random) -> None:
    first, second = chance.sample(range(len(lines)), 2)
    lines[first], lines[second] = lines[second], lines[first]


def dropped(lines: list[bytes], chance: random.Random) -> None:
    del lines[chance.randrange(len(lines) - 1)]  # the loss of the last line cannot be detected


def flipped(lines: list[bytes], chance: random.Random) -> None:
    text = bytearray(b"".join(lines))
    text[chance.randrange(len(text))] ^= 1 << chance.randrange(8)
    lines[:] = [bytes(text)]


def digit_changed(lines: list[bytes], chance: random.Random) -> None:
    text = bytearray(b"".join(lines))
    digits = [place for place, byte in enumerate(text) if chr(byte).isdecimal()]
    place = chance.choice(digits)
    text[place] = ord("0") + (text[place] - ord("0") + chance.randrange(1, 10)) % 10
    lines[:] = [bytes(text)]


def overwritten(lines: list[bytes], chance: random.Random) -> None:
    text = bytearray(b"".join(lines))
    place = chance.randrange(len(text) - 600)
    text[place : place + 512] = bytes(512)
    lines[:] = [bytes(text)]


@pytest.mark.parametrize(
    "damage", [doubled, exchanged, dropped, flipped, digit_changed, overwritten]
)
def test_any_change_is_detected_and_repaired(
    tmp_path: Path, damage: Callable[[list[bytes], random.Random], None]
) -> None:
    folder = sound_run(tmp_path)
    right = rows(read_run(folder))
    text = (folder / LEDGER).read_bytes()
    for seed in range(25):
        chance = random.Random(f"{damage.__name__} {seed}")
        lines = text.splitlines(keepends=True)
        damage(lines, chance)
        changed = b"".join(lines)
        for left in folder.glob("ledger.*"):
            left.unlink()
        (folder / LEDGER).write_bytes(changed)
        read = read_run(folder)
        assert read.status == "DAMAGED", seed
        assert existing_status(tmp_path, MADE.experiment, MADE.key) == "DAMAGED"
        assert f"{LEDGER}:" in str(read.damage)
        assert rows(read) == right[: len(rows(read))], seed  # everything shown is correct
        record, said = resumed(folder)
        assert said, seed
        assert rows(record) == right, seed
        assert record.status == "FINISHED"
        assert read_run(folder) == record
        assert len(record.repairs) == 1
        assert record.repairs[0] in " ".join(headline(record).sentences)
        assert (folder / "ledger.damaged-1.jsonl").read_bytes() == changed


def test_message_names_line_and_kind_of_damage(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    cases = {
        "10: it is duplicated or moved: entry 9 ": [*lines[:9], lines[8], *lines[9:]],
        "9: entry 9 is missing or moved": [*lines[:8], *lines[9:]],
        "9: it was altered: its checksum": [*lines[:8], lines[8].replace(b"1", b"2", 1)],
        "1: the beginning of the ledger is missing": lines[1:],
        f"{len(lines) + 1}: it was altered: it has no checksum": [*lines, b'{"kind":"x"}\n'],
    }
    for message, changed in cases.items():
        (folder / LEDGER).write_bytes(b"".join(changed))
        assert f"{LEDGER}:{message}" in str(read_run(folder).damage)


def test_each_damaged_ledger_is_kept(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    for number in (1, 2):
        lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
        (folder / LEDGER).write_bytes(b"".join(lines[:5] + lines[6:]))
        record, _ = resumed(folder)
        assert (folder / f"ledger.damaged-{number}.jsonl").exists()
    assert record.status == "FINISHED"


@pytest.mark.parametrize("tail", [b"{", b'{"kind":"batch","at', b'{"a":"\xe6\x97', bytes(600)])
@pytest.mark.parametrize("ended", [False, True])
def test_incomplete_last_line_is_removed_without_a_message(
    tmp_path: Path, tail: bytes, ended: bool
) -> None:
    """A kill leaves the beginning of a line; a power cut also leaves zeros."""
    folder = sound_run(tmp_path, upto=6)
    sound = (folder / LEDGER).read_bytes()
    if ended:
        tail += bytes(3) + b"\n"
    (folder / LEDGER).write_bytes(sound + tail)
    assert read_run(folder).status == "RUNNING"
    Journal(folder).close()
    assert (folder / LEDGER).read_bytes() == sound
    assert not list(folder.glob("ledger.damaged*"))


def test_run_resumes_from_any_cut_to_the_same_result(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    text = (folder / LEDGER).read_bytes()
    right = rows(read_run(folder))
    chance = random.Random(7)
    first = text.index(b"\n") + 1
    for cut in chance.sample(range(first, len(text)), 40):
        (folder / LEDGER).write_bytes(text[:cut])
        assert read_run(folder).damage is None
        record, said = resumed(folder)
        assert said is None
        assert rows(record) == right


def test_ledger_without_the_end_that_mlflow_has_is_damaged(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    whole = read_run(folder)
    (folder / DELIVERED).write_text(json.dumps({"run_id": "x", "ending": whole.ending}))
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    (folder / LEDGER).write_bytes(b"".join(lines[:-3]))
    assert "lines are missing at its end: MLflow has the run as FINISHED" in str(
        read_run(folder).damage
    )
    assert existing_status(tmp_path, MADE.experiment, MADE.key) == "DAMAGED"
    record, said = resumed(folder)
    assert said
    assert record.status == "FINISHED"
    assert rows(record) == rows(whole)
    assert record.delivered_to == {"run_id": "x"}


def test_newer_format_is_refused(tmp_path: Path) -> None:
    folder = sound_run(tmp_path, upto=5)
    head, *rest = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    entry = json.loads(head) | {"version": VERSION + 1, "sum": "another rule"}
    (folder / LEDGER).write_bytes(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
    for reading in (read_run, Journal):
        with pytest.raises(RunError, match=r"ledger\.jsonl: written by a newer .*: update glitchr"):
            reading(folder)
    altered = head.replace(f'"version":{VERSION}'.encode(), f'"version":{VERSION + 1}'.encode(), 1)
    (folder / LEDGER).write_bytes(altered + b"".join(rest))
    assert "altered" in str(read_run(folder).damage)  # one changed digit is damage


def test_entry_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = sound_run(tmp_path, upto=5)
    with Journal(folder) as run, pytest.raises(AttributeError):
        run.append("unheard_of")
    with pytest.raises(RunError, match=r"ledger\.jsonl:7: .*update glitchrun"):
        read_run(folder)


def test_missing_run_json_is_restored_from_the_ledger(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    before, identity = read_run(folder), (folder / IDENTITY).read_text()
    (folder / IDENTITY).unlink()
    assert latest_attempt(folder.parent) == 1
    assert find_runs(tmp_path) == [before]
    assert existing_status(tmp_path, MADE.experiment, MADE.key) == "FINISHED"
    Journal(folder).close()
    assert (folder / IDENTITY).read_text() == identity


def test_run_without_identity_is_restored_by_the_plan(tmp_path: Path) -> None:
    """A ledger of format 1 does not repeat run.json."""
    folder = old_run(tmp_path)
    (folder / IDENTITY).unlink()
    assert existing_status(tmp_path, "tiny", "k") == "DAMAGED"
    unreadable: list[RunError] = []
    assert find_runs(tmp_path, unreadable.append) == []
    assert "run.json: it does not identify the run (it is missing)" in str(unreadable)
    run = json.loads((OLD / "attempt-1" / IDENTITY).read_text())
    with Journal(folder, run) as again:
        assert again.record.status == "FINISHED"
    assert rows(read_run(folder)) == rows(read_run(OLD / "attempt-1"))


def test_folder_with_a_ledger_is_never_overwritten(tmp_path: Path) -> None:
    folder = sound_run(tmp_path, upto=5)
    (folder / IDENTITY).unlink()
    before = (folder / LEDGER).read_bytes()
    with pytest.raises(RunError, match="already contains a run"):
        Journal.create(folder, invented_identity(MADE, tmp_path), invented_document(MADE), {})
    assert (folder / LEDGER).read_bytes() == before


def test_missing_ledger_is_reported(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    right = rows(read_run(folder))
    for change in (Path.unlink, lambda path: path.write_bytes(b"")):
        change(folder / LEDGER)
        assert "all of it, is missing" in str(read_run(folder).damage)
        record, said = resumed(folder)
        assert said
        assert rows(record) == right


def old_run(root: Path) -> Path:
    folder = run_folder(root, "tiny", "k")
    shutil.copytree(OLD, folder)
    return folder / "attempt-1"


def test_format_1_ledger_is_read(tmp_path: Path) -> None:
    record = read_run(old_run(tmp_path))
    assert record.status == "FINISHED"
    assert record.damage is None
    assert len(rows(record)) == 12


def test_format_1_ledger_is_continued_with_checksums(tmp_path: Path) -> None:
    folder = old_run(tmp_path)
    right = rows(read_run(folder))
    old = (folder / LEDGER).read_bytes()
    with Journal(folder) as run:
        run.append("gates", gates=[])
    whole = (folder / LEDGER).read_bytes()
    assert whole.startswith(old)
    assert rows(read_run(folder)) == right
    (folder / LEDGER).write_bytes(whole.replace(b'"gates":[]', b'"gates":{}'))
    assert "altered" in str(read_run(folder).damage)
    (folder / LEDGER).write_bytes(whole.replace(b'"argmax":', b'"Argmax":', 1))
    assert "the lines before it were altered" in str(read_run(folder).damage)


def test_invalid_line_in_a_format_1_ledger_is_damage(tmp_path: Path) -> None:
    folder = old_run(tmp_path)
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    for nonsense in (b'{"kind":"batch"}', b'{"kind":"ended","at":1}', b"[]", b"[" * 9999, b"{ no"):
        (folder / LEDGER).write_bytes(b"".join([*lines[:4], nonsense + b"\n", *lines[4:]]))
        read = read_run(folder)
        assert f"{LEDGER}:5: not a ledger entry" in str(read.damage)
        assert existing_status(tmp_path, "tiny", "k") == "DAMAGED"
        assert rows(read) == rows(read_run(OLD / "attempt-1"))[: len(rows(read))]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("batch", ("facts", 0, "probes", "repeat", "p"), "0.5"),
        ("batch", ("facts", 0, "probes", "repeat", "rank"), 1.5),
        ("batch", ("facts", 0, "glitch"), 1),
        ("batch", ("facts", 0, "token", "text"), None),
        ("batch", ("facts", 0, "token", "id"), True),
        ("batch", ("facts", 0, "kind"), "odd"),
        ("batch", ("facts",), "text"),
        ("batch", ("done",), "4"),
        ("batch", ("counters",), {"rechecked": "1"}),
        ("batch", ("step",), None),
        ("measured", ("value",), "1"),
        ("measured", ("n",), 0.5),
        ("measured", ("name",), 7),
        ("model", ("model", "bytes"), "many"),
        ("model", ("model", "census"), {"float32": None}),
        ("session", ("plan",), []),
        ("ended", ("status",), 3),
        ("ended", ("error",), []),
    ],
)
def test_format_1_field_of_another_type_is_damage_of_that_line(
    tmp_path: Path, kind: str, path: tuple[str | int, ...], value: object
) -> None:
    folder = old_run(tmp_path)
    lines = (folder / LEDGER).read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    number = kinds.index(kind)
    entry = json.loads(lines[number])
    *parents, last = path
    parent = entry
    for key in parents:
        parent = parent[key]
    parent[last] = value
    lines[number] = json.dumps(entry)
    (folder / LEDGER).write_text("\n".join(lines) + "\n")
    read = read_run(folder)
    assert f"{LEDGER}:{number + 1}: not a ledger entry" in str(read.damage)
    headline(read)  # the intact part can be reported
    assert existing_status(tmp_path, "tiny", "k") == "DAMAGED"


def test_damaged_run_stays_unchanged_until_it_is_resumed(tmp_path: Path) -> None:
    folder = sound_run(tmp_path, upto=8)
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    changed = b"".join(lines[:5] + lines[6:])
    (folder / LEDGER).write_bytes(changed)
    assert mark_killed(tmp_path) == []
    assert (folder / LEDGER).read_bytes() == changed


def test_every_command_reports_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sound_run(tmp_path / "mlruns")
    text = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(text.replace(b'"rank":1,', b'"rank":7,', 1))
    for words in (
        ["status"],
        ["report", "latest", "--format", "md"],
        ["explain", "latest", "model/bytes"],
        ["compare", "latest", "latest"],
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        assert f"{LEDGER}:" in done.stderr
        assert "checksum does not match" in done.stderr
    assert CliRunner().invoke(main, ["status"]).stdout.startswith("DAMAGED")
    assert (
        "ledger is damaged"
        in CliRunner().invoke(main, ["report", "latest", "--format", "md"]).stdout
    )


@pytest.mark.parametrize("place", ["other/attempt-1", "{key}/attempt-2", "{key}.bak/attempt-1"])
def test_copy_of_another_run_is_refused(tmp_path: Path, place: str) -> None:
    folder = sound_run(tmp_path)
    copy = folder.parent.parent / place.format(key=MADE.key)
    shutil.copytree(folder, copy)
    said: list[str] = []
    found = find_runs(tmp_path, lambda error: said.append(str(error)))
    assert [run.folder for run in found] == [folder]
    assert len(said) == 1
    assert said[0].startswith(f"{copy}: its files are of another run, {MADE.key}#1")
    with pytest.raises(RunError, match="move them out"):
        existing_status(tmp_path, MADE.experiment, copy.parent.name)
    assert read_run(copy).identity == read_run(folder).identity  # named by its folder, it is read


@pytest.mark.parametrize("at", ["x", None, True, -1, 10**30, 1e308])
def test_invalid_time_is_damage_of_that_line(tmp_path: Path, at: object) -> None:
    folder = run_folder(tmp_path, "old", OLD_KEY) / "attempt-1"
    shutil.copytree(OLD / "attempt-1", folder)
    sound_run(tmp_path)
    lines = (folder / LEDGER).read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "at": at})
    (folder / LEDGER).write_text("\n".join(lines) + "\n")
    found = find_runs(tmp_path)
    assert sorted(run.status for run in found) == ["DAMAGED", "FINISHED"]
    assert any("ledger.jsonl:1: not a ledger entry" in str(run.damage) for run in found)


def test_invalid_identity_does_not_hide_other_runs(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "old", OLD_KEY) / "attempt-1"
    shutil.copytree(OLD / "attempt-1", folder)
    sound_run(tmp_path)
    run = json.loads((folder / IDENTITY).read_text())
    for name, value in {"key": 1.5, "experiment": None, "tags": [], "created_at": "x"}.items():
        changed = {**run, **({name: value} if name in run else {})}
        if name in run["identity"]:
            changed["identity"] = {**run["identity"], name: value}
        (folder / IDENTITY).write_text(json.dumps(changed))
        said: list[str] = []
        assert len(find_runs(tmp_path, lambda error: said.append(str(error)))) == 1  # noqa: B023
        assert "do not fit together" in said[0]


def test_ledger_id_is_restored_from_the_delivery(tmp_path: Path) -> None:
    folder = sound_run(tmp_path)
    (folder / DELIVERED).write_text(json.dumps({"run_id": "r", "ledger": "0f" * 16}))
    (folder / IDENTITY).write_text("{")
    text = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(b"x" + text)
    record, said = resumed(folder)
    assert said
    assert record.identity.ledger == "0f" * 16
    assert read_run(folder).identity == record.identity
