"""Records for the report's tests: what no real run would hold all at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from glitchrun.events import (
    Batch,
    Entry,
    ProbeResult,
    Sampled,
    Screened,
    Token,
    TokenFact,
    Verified,
)
from glitchrun.ledger.record import RunRecord, StepRecord, TimedBatch
from tests.support.records import write_run


def verified(
    token_id: int,
    *,
    text: str | None = None,
    p: float = 0.9,
    passed: bool = True,
    glitch: bool = False,
    category: str = "normal",
    norm: float = 3.0,
) -> Verified:
    """A verdict by the probe `repeat`; a pass unless said otherwise."""
    token = Token(token_id, text or f" t{token_id}", text or f"Ġt{token_id}", category, norm)
    rank = 1 if passed else 2
    result = ProbeResult(p, rank, 1.0, token_id, 0.0, passed, "float32", True)
    return Verified(token, {"repeat": result}, glitch, "other" if glitch else None)


def sampled(token_id: int, failures: int, attempts: int = 5, *, text: str | None = None) -> Sampled:
    """An estimate; confirmed from 80 % on. The bounds are not Wilson's."""
    token = Token(token_id, text or f" t{token_id}", text or f"Ġt{token_id}", "normal", 3.0)
    outcomes = tuple(place < failures for place in range(attempts))
    asr = failures / attempts
    return Sampled(token, outcomes, asr, asr / 2, (1 + asr) / 2, asr >= 0.8)


def step(
    name: str, strategy: str, *facts: TokenFact | Entry | Screened, **counters: int
) -> StepRecord:
    """A finished step with all its facts in one batch, which took a second."""
    batch = Batch(tuple(facts), len(facts), len(facts), 1.0, counters)
    return StepRecord(name, strategy, {}, 0, 1000, (TimedBatch(1000, batch),))


def run_of(folder: Path, *steps: StepRecord, status: str = "FINISHED") -> RunRecord:
    """A run with just these steps, its metrics and gates left out."""
    return replace(write_run(folder), steps=steps, status=status, gates=(), notes={})
