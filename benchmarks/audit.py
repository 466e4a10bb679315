"""Measures what a cascade's audit costs, and how often its bounds on recall hold.

    python benchmarks/audit.py [--vocabularies 4000] [--size 1500] [--seed 0]

No model is needed. Each synthetic vocabulary has a share of glitch tokens, a screen that separates
them to some degree, and a share of glitch tokens that the screen does not see at all. The cascade
runs on it to its end. Then the hardest case: exactly one token more is missed than the required
recall allows, at random places, so that an audit that settles without a hit is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch
from numpy.typing import NDArray

from glitchrun.events import ProbeResult, Token, Verified
from glitchrun.search.base import Scores, Space
from glitchrun.search.cascade import Cascade

CONFIDENCE = 0.95
_PROBES = {"repeat": ProbeResult(0.1, 2, 1.0, 0, 1.0, False, "float32")}


@dataclass(frozen=True)
class Outcome:
    """One cascade on one vocabulary."""

    glitches: int
    found: int
    verified: int
    audited: int
    low: float
    high: float

    @property
    def recall(self) -> float:
        return self.found / self.glitches


def vocabulary(rng: np.random.Generator, size: int) -> tuple[NDArray[np.bool_], Scores]:
    """Draws glitch tokens, 0.3 to 10 % of all, and the scores of a good to a useless screen."""
    glitch = rng.random(size) < 10 ** rng.uniform(np.log10(0.003), -1)
    unseen = rng.random(size) < rng.choice([0.0, 0.05, 0.2, 0.5])
    return glitch, scores(rng, glitch & ~unseen, rng.uniform(0, 6))


def scores(rng: np.random.Generator, glitch: NDArray[np.bool_], distance: float) -> Scores:
    """Normal scores; those of glitch tokens lie `distance` standard deviations lower."""
    log_p = rng.normal(size=len(glitch)) - distance * glitch
    return Scores(log_p, -log_p)


def run(glitch: NDArray[np.bool_], known: Scores, recall: float, seed: int) -> Outcome | None:
    """Runs a cascade to its end. None if there is no glitch token."""
    table = torch.zeros(1, 1)
    space = Space(
        torch.arange(len(glitch)), table, table, None,  # type: ignore[arg-type]
        seed, lambda token_id: (0.0, table[0]), limit=0.01, scores=known,
    )  # fmt: skip
    cascade = Cascade(space, recall, CONFIDENCE)
    verified, audited = 0, 0
    found = 0
    while ids := cascade.propose(64):
        audited += len(ids) * (cascade.stage[0] == "audit")
        verified += len(ids)
        found += int(glitch[ids].sum())
        cascade.update(_verdicts(ids, glitch))
    reached = cascade.reached
    if reached is None:
        return None
    return Outcome(int(glitch.sum()), found, verified, audited, reached.low, reached.high)


def _verdicts(ids: Sequence[int], glitch: NDArray[np.bool_]) -> list[Verified]:
    return [
        Verified(Token(i, "x", "x", "normal", 1.0), _PROBES, bool(glitch[i]), None) for i in ids
    ]


def hardest(rng: np.random.Generator, size: int, recall: float) -> tuple[NDArray[np.bool_], Scores]:
    """A screen that sees some glitch tokens perfectly, and misses one more than allowed."""
    seen = int(rng.integers(20, 80))
    missed = math.floor(seen * (1 - recall) / recall + 1e-9) + 1
    log_p = rng.normal(size=size)
    log_p[:seen] -= 20
    glitch = np.zeros(size, bool)
    glitch[:seen] = True
    glitch[seen + rng.choice(size - seen, missed, replace=False)] = True
    return glitch, Scores(log_p, -log_p)


def summary(name: str, outcomes: Sequence[Outcome], size: int) -> str:
    """One row of the table."""
    low = np.mean([o.low > o.recall + 1e-12 for o in outcomes])
    high = np.mean([o.high < o.recall - 1e-12 for o in outcomes])
    verified, audited = (
        np.mean([getattr(o, name) for o in outcomes]) / size for name in ("verified", "audited")
    )
    return (f"| {name} | {len(outcomes)} | {low:.2%} | {high:.2%} "
            f"| {verified:.1%} | {audited:.1%} |")  # fmt: skip


@click.command()
@click.option("--vocabularies", default=4000, show_default=True, type=click.IntRange(1))
@click.option("--size", default=1500, show_default=True, type=click.IntRange(100))
@click.option("--seed", default=0, show_default=True)
def main(vocabularies: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = {"mixed": lambda recall: vocabulary(rng, size),
             "hardest": lambda recall: hardest(rng, size, recall)}  # fmt: skip
    print("| vocabularies | number | lower bound too high | upper bound too low "
          "| verified | audited |\n|---|---|---|---|---|---|")  # fmt: skip
    for kind, drawn in kinds.items():
        for recall in (0.8, 0.9):
            outcomes = []
            for number in range(vocabularies // 4):
                outcome = run(*drawn(recall), recall, number)
                outcomes += [outcome] if outcome else []
            print(summary(f"{kind}, recall {recall}", outcomes, size), flush=True)


if __name__ == "__main__":
    main()
