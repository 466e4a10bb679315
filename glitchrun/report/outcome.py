"""How a run ended as a whole: from its status, its gates and its checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.ledger.record import GateResult, RunRecord, status_word
from glitchrun.report.formatting import counted, figure, percent, written
from glitchrun.spec.strategy import STRATEGIES

_TONES = {"FINISHED": "pass", "FAILED": "fail", "DAMAGED": "fail"}
"""Tones by status; runs with another status have not ended."""

ROLES = {"pass": "good", "fail": "bad", "inconclusive": "warning"}
"""Role of each tone in `terminal.styled`."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended as a whole."""

    tone: str
    """`fail` for a failed run, gate or check, `inconclusive` for a run that has not ended or an
    inconclusive gate, else `pass`."""
    words: str
    """The status and what went wrong: `FINISHED, 1 of 2 gates failed`."""
    reasons: tuple[str, ...]
    """A sentence for each gate that did not pass. The headline names the checks."""


def outcome(record: RunRecord) -> RunOutcome:
    """How a run ended as a whole."""
    checks = [row["outcome"] for _, row in check_rows(record)]
    failed_checks = checks.count("fail")
    failed, unclear = (_with_outcome(record, word) for word in ("fail", "inconclusive"))
    tone = _TONES.get(record.status, "inconclusive")
    if failed or failed_checks:
        tone = "fail"
    elif unclear and tone == "pass":
        tone = "inconclusive"
    gates = counted(len(record.gates), "gate")
    words = [
        status_word(record.status),
        *([f"{len(failed)} of {gates} failed"] if failed else []),
        *([f"{len(unclear)} of {gates} inconclusive"] if unclear else []),
        *([f"{failed_checks} of {counted(len(checks), 'check')} failed"] if failed_checks else []),
    ]
    reasons = map(_reason, (*failed, *unclear))
    return RunOutcome(tone, ", ".join(words), tuple(reasons))


def gates_outcome(record: RunRecord) -> str:
    """pass, fail or inconclusive over all gates; empty if none was evaluated."""
    found = {gate.outcome for gate in record.gates}
    return next((word for word in ("fail", "inconclusive", "pass") if word in found), "")


def gate_rule(gate: GateResult) -> str:
    """The condition of a gate: `mine/recall_low >= 0.8`; with a baseline also where the limit comes
    from: `asr/confirmed <= 11.55 (11 in the baseline, tolerance 5 %)`."""
    if gate.baseline is None:
        return f"{gate.metric} {gate.op} {written(gate.value or 0.0)}"
    if gate.baseline_value is None or gate.value is None:
        return f"{gate.metric} {gate.op} the baseline"
    tolerance = f", tolerance {percent(gate.tolerance)}" if gate.tolerance else ""
    limit = f"{gate.metric} {gate.op} {written(gate.value)}"
    return f"{limit} ({written(gate.baseline_value)} in the baseline{tolerance})"


def gate_evidence(gate: GateResult) -> str:
    """The baseline of a gate and the test against it, in sentences; empty without a baseline."""
    if gate.baseline is None:
        return ""
    test = f" {gate.test[:1].upper()}{gate.test[1:]}" if gate.test else ""
    return f"Baseline: {gate.baseline}.{test}"


def _with_outcome(record: RunRecord, word: str) -> list[GateResult]:
    return [gate for gate in record.gates if gate.outcome == word]


def _reason(gate: GateResult) -> str:
    name = f"Gate {gate_rule(gate)}"
    n = "" if gate.n is None else f", n = {gate.n:,}"
    if gate.outcome == "fail":
        return f"{name} failed: observed {figure(gate.observed)}{n}."
    if gate.baseline is not None and gate.baseline_value is None:
        return f"{name} is inconclusive: the metric has no value in {gate.baseline}."
    if gate.observed is None:
        return f"{name} is inconclusive: the metric has no value."
    return f"{name} is inconclusive: observed {figure(gate.observed)}{n}, fewer than its min_n."


def check_rows(record: RunRecord) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Step and row of every check (`Strategy.test_cases`); a row has check, outcome and reason."""
    for step in record.steps:
        strategy = STRATEGIES.get(step.strategy)
        if strategy is None or strategy.test_cases is None:
            continue
        for timed in step.batches:
            for entry in timed.batch.entries:
                if entry.table == strategy.test_cases:
                    yield step.id, entry.cells
