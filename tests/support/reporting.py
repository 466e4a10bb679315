"""Records for the tests of the report, with combinations of facts that no real run has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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
from glitchrun.report.token_files import token_lines
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
    """A verdict by the probe `repeat`; by default the token passes."""
    token = Token(token_id, text or f" t{token_id}", text or f"Ġt{token_id}", category, norm)
    rank = 1 if passed else 2
    result = ProbeResult(p, rank, 1.0, token_id, 0.0, passed, "float32", True)
    return Verified(token, {"repeat": result}, glitch, "other" if glitch else None)


def sampled(token_id: int, failures: int, attempts: int = 5, *, text: str | None = None) -> Sampled:
    """Sampled attempts; confirmed from 80 % failures on. The bounds are not Wilson's."""
    token = Token(token_id, text or f" t{token_id}", text or f"Ġt{token_id}", "normal", 3.0)
    outcomes = tuple(place < failures for place in range(attempts))
    asr = failures / attempts
    return Sampled(token, outcomes, asr, asr / 2, (1 + asr) / 2, asr >= 0.8)


def step(
    name: str, strategy: str, *facts: TokenFact | Entry | Screened, **counters: int
) -> StepRecord:
    """A finished step with all facts in one batch of one second."""
    batch = Batch(tuple(facts), len(facts), len(facts), 1.0, counters)
    return StepRecord(name, strategy, {}, 0, 1000, (TimedBatch(1000, batch),))


def run_of(folder: Path, *steps: StepRecord, status: str = "FINISHED") -> RunRecord:
    """A run with these steps, without metrics and gates."""
    return replace(write_run(folder), steps=steps, status=status, gates=(), notes={})


def rows(record: RunRecord) -> list[dict[str, Any]]:
    """The lines of tokens.jsonl."""
    return list(token_lines(record))
