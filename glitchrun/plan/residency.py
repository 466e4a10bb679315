"""Chooses whether a run's model stays in memory or is streamed, and states what both would need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.quantized_units import quantized_units
from glitchrun.checkpoint.stream_units import stream_units, why_not_streamable
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.duration import Duration
from glitchrun.plan.memory_estimate import MemoryEstimate, estimate, process_bytes, verdict
from glitchrun.plan.passes import Passes
from glitchrun.plan.streaming import READ_SPEED, StreamPlan, stream_plan, whole_passes
from glitchrun.plan.weight_bytes import QUANTIZED, weights
from glitchrun.plan.work import StepWork
from glitchrun.spec.strategy import STRATEGIES, Workload
from glitchrun.spec.types import Spec

_SHARE = 0.95
"""Share of the free memory that a streamed run may use."""
_START = 15.0
"""Seconds to start a run without loading weights, and to write a report."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Where the weights of a run are, and what the other choice would need."""

    chosen: str
    """`resident` or `streamed`."""
    reason: str
    """The reason, in one sentence for the user."""
    resident: MemoryEstimate
    streamed: MemoryEstimate | None
    """None where the run cannot be streamed."""
    refusal: str = ""
    """Why the run cannot be streamed."""
    stream: StreamPlan | None = None
    passes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By step, the passes over all weights, and those without the head."""

    @property
    def estimate(self) -> MemoryEstimate:
        """Memory of the choice."""
        is_streamed = self.chosen == "streamed" and self.streamed is not None
        return self.streamed if is_streamed and self.streamed else self.resident

    def refused(self, spec: Spec) -> str | None:
        """Why a spec that asks for a streamed model cannot have one, with the place; else None."""
        if spec.model.residency != "streamed" or not self.refusal:
            return None
        place = (spec.origins or {}).get("model.residency", "model.residency")
        return f"{place}: the model cannot be streamed: {self.refusal}"

    def why_blocked(self) -> str:
        """Why the run does not fit, and the remedy."""
        memory = self.estimate
        if not memory.free_bytes:
            if memory.memory_source.startswith("max_memory"):
                return f"model.{memory.memory_source}"
            return f"{memory.memory_source}; set model.device to an available device, or to auto"
        need, free = memory.total_bytes / 1e9, memory.free_bytes / 1e9
        if self.chosen == "streamed":
            return (
                f"needs {need:.2f} GB on {memory.device} even if it is streamed, but only "
                f"{free:.2f} GB are free: free memory, or use a larger device"
            )
        remedy = (
            f"lower batch_size of step {memory.step!r} to {memory.largest_batch}"
            if memory.largest_batch
            else "quantize further (model.quantization: int4), free memory, or use a larger device"
        )
        return f"needs {need:.1f} GB on {memory.device}, but only {free:.1f} GB are free: {remedy}"

    def bytes_read(self, step: str | None = None) -> int:
        """Bytes that the passes of a step read, or those of all steps.

        Passes in which near-ties are evaluated again are not counted.
        """
        assert self.stream is not None
        found = [n for name, n in self.passes.items() if step in (None, name)]
        return sum(
            whole * self.stream.pass_bytes + headless * self.stream.headless_bytes
            for whole, headless in found
        )

    def duration(self, resident: Duration) -> Duration:
        """The duration of the streamed run: reading overlaps with the same computing."""
        steps = {
            name: max(seconds, self.bytes_read(name) / READ_SPEED)
            for name, seconds in resident.steps.items()
        }
        start = min(resident.start, _START)
        likely = None if resident.likely is None else start + sum(steps.values())
        most = max(resident.most + 2 * self.bytes_read() / READ_SPEED, likely or 0.0)
        return replace(resident, likely=likely, most=most, start=start, steps=steps)

    def to_json(self, times: Mapping[str, Duration]) -> dict[str, Any]:
        """Both residencies as data, see `Plan.to_json`."""

        def one(name: str, found: MemoryEstimate) -> dict[str, Any]:
            likely = times[name].likely if name in times else None
            return {"bytes": found.total_bytes, "verdict": found.verdict, "seconds": likely}

        streamed = None
        if self.streamed is not None and self.stream is not None:
            streamed = {
                **one("streamed", self.streamed),
                **self.stream.to_json(),
                "passes": {name: sum(count) for name, count in self.passes.items()},
                "bytes_read": self.bytes_read(),
            }
        return {
            "chosen": self.chosen,
            "reason": self.reason,
            "resident": one("resident", self.resident),
            "streamed": streamed,
            "refusal": self.refusal or None,
        }


def choose(
    spec: Spec,
    header: Header,
    device: DeviceMemory,
    loads: Sequence[Workload],
    work: Sequence[StepWork],
    positions: tuple[int, int] | None,
) -> Residency:
    """Returns the residency of a run.

    Args:
        spec: The spec; `model.residency` decides unless it is `auto`.
        header: The model's checkpoint.
        device: Where the model would be placed.
        loads: The passes of the run's steps.
        work: The work of its steps.
        positions: The most positions of a prompt's shared prefix, and of what follows it; None
            where the template does not tell.
    """
    wanted, quantization = spec.model.residency, spec.model.quantization
    resident = estimate(header, quantization, loads, device)
    refusal = _refusal(spec, header)
    if refusal:
        reason = "model.residency asks for it" if wanted == "resident" else "it cannot be streamed"
        return Residency("resident", reason, resident, None, refusal)
    streamed, plan, passes = _streamed(spec, header, device, loads, work, positions)
    chosen, reason = wanted, "model.residency asks for it"
    if wanted == "auto":
        # A batch that is too large is for the user to lower; it does not make the model slow.
        fits = resident.verdict != "no" or resident.largest_batch > 0 or streamed.verdict == "no"
        chosen = "resident" if fits else "streamed"
        reason = "the model fits" if fits else "the model does not fit into the free memory"
    if header.format == "gguf" and chosen == "streamed":
        whole = sum(4 * info.numel for info in header.tensors.values()) / 1e9
        reason += f"; the first run converts the file, which takes {whole:.1f} GB of memory once"
    return Residency(chosen, reason, resident, streamed, "", plan, passes)


def _refusal(spec: Spec, header: Header) -> str:
    if spec.model.max_memory:
        return "model.max_memory spreads the model over several devices"
    for step in spec.steps:
        if reason := STRATEGIES[step.strategy].needs_resident(step.params):
            return f"step {step.id!r} needs a resident model: {reason}"
    return why_not_streamable(header) or ""


def _streamed(
    spec: Spec,
    header: Header,
    device: DeviceMemory,
    loads: Sequence[Workload],
    work: Sequence[StepWork],
    positions: tuple[int, int] | None,
) -> tuple[MemoryEstimate, StreamPlan, dict[str, tuple[int, int]]]:
    """Memory, sizes and passes of the streamed run."""
    quantization = spec.model.quantization
    process = process_bytes(header, device.kind, streamed=True)
    unknown = any(one.tokens is None for one in work)
    verified = max((one.tokens or 0 for one in work), default=0)
    verified = max((verified, *(sum(load.texts) for load in loads)))
    screened = max((one.screens for one in work), default=0)
    units = stream_units(header)
    if spec.model.keep_quantized and quantization in QUANTIZED and not header.prequantized:
        units = quantized_units(units, quantization)
    plan = stream_plan(
        header,
        quantization,
        units,
        device.kind,
        free=max(0, int(_SHARE * device.free) - process),
        tokens=(None if unknown else verified, screened),
        generated=max((1 + count for load in loads for count in load.generated), default=0),
        **({"positions": positions} if positions else {}),
    )
    held = weights(header, quantization, device.kind, device.capability)
    sizes = Passes(header, held, device.kind)
    room = device.free - process - plan.capacity
    grown = [sizes.buffers(load, sizes.rows(load, room)) for load in loads if load.grows]
    cache = max((one.kv_cache for one in grown), default=0)
    rows = max((one.activations for one in grown), default=0)
    activations = max(plan.activation_bytes + plan.scratch_bytes, rows + plan.scratch_bytes)
    total = process + plan.capacity + activations + cache
    by_step = {load.step: load for load in loads}
    passes = {
        one.step: whole_passes(by_step[one.step], plan, one.likely or one)
        for one in work
        if one.step in by_step
    }
    base = estimate(header, quantization, loads, device)
    found = replace(
        base,
        loading_bytes=0,
        kv_cache_bytes=cache,
        activation_bytes=activations,
        float32_bytes=0,
        gradient_bytes=0,
        runtime_bytes=process,
        total_bytes=total,
        verdict=verdict(total, device.free),
        batch=plan.verify_tokens,
        largest_batch=plan.verify_tokens,
    )
    return found, plan, passes
