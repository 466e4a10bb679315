"""Injects every fault, prints what happened, and exits with 1 if anything did not hold.

python -m tools.torture                               all faults, in some minutes
python -m tools.torture --only kill,disk --seed 7     those named like one of these, other moments
python -m tools.torture --rounds 1                    each fault once
python -m tools.torture --write docs/reliability.md   also puts the rows into the table of a page
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tools import pages
from tools.torture import kills, machine, records  # noqa: F401 - they fill FAULTS
from tools.torture.bench import FAULTS, Bench, Outcome

_KILLS = re.compile(r"SIGKILL × (\d+)")


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
                _write(options.write, name, _row(name, results[name], options.seed))
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
    cells = [f"`{name}`", what, pages.when(), pages.commit(), str(seed), shown, state]
    return f"| {' | '.join(cells)} |"


def _not_run(name: str) -> str:
    return f"| `{name}` | {FAULTS[name].group} {FAULTS[name].what} | | | | | not run |"


def _code(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else str(code)


def _write(path: Path, name: str, row: str) -> None:
    """Puts a row into the table of a page; rows of other faults stay as they are."""
    found = {**pages.rows(path, "torture"), name: row}
    kept = {fault: found.get(fault, _not_run(fault)) for fault in FAULTS}
    run = [line for line in kept.values() if not line.endswith(" not run |")]
    killed = sum(int(count[1]) for line in run for count in _KILLS.finditer(line))
    heads = ["fault", "injected", "date", "commit", "seed", "exit codes × how often", "held"]
    said = [
        f"Last written {pages.when()} on {pages.where()}.",
        "",
        f"{len(run)} of {len(kept)} faults injected, {killed} commands ended by `kill -9`.",
        "",
    ]
    pages.replace(path, "torture", [*said, *pages.table(heads, kept)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
