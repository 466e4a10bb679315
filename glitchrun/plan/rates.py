"""The seconds that a model takes for each kind of work: measured by earlier runs, or estimated.

The first of these that is available decides:

1. runs of this model with this quantization on this machine;
2. runs of this model with another quantization;
3. runs of a model between 1/30 and 30 times as large, scaled by the number of parameters;
4. a product of matrices timed now, on a CPU;
5. a speed assumed for a GPU.

A kind of work that those runs lack is estimated from the kind that they did longest.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from glitchrun.ledger.timings import Timing
from glitchrun.spec.probes import USUAL_POSITIONS

Basis = Literal["model", "quantization", "other model", "processor", "assumed"]

EQUIVALENT: Mapping[str, float] = {
    "verify": 1.0,
    "screen": 1 / 6.6,
    "sample": 1 / 8,
    "answer": 1 / 8,
    "gradient": 20.0,
    "score": 3.0,
}
"""Time of a unit of each kind of work, relative to a verified prompt. On SmolLM2 and two CPU cores
a screened token takes 1/6.6, a sampled one 1/8 to 1/10, a gradient 15 to 35, a scored sequence
2 to 4."""
_OVERHEAD = {"cpu": 2e-3, "cuda": 1e-5}
"""Seconds of a verified prompt outside matrix products: nearly all for very small models."""
_RANGE = 30
"""Largest ratio between two models' parameters by which measured rates are scaled."""
_POOLED = 3
"""Runs whose rates are averaged: the latest ones."""
_SHARE_OF_PRODUCTS = 0.7
"""Speed of verification relative to its matrix products alone: 66 to 90 % (docs/engine.md)."""
_CPU_FLOPS = 4e10
"""Floating-point operations per second assumed for a CPU that cannot be measured."""
_GPU_FLOPS = 1e14
"""Floating-point operations per second assumed for a GPU; an H100 reached 2.5e14 to 6e14."""
_START = 15.0
"""Seconds to load a model of no size and to write a report."""
_ENTRY = 2e-4
"""Seconds per vocabulary entry to start: texts and categories."""
_LOAD = 0.5e9
"""Bytes of weights that are loaded per second."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the time of a model's work depends on."""

    fingerprint: str
    quantization: str
    kind: str
    """Kind of device: cpu or cuda."""
    parameters: float
    """Parameters that one position is multiplied with."""
    weight_bytes: int
    vocab: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of a unit of work, and their source."""

    seconds: float
    basis: Basis
    run: str = ""
    """Key of the latest run that measured it; empty if none did."""
    exact: bool = False
    """Whether it was measured for this kind of work of this model, with its quantization."""

    @property
    def source(self) -> str:
        """The source, in a few words for the user."""
        match self.basis:
            case "model":
                return f"rates measured in run {self.run[:8]}"
            case "quantization":
                return f"rates of another quantization, measured in run {self.run[:8]}"
            case "other model":
                return f"rates of another model, measured in run {self.run[:8]}"
            case "processor":
                return "estimated from the speed of this CPU"
        return "at speeds that are assumed; no run has measured them yet"


@cache
def product_flops() -> float | None:
    """Floating-point operations per second of this CPU in float32; None without numpy.

    The best of five products of the shape of SmolLM2's layers, which together take about 50 ms.
    """
    if importlib.util.find_spec("numpy") is None:
        return None
    import numpy as np

    rows, inner, columns = 1088, 576, 1536
    left, right = (np.ones(shape, np.float32) for shape in ((rows, inner), (inner, columns)))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return float(2 * rows * inner * columns / min(times))


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of one model."""

    model: ModelSize
    timings: Sequence[Timing] = ()
    """Of all earlier runs on this machine."""
    flops: Callable[[], float | None] = product_flops
    """Measures the floating-point operations per second of the CPU; None if it cannot."""

    def of(self, kind: str) -> Rate:
        """The rate of a kind of work in `EQUIVALENT`."""
        for basis, candidates, scale in self._levels():
            if same := [one for one in candidates if one.kind == kind]:
                seconds, run = _pooled(same)
                return Rate(scale(kind, seconds, same), basis, run, exact=basis == "model")
            others = [one for one in candidates if one.kind in EQUIVALENT]
            if others:
                longest = max(others, key=lambda one: one.seconds).kind
                same = [one for one in others if one.kind == longest]
                seconds, run = _pooled(same)
                seconds = scale(longest, seconds, same) * EQUIVALENT[kind] / EQUIVALENT[longest]
                return Rate(seconds, basis, run)
        seconds, basis = self._unmeasured()
        return Rate(seconds * EQUIVALENT[kind], basis)

    def start(self) -> Rate:
        """Seconds to start the run, load the model, and write the report."""
        starts = [one for one in self._of_model() if one.kind == "start"]
        if starts:
            seconds, run = _pooled(starts)
            return Rate(seconds, "model", run)
        loading = self.model.weight_bytes / _LOAD
        return Rate(_START + loading + _ENTRY * self.model.vocab, "assumed")

    def _of_model(self) -> list[Timing]:
        model = self.model
        return [
            one
            for one in self.timings
            if one.device == model.kind and one.fingerprint == model.fingerprint
        ]

    def _levels(self) -> list[tuple[Basis, list[Timing], Callable[..., float]]]:
        """Timings of each level of the module's docstring, and how they are scaled."""

        def unscaled(kind: str, seconds: float, timings: Sequence[Timing]) -> float:
            return seconds

        own, model = self._of_model(), self.model
        same = [one for one in own if one.quantization == model.quantization]
        others = [
            one
            for one in self.timings
            if one.device == model.kind
            and one.parameters
            and model.parameters
            and 1 / _RANGE <= model.parameters / one.parameters <= _RANGE
        ]
        levels: list[tuple[Basis, list[Timing], Callable[..., float]]] = [
            ("model", same, unscaled),
            ("quantization", own, unscaled),
            ("other model", others, self._scaled),
        ]
        return levels

    def _scaled(self, kind: str, seconds: float, timings: Sequence[Timing]) -> float:
        """Seconds of another model's unit of work, for this model."""
        fixed = min(seconds, _OVERHEAD[self.model.kind] * EQUIVALENT[kind])
        parameters = [one.parameters for one in timings if one.parameters]
        ratio = self.model.parameters * len(parameters) / sum(parameters)
        return fixed + (seconds - fixed) * ratio

    def _unmeasured(self) -> tuple[float, Basis]:
        """Seconds of a verified prompt, where no run on this machine helps."""
        kind = self.model.kind
        measured = self.flops() if kind == "cpu" else None
        speed = measured or (_GPU_FLOPS if kind == "cuda" else _CPU_FLOPS)
        compute = 2 * self.model.parameters * USUAL_POSITIONS / (_SHARE_OF_PRODUCTS * speed)
        return compute + _OVERHEAD[kind], "processor" if measured else "assumed"


def _pooled(timings: Sequence[Timing]) -> tuple[float, str]:
    """Seconds of a unit of work over the latest runs, and the key of the latest one."""
    latest = sorted(timings, key=lambda one: one.at)[-_POOLED:]
    seconds = sum(one.seconds for one in latest) / sum(one.amount for one in latest)
    return seconds, latest[-1].run
