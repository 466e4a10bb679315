"""Injects every fault, prints what happened, and exits with 1 if anything did not hold.

python -m tools.torture                               all faults, in some minutes
python -m tools.torture --only kill,disk --seed 7     those named like one of these, other moments
python -m tools.torture --rounds 1                    each fault once
python -m tools.torture --write docs/reliability.md   also puts the rows into the table of a page
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil

from tools.torture import kills, machine, records  # noqa: F401 - they fill FAULTS
from tools.torture.bench import FAULTS, Bench, Outcome

_KILLS = re.compile(r"SIGKILL × (\d+)")
_BEGIN, _END = "<!-- torture: begin -->", "<!-- torture: end -->"


def main(words: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parsed(words)
    parts = options.only.split(",")
    names = [name for name in FAULTS if any(part in name for part in parts)]
    if not names:
        print(f"no fault has {options.only!r} in its name; there are: {', '.join(FAULTS)}")
        return 2
    began = time.monotonic()
    results: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), options.seed)
        for name in names:
            results[name] = _rounds(bench, name, options.rounds)
            if options.write:
                _write(options.write, _row(name, results[name], options.seed))
    failed = sum(bool(one.objections) for outcomes in results.values() for one in outcomes)
    rounds = sum(len(outcomes) for outcomes in results.values())
    minutes = (time.monotonic() - began) / 60
    print(f"{rounds} rounds of {len(names)} faults in {minutes:.1f} minutes, {failed} failed")
    return int(bool(failed))


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tools.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--only", default="", help="parts of the names of faults: kill,disk")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each fault; 0: its own")
    parser.add_argument("--write", type=Path, help="the page to write the table into")
    return parser.parse_args(words)


def _rounds(bench: Bench, name: str, rounds: int) -> list[Outcome]:
    outcomes = []
    for number in range(rounds or FAULTS[name].rounds):
        outcome = Outcome()
        try:
            FAULTS[name].inject(bench, outcome, number)
        except Exception as error:  # noqa: BLE001 - one fault must not end the others
            traceback.print_exc()
            outcome.objections.append(f"{type(error).__name__}: {error}")
        outcomes.append(outcome)
        state = (
            "FAILED"
            if outcome.objections
            else f"skipped: {outcome.skipped}" * bool(outcome.skipped) or "held"
        )
        print(f"{name} {number + 1}: {state} {outcome.codes}", flush=True)
        for objection in outcome.objections:
            print(f"    {objection}", flush=True)
    return outcomes


def _row(name: str, outcomes: list[Outcome], seed: int) -> str:
    codes = Counter(code for one in outcomes for code in one.codes)
    shown = ", ".join(f"{_code(code)} × {count}" for code, count in sorted(codes.items()))
    skipped = next((one.skipped for one in outcomes if one.skipped), "")
    held = sum(not one.objections for one in outcomes)
    state = f"not injected: {skipped}" if skipped and not shown else f"{held} of {len(outcomes)}"
    what = f"{FAULTS[name].group} {FAULTS[name].what}"
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"| `{name}` | {what} | {when} | {_commit()} | {seed} | {shown} | {state} |"


def _not_run(name: str) -> str:
    return f"| `{name}` | {FAULTS[name].group} {FAULTS[name].what} | | | | | not run |"


@cache
def _commit() -> str:
    """The commit of the source, with a `+` if files differ from it; empty outside a clone."""
    words = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _code(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else str(code)


def _write(path: Path, row: str) -> None:
    """Puts a row into the table of a page; rows of other faults stay as they are."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    table, _, after = rest.partition(_END)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line[:3] == "| `"}
    rows[row.split("|")[1].strip()] = row
    kept = [rows.get(f"`{name}`", _not_run(name)) for name in FAULTS]
    run = [line for line in kept if not line.endswith(" not run |")]
    killed = sum(int(found[1]) for line in kept for found in _KILLS.finditer(line))
    memory = psutil.virtual_memory().total / 2**30
    where = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {platform.system()} {platform.release()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Python "
        f"{platform.python_version()}, torch {version('torch')}, MLflow {version('mlflow')}"
    )
    written = [
        _BEGIN,
        f"Last written {where}.",
        "",
        f"{len(run)} of {len(kept)} faults injected, {killed} commands ended by `kill -9`.",
        "",
        "| fault | injected | date | commit | seed | exit codes × how often | held |",
        "|---|---|---|---|---|---|---|",
        *kept,
        _END,
    ]
    path.write_text(before + "\n".join(written) + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
