"""Tries changed input of every kind, and exits with 1 if glitchrun handled any of it badly.

python -m tools.fuzz                          everything, in about an hour
python -m tools.fuzz --examples 200           200 inputs of each kind
python -m tools.fuzz --minutes 3              what three minutes allow of each kind
python -m tools.fuzz --only gguf --seed 7     one kind, other inputs
python -m tools.fuzz --only gguf --first 41 --examples 1    one input again
python -m tools.fuzz --write docs/reliability.md            also puts the counts into the table
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.support.config_fuzz import Hang, within
from tools import pages
from tools.fuzz.targets import TARGETS

_MEMORY = 1 << 30
"""Bytes that one input may add to the memory of the process."""
_HEADS = (
    "kind", "full form", "tried", "accepted", "refused", "findings", "slowest, s of CPU",
    "seed, inputs", "date", "commit",
)  # fmt: skip


def main(words: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parsed(words)
    names = [name for name in TARGETS if not options.only or name in options.only.split(",")]
    if not names:
        print(f"unknown: {options.only}; there are: {', '.join(TARGETS)}")
        return 2
    findings = 0
    for name in names:
        outcomes, slowest = _tries(name, options)
        findings += outcomes["FINDING"]
        if options.write:
            _write(options.write, name, outcomes, slowest, options)
    return int(bool(findings))


def _tries(name: str, options: argparse.Namespace) -> tuple[Counter[str], float]:
    """Tries the inputs of one kind; returns what came of them, and the seconds of the slowest."""
    target = TARGETS[name]
    count = target.examples if options.examples is None else options.examples
    began = time.monotonic()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(options.first, options.first + count):
        if options.minutes and time.monotonic() - began > 60 * options.minutes:
            break
        used = time.process_time()
        outcomes[_try(name, options.seed, number, options.keep)] += 1
        slowest = max(slowest, time.process_time() - used)
    shown = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
    print(
        f"{name}: {target.what}: {shown}; {time.monotonic() - began:.0f} s, slowest "
        f"{slowest:.1f} s of CPU",
        flush=True,
    )
    return outcomes, slowest


def _write(
    path: Path, name: str, outcomes: Counter[str], slowest: float, options: argparse.Namespace
) -> None:
    """Puts the counts of a kind into the table of a page; other kinds stay as they are."""
    counts = [outcomes.total(), outcomes["accepted"], outcomes["refused"], outcomes["FINDING"]]
    inputs = f"{options.first:,} to {options.first + outcomes.total() - 1:,}"
    cells = [
        f"`{name}`: {TARGETS[name].what}",
        f"{TARGETS[name].examples:,}",
        *(f"{count:,}" for count in counts),
        f"{slowest:.1f}",
        f"{options.seed}, {inputs}",
        pages.when(),
        pages.commit(),
    ]
    found = {**pages.rows(path, "fuzz"), name: f"| {' | '.join(cells)} |"}
    kept = {kind: found.get(kind, _not_run(kind)) for kind in TARGETS}
    said = f"Last written {pages.when()} on {pages.where()}."
    pages.replace(path, "fuzz", [said, "", *pages.table(_HEADS, kept)])


def _not_run(name: str) -> str:
    return (
        f"| `{name}`: {TARGETS[name].what} | {TARGETS[name].examples:,} | 0 | | | | | | | not run |"
    )


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help=f"some of: {', '.join(TARGETS)}")
    parser.add_argument("--examples", type=int, help="inputs of each kind; each has its own number")
    parser.add_argument("--minutes", type=float, default=0, help="bound of each kind; 0: none")
    parser.add_argument("--write", type=Path, help="the page to write the counts into")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for what went wrong"
    )
    return parser.parse_args(words)


def _try(name: str, seed: int, number: int, keep: Path) -> str:
    rng = random.Random(f"{name} {seed} {number}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        try:
            with within(TARGETS[name].seconds, of_cpu=True):
                outcome = TARGETS[name].try_one(Path(folder), rng)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if grown <= _MEMORY:
                return outcome
            print(f"{name} {number}: {grown / 2**30:.1f} GiB of memory")
        except (Exception, Hang):  # noqa: BLE001 - whatever comes is the finding
            print(f"{name} {number}:")
            traceback.print_exc(limit=-12, file=sys.stdout)
        kept = keep / f"{name}-{seed}-{number}"
        shutil.copytree(folder, kept, dirs_exist_ok=True, symlinks=True)
        print(f"    input: {kept}", flush=True)
        return "FINDING"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
