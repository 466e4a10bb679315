"""Damaged ledgers, checkpoints that change, and MLflow databases in every state."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tools.torture.bench import (
    PATIENCE,
    Bench,
    Outcome,
    Project,
    Result,
    differences,
    facts_of,
    fault,
)

_LEDGERS = ("steps/*/*/ledger.jsonl", "runs/*/*/*/ledger.jsonl")


def truncated(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """A part of the file, at least its first line."""
    text = b"".join(lines)
    return [text[: rng.randrange(len(lines[0]), len(text))]]


def flipped(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """One bit of one byte changed."""
    text = bytearray(b"".join(lines))
    text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    return [bytes(text)]


def doubled(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """A line twice."""
    place = rng.randrange(len(lines))
    return [*lines[:place], lines[place], *lines[place:]]


def reordered(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """Two neighbouring lines exchanged."""
    place = rng.randrange(len(lines) - 1)
    return [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]


def _damage(
    bench: Bench,
    outcome: Outcome,
    number: int,
    damage: Callable[[list[bytes], random.Random], list[bytes]],
) -> None:
    """Damages the ledger of a step or a run, of a killed and of a finished run."""
    project = bench.project("validate")
    _, seconds = bench.reference("validate")
    if number % 4 < 2:
        outcome.expect(project.apply(), [0])
    else:
        outcome.expect(project.kill_after(bench.rng.uniform(0.6, 0.9) * seconds), [-9, 0])
    found = sorted(project.root.glob(_LEDGERS[number % 2]))
    found = [path for path in found if path.read_bytes().count(b"\n") > 1]
    if not found:
        outcome.skipped = "the kill came before a second line"
        return
    path = bench.rng.choice(found)
    before = path.read_bytes()
    path.write_bytes(b"".join(damage(before.splitlines(keepends=True), bench.rng)))
    changed = path.read_bytes()
    if changed == before:
        return
    status = project.run("status")
    outcome.expect(status, [0])
    result = project.apply()
    outcome.expect(result, [0])
    kept = [one for one in path.parent.glob("ledger.damaged-*") if one.read_bytes() == changed]
    torn = before.startswith(changed) and not changed.endswith(b"\n")
    if not kept and not torn and not before.startswith(changed):
        outcome.objections.append(f"the damage of {path} was not seen: {result.err[-500:]}")
    if kept:
        outcome.require("damaged: " in result.err, f"the damage was not said: {result.err[-500:]}")
    bench.finish(project, outcome)


def _add(damage: Callable[[list[bytes], random.Random], list[bytes]], what: str) -> None:
    @fault(f"ledger-{damage.__name__}", "ledger damaged", what, rounds=4)
    def _(bench: Bench, outcome: Outcome, number: int) -> None:
        _damage(bench, outcome, number, damage)


_add(truncated, "cut at a random byte")
_add(flipped, "one random bit flipped")
_add(doubled, "a random line twice")
_add(reordered, "two neighbouring lines exchanged")


@fault("ledger-zeros", "ledger damaged", "its end is zeros, as after a power cut", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    bench.reference("validate")
    outcome.expect(project.apply(), [0])
    path = bench.rng.choice(sorted(project.root.glob(_LEDGERS[number % 2])))
    before = path.read_bytes()
    kept = bench.rng.randrange(len(before)) if number // 2 % 2 == 0 else len(before)
    path.write_bytes(before[:kept] + bytes(len(before) - kept or 4096))
    outcome.expect(project.run("status"), [0])
    bench.finish(project, outcome)


@fault("report-lost", "report", "missing, empty or full of zeros, as after a power cut", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    wanted, _ = bench.reference("validate")
    outcome.expect(project.apply(), [0])
    (record,) = project.runs()
    for name in bench.rng.sample(["report.html", "tokens.jsonl"], bench.rng.randint(1, 2)):
        path = record.artifacts / name
        if number % 3:
            path.write_bytes(bytes(path.stat().st_size) if number % 3 == 1 else b"")
        else:
            path.unlink()
    outcome.expect(project.apply(), [0], "written again")
    outcome.objections += differences(wanted, facts_of(record))
    bench.finish(project, outcome)


_FILES = ("model.safetensors", "generation_config.json", "tokenizer.json", "config.json")


def _change_checkpoint(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    if name == "model.safetensors":
        for place in range(len(data) - 40_000, len(data) - 20_000, 4):
            data[place + 3] ^= 0x80  # the sign of a number
    elif name == "generation_config.json":
        data = bytearray(data.replace(b'"eos_token_id": 1', b'"eos_token_id": 42'))
    elif name == "tokenizer.json":
        data = bytearray(data.replace(b'"</s>"', b'"</S>"', 1))
    else:
        data = bytearray(data.replace(b'"rope_theta": 10000', b'"rope_theta": 50000'))
    path.write_bytes(data)


@fault(
    "checkpoint", "checkpoint changed", f"between stop and resume: {', '.join(_FILES)}", rounds=4
)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine", own_model=True)
    _, seconds = bench.reference("mine")
    outcome.expect(project.kill_after(0.8 * seconds), [-9, 0])
    _change_checkpoint(project.folder / "model", _FILES[number % len(_FILES)])
    changed = project.apply()
    fresh = bench.project("mine", own_model=True)
    shutil.rmtree(fresh.folder / "model")
    shutil.copytree(project.folder / "model", fresh.folder / "model")
    wanted = fresh.apply()
    outcome.expect(changed, [0, 4])
    outcome.require(changed.code == wanted.code, f"{changed.code}, in a new project {wanted.code}")
    if changed.code == wanted.code == 0:
        mixed = differences(facts_of(fresh.runs()[0]), facts_of(_newest(project)))
        outcome.objections += [f"mixed with the earlier checkpoint: {one}" for one in mixed]


def _newest(project: Project):  # type: ignore[no-untyped-def]
    return max(project.runs(), key=lambda run: (run.status == "FINISHED", run.started_at))


@fault("checkpoint-live", "checkpoint changed", "while the run reads it", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine", own_model=True)
    _, seconds = bench.reference("mine")
    process = project.start("apply", "spec.yaml")
    time.sleep(bench.rng.uniform(0.3, 0.6) * seconds)
    _change_checkpoint(project.folder / "model", _FILES[2 * (number % 2)])
    out, err = process.communicate(timeout=PATIENCE)
    result = Result(process.returncode or 0, out, err, 0)
    outcome.expect(result, [0, 1, 4], "" if result.code == 0 else "changed|tokenizer")
    again = project.apply()
    outcome.expect(again, [0, 4])
    fresh = bench.project("mine", own_model=True)
    shutil.rmtree(fresh.folder / "model")
    shutil.copytree(project.folder / "model", fresh.folder / "model")
    wanted = fresh.apply()
    outcome.require(again.code == wanted.code, f"{again.code}, in a new project {wanted.code}")
    if again.code == wanted.code == 0:
        mixed = differences(facts_of(fresh.runs()[0]), facts_of(_newest(project)))
        outcome.objections += [f"mixed with the earlier checkpoint: {one}" for one in mixed]


def _stopped(bench: Bench, outcome: Outcome) -> Project:
    project = bench.project("validate")
    _, seconds = bench.reference("validate")
    outcome.expect(project.kill_after(bench.rng.uniform(0.5, 0.95) * seconds), [-9, 0])
    return project


@fault("mlflow-locked", "MLflow database", "locked by another program for the whole run")
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = _stopped(bench, outcome)
    if not (project.root / "mlflow.db").exists():
        outcome.expect(project.apply(), [0])
    with closing(sqlite3.connect(project.root / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        outcome.expect(project.apply(), [4], "locked")
    bench.finish(project, outcome)


@fault("mlflow-busy", "MLflow database", "locked by another program for 3 s at a time", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("mine")
    bench.reference("mine")
    process = project.start("apply", "spec.yaml")
    while not (project.root / "mlflow.db").exists() and process.poll() is None:
        time.sleep(0.02)
    with closing(sqlite3.connect(project.root / "mlflow.db", isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout = 10000")
        for _ in range(2):
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(3)
            other.execute("ROLLBACK")
            time.sleep(0.3)
    out, err = process.communicate(timeout=PATIENCE)
    outcome.expect(Result(process.returncode or 0, out, err, 0), [0, 4])
    bench.finish(project, outcome)


@fault("mlflow-gone", "MLflow database", "removed after a stop or while the run writes", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    if number % 2:
        project = _stopped(bench, outcome)
        for path in project.root.glob("mlflow.db*"):
            path.unlink()
    else:
        project = bench.project("mine")
        _, seconds = bench.reference("mine")
        process = project.start("apply", "spec.yaml")
        time.sleep(bench.rng.uniform(0.4, 0.9) * seconds)
        (project.root / "mlflow.db").unlink(missing_ok=True)
        out, err = process.communicate(timeout=PATIENCE)
        outcome.expect(Result(process.returncode or 0, out, err, 0), [0, 4])
    bench.finish(project, outcome, sync=True)


@fault("mlflow-empty", "MLflow database", "empty")
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = _stopped(bench, outcome)
    (project.root / "mlflow.db").write_bytes(b"")
    bench.finish(project, outcome, sync=True)


@fault("mlflow-damaged", "MLflow database", "overwritten in part, or not a database", rounds=3)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = bench.project("validate")
    bench.reference("validate")
    outcome.expect(project.apply(), [0])
    path = project.root / "mlflow.db"
    data = bytearray(path.read_bytes())
    noise = bench.rng.randbytes(4096)
    place = (0, 4096, bench.rng.randrange(8192, len(data) - 4096))[number % 3]
    data[place : place + 4096] = noise
    path.write_bytes(data)
    outcome.expect(project.apply(words=["--fresh"]), [0, 1, 4])
    for file in project.root.glob("mlflow.db*"):  # as the message says
        file.rename(file.with_name(f"away-{file.name}"))
    outcome.expect(project.run("sync"), [0])
    newest = [record for record in project.runs() if record.status == "FINISHED"]
    outcome.require(bool(newest), "the finished run is gone")
    for record in newest:
        outcome.objections += differences(bench.reference("validate")[0], facts_of(record))


def _revision(project: Project, revision: str | None = None) -> str:
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store, store:
        (before,) = store.execute("SELECT version_num FROM alembic_version").fetchone()
        if revision:
            store.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    return str(before)


@fault("mlflow-version", "MLflow database", "of an older and of a newer version", rounds=2)
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = _stopped(bench, outcome)
    if not (project.root / "mlflow.db").exists():
        outcome.expect(project.kill_after(2), [0, -9])
    older, newer = "bd07f7e963c5", "ffffffffffff"
    before = _revision(project, newer if number % 2 else older)
    outcome.expect(project.apply(), [4], "schema|revision|upgrade")
    _revision(project, before)
    bench.finish(project, outcome)


@fault("mlflow-upgraded", "MLflow", "replaced by another version: the database is copied first")
def _(bench: Bench, outcome: Outcome, number: int) -> None:
    project = _stopped(bench, outcome)
    if not (project.root / "mlflow.db").exists():
        outcome.expect(project.apply(), [0])
    outcome.expect(project.apply({"kind": "other_mlflow", "version": "3.99.0"}), [0])
    copy = project.root / "mlflow.db.before-3.99.0"
    outcome.require(copy.exists(), "the database was not copied")
    bench.finish(project, outcome)
