"""How long a run takes: a likely time and a bound.

The likely time is the likely work of each step at the rates in `glitchrun.plan.rates`. The bound is
the largest possible work, at half the speed that earlier runs of this model measured or, without
such runs, at the speed of a slow machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.ledger.timings import PROMPT_TOKENS
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.rates import EQUIVALENT, Rate, Rates
from glitchrun.plan.weight_bytes import active_parameters
from glitchrun.plan.work import StepWork
from glitchrun.spec.strategy import Work

_MARGIN = 2
"""How much slower than measured a machine may be: its speed swung by a factor of two and more."""
_FLOPS = {"cpu": 8e9, "cuda": 3e12}
"""Smallest number of floating-point operations per second. CPU, per core: two cores reached 35 to
195 GFLOP/s with SmolLM2 in float32, and less with int8 and int4, whose weights are dequantized in
every pass. GPU: an old small card."""
_BANDWIDTH = {"cpu": 2e9, "cuda": 1e11}
"""Smallest number of bytes of weights read per second, by the whole device."""
_SUFFIX_POSITIONS = 48
"""Largest number of positions of a prompt after its shared prefix, which is computed only once."""
_RERUN_SHARE = 0.2
"""Largest share of prompts and continuations that are near-ties and run again; 2 to 12 % were
seen."""
_GRADIENT_PASSES = 3
"""Forward passes that take as long as one gradient."""
_EMPTY_RUN = 0.01
"""Seconds of a run that finds nothing to do."""
_STEP = 10.0
"""Seconds to start and finish a step, without its vocabulary."""
_ENTRY = 1e-3
"""Seconds per vocabulary entry: text, category and features took half of that."""
_PASS = 0.05
"""Seconds per pass outside matrix products, including a line of the ledger."""
_LAYER = 2e-3
"""Seconds per layer of a pass outside matrix products."""
_ITEM = 0.02
"""Seconds to prepare and read one prompt, continuation or new token; for very small models this is
nearly all of the time."""
_START = 60.0
"""Largest number of seconds to start a run and to load a model of no size."""
_LOAD = 1e8
"""Smallest number of bytes of weights loaded per second."""


@dataclass(frozen=True, slots=True)
class Duration:
    """How long a run takes, with loading its model and writing its report; in seconds."""

    likely: float | None
    """None where a step's work is unknown."""
    most: float
    start: float
    """Likely seconds to load the model and to write the report."""
    steps: Mapping[str, float]
    """Likely seconds by step, where known."""
    rate: Rate
    """The rate on which most of the likely time is based."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most seconds of the run."""
        return _EMPTY_RUN, self.most

    def to_json(self) -> dict[str, Any]:
        """The fields by name, documented in docs/plan.md."""
        return {
            "likely": self.likely,
            "most": self.most,
            "start": self.start,
            "steps": dict(self.steps),
            "basis": self.rate.basis,
            "source": self.rate.source,
            "run": self.rate.run or None,
        }


def duration(
    header: Header, memory: MemoryEstimate, work: Sequence[StepWork], rates: Rates
) -> Duration:
    """The likely and the longest duration of a run with the work of its steps."""
    start = rates.start()
    likely: dict[str, float] = {}
    weight: dict[Rate, float] = {start: 0.0}
    most = _MARGIN * start.seconds if start.run else _START + memory.weight_bytes / _LOAD
    for step in work:
        if step.likely is not None:
            parts = [(rates.of(kind), amount) for kind, amount in _units(step, step.likely)]
            for rate, amount in parts:
                weight[rate] = weight.get(rate, 0.0) + rate.seconds * amount
            likely[step.step] = sum(rate.seconds * amount for rate, amount in parts)
        most += max(_most(header, memory, step, rates), likely.get(step.step, 0.0))
    unknown = any(step.likely is None for step in work)
    return Duration(
        likely=None if unknown else start.seconds + sum(likely.values()),
        most=most,
        start=start.seconds,
        steps=likely,
        rate=max(weight, key=lambda rate: weight[rate]),
    )


def _units(step: StepWork, work: Work) -> Iterator[tuple[str, int]]:
    """Kinds and amounts of work."""
    yield ("score" if "score" in step.passes else "verify"), work.usual_prompts
    yield "screen", work.screens
    yield "gradient", work.gradients
    sampled = work.new_tokens + PROMPT_TOKENS * work.continuations
    yield ("answer" if "answer" in step.passes else "sample"), sampled


def _most(header: Header, memory: MemoryEstimate, step: StepWork, rates: Rates) -> float:
    """Largest number of seconds of a step: at measured rates if there are any for all of its
    work."""
    parts = [(rates.of(kind), amount) for kind, amount in _units(step, step) if amount]
    if parts and all(rate.exact for rate, _ in parts):
        return _STEP + _MARGIN * sum(rate.seconds * amount for rate, amount in parts)
    return _slow(header, memory, step)


def _slow(header: Header, estimate: MemoryEstimate, work: StepWork) -> float:
    """Largest number of seconds of one step: the longer of computing and reading weights, and the
    overhead."""
    kind = "cuda" if estimate.device.startswith("cuda") else "cpu"
    reruns = 1 + _RERUN_SHARE
    generated = work.new_tokens * reruns
    gradients = work.gradients * _GRADIENT_PASSES
    screens = work.screens * EQUIVALENT["screen"]
    prompts = (work.usual_prompts + work.continuations) * reruns + gradients + screens
    passes = (prompts + generated) / max(1, estimate.batch) + gradients + 1
    speed = _FLOPS[kind] * (_cores() if kind == "cpu" else 1)
    compute = 2 * active_parameters(header) * (prompts * _SUFFIX_POSITIONS + generated) / speed
    reading = passes * estimate.weight_bytes / _BANDWIDTH[kind]
    overhead = passes * (_PASS + _LAYER * header.dims.num_layers) + _ITEM * (prompts + generated)
    return max(compute, reading) + overhead + _STEP + _ENTRY * header.vocab


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
