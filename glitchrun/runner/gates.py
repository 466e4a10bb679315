"""The gates, which decide whether a run passes or fails as a whole.

`with_baselines` finds the earlier runs that gates name, when a plan is made; `evaluate` compares
the metrics of the finished run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glitchrun.behaviour.significance import McNemar, adjusted
from glitchrun.errors import ExitCode, GlitchrunError, PreflightError, RunError, UsageError
from glitchrun.ledger import RunRecord, read_run
from glitchrun.ledger.record import GateResult, Metric, status_word
from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.plan.gates import PlannedGate
from glitchrun.report.formatting import counted
from glitchrun.report.regression import described_test, paired_test
from glitchrun.runner.lookup import Baselines
from glitchrun.spec.types import Gate

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def with_baselines(plan: Plan, root: Path) -> Plan:
    """The plan with the gates of its runs, each baseline found and fixed.

    Raises:
        PreflightError: a baseline does not exist, is not finished or lacks the metric; the message
            begins with the place of the gate.
    """
    known = Baselines(root)
    runs = tuple(replace(run, gates=tuple(_planned(run, known))) for run in plan.runs)
    return replace(plan, runs=runs)


def _planned(run: PlannedRun, known: Baselines) -> list[PlannedGate]:
    spec = run.cell.spec
    origins = [str((spec.origins or {}).get(f"gates[{i}]", "")) for i in range(len(spec.gates))]
    return [
        _with_limit(gate, origin, run, known)
        if gate.baseline is not None
        else PlannedGate(gate, origin, gate.value)
        for gate, origin in zip(spec.gates, origins, strict=True)
    ]


def _with_limit(gate: Gate, origin: str, run: PlannedRun, known: Baselines) -> PlannedGate:
    assert gate.baseline is not None
    try:
        record = known.find(gate.baseline, run.cell.name, run.key)
    except UsageError as error:
        raise PreflightError(f"{origin}: the baseline of this gate: {error}") from error
    if gate.metric not in record.metrics:
        names = ", ".join(record.metrics) or "none"
        raise PreflightError(
            f"{origin}: the baseline {named(record)} has no metric {gate.metric!r}; it has: {names}"
        )
    value = record.metrics[gate.metric].value
    limit = None if value is None or math.isnan(value) else _limit(gate, value)
    return PlannedGate(gate, origin, limit, named(record), value, record.folder)


def _limit(gate: Gate, value: float) -> float:
    """The value that the gate's condition allows at most, or at least."""
    allowed = gate.tolerance * abs(value)
    if gate.op in ("<", "<="):
        return value + allowed
    return value - allowed if gate.op in (">", ">=") else value


def named(record: RunRecord) -> str:
    """A run as a gate names its baseline: `EXPERIMENT · NAME KEY#N`."""
    identity = record.identity
    names = " · ".join(dict.fromkeys((identity.experiment, identity.name)))
    return f"{names} {identity.key[:12]}#{identity.attempt}"


def evaluate(gates: Sequence[PlannedGate], record: RunRecord) -> list[GateResult]:
    """The result of each gate for a finished run, with paired tests against its baselines.

    A gate whose baseline was removed or changed since the run was planned is inconclusive.
    """
    metrics = record.metrics
    baselines = [_baseline(gate) for gate in gates]
    results = [
        _undecided(result, str(baseline)) if isinstance(baseline, GlitchrunError) else result
        for result, baseline in zip(
            (_evaluate(gate, metrics.get(gate.gate.metric, Metric(None))) for gate in gates),
            baselines,
            strict=True,
        )
    ]
    tests = [
        paired_test(gate.gate.metric, baseline, record) if isinstance(baseline, RunRecord) else None
        for gate, baseline in zip(gates, baselines, strict=True)
    ]
    ps = iter(adjusted([test.p for test in tests if test is not None]))
    family = counted(sum(test is not None for test in tests), "gate") + " with a baseline"
    return [
        result if test is None else _with_test(result, test, next(ps), family)
        for result, test in zip(results, tests, strict=True)
    ]


def _baseline(gate: PlannedGate) -> RunRecord | GlitchrunError | None:
    """The baseline as it is now; the error if it cannot be compared with any more."""
    if gate.folder is None:
        return None
    try:
        record = read_run(gate.folder)
    except RunError as error:
        return error
    if record.status != "FINISHED":
        return RunError(record.damage or f"{gate.folder}: it is {status_word(record.status)} now")
    return record


def _undecided(result: GateResult, why: str) -> GateResult:
    text = f"Not decided: the baseline was removed or changed after this run began ({why})."
    return replace(result, outcome="inconclusive", test=text)


def _evaluate(planned: PlannedGate, metric: Metric) -> GateResult:
    gate = planned.gate
    return GateResult(
        metric=gate.metric,
        op=gate.op,
        value=planned.limit,
        observed=metric.value,
        n=metric.n,
        outcome=_outcome(planned, metric),
        origin=planned.origin,
        baseline=planned.baseline,
        baseline_value=planned.baseline_value,
        tolerance=gate.tolerance if planned.baseline else None,
    )


def _outcome(planned: PlannedGate, metric: Metric) -> str:
    """Inconclusive without a value or a limit, or with a value based on fewer items than the gate's
    `min_n`."""
    gate, limit = planned.gate, planned.limit
    if limit is None or metric.value is None or math.isnan(metric.value):
        return "inconclusive"
    if gate.min_n and (metric.n is None or metric.n < gate.min_n):
        return "inconclusive"
    if gate.op in ("==", "!=") and gate.tolerance:
        near = abs(metric.value - limit) <= gate.tolerance * abs(limit)
        return "pass" if near == (gate.op == "==") else "fail"
    return "pass" if _OPERATORS[gate.op](metric.value, limit) else "fail"


def _with_test(result: GateResult, test: McNemar, p: float, family: str) -> GateResult:
    return replace(result, test=described_test(test, p, family), p=test.p, p_adjusted=p)


def exit_code(results: Sequence[GateResult]) -> ExitCode:
    """The exit code of a run with these results; a failed gate outranks an inconclusive one."""
    outcomes = {result.outcome for result in results}
    if "fail" in outcomes:
        return ExitCode.GATE_FAILED
    if "inconclusive" in outcomes:
        return ExitCode.GATE_INCONCLUSIVE
    return ExitCode.DONE
