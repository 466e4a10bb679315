"""Evaluates the gates, which decide whether a run passes or fails as a whole."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

from glitchrun.errors import ExitCode
from glitchrun.ledger.record import GateResult, Metric
from glitchrun.spec.types import Gate, Origin

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def evaluate(
    gates: Sequence[Gate], metrics: Mapping[str, Metric], origins: Mapping[str, Origin]
) -> list[GateResult]:
    """The result of each gate for the metrics of a finished run.

    Args:
        gates: The gates of the spec.
        metrics: Metrics by their full name, such as `mine/glitch`.
        origins: Origins of the spec's values, by path.
    """
    return [
        _evaluate(gate, metrics.get(gate.metric, Metric(None)), origins.get(f"gates[{i}]"))
        for i, gate in enumerate(gates)
    ]


def _evaluate(gate: Gate, metric: Metric, origin: Origin | None) -> GateResult:
    return GateResult(
        metric=gate.metric,
        op=gate.op,
        value=gate.value,
        observed=metric.value,
        n=metric.n,
        outcome=_outcome(gate, metric),
        origin=str(origin) if origin else "",
    )


def _outcome(gate: Gate, metric: Metric) -> str:
    """Inconclusive without a value, or with one based on fewer items than the gate's `min_n`."""
    if metric.value is None or math.isnan(metric.value):
        return "inconclusive"
    if gate.min_n and (metric.n is None or metric.n < gate.min_n):
        return "inconclusive"
    return "pass" if _OPERATORS[gate.op](metric.value, gate.value) else "fail"


def exit_code(results: Sequence[GateResult]) -> ExitCode:
    """The exit code of a run with these results; a failed gate outranks an inconclusive one."""
    outcomes = {result.outcome for result in results}
    if "fail" in outcomes:
        return ExitCode.GATE_FAILED
    if "inconclusive" in outcomes:
        return ExitCode.GATE_INCONCLUSIVE
    return ExitCode.DONE
