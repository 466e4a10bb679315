"""Runs `profile`: bytes by dtype, timed passes, peak memory, compared with the plan's estimate.

All values but the bytes of the weights differ from run to run. The fragment marks their columns and
metrics as `measured`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from glitchrun.events import Batch, Entry, Event, Measured, Stage
from glitchrun.model.memory_use import bytes_by_device, peaks, reset_peaks
from glitchrun.strategies.context import Context
from glitchrun.strategies.profile import Config, TimedWork


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields the bytes of the weights, then one batch per timing, then the peaks and a summary."""
    workload = config.timed
    timer = _Timer(context, workload)
    batches = list(history)
    parts = ["held", *["forward", "generation"] * workload.repeats, "summary"]
    stage = Stage("measurements", len(parts), unit="measurements")
    context.announce(stage)
    reset_peaks()
    for place in range(len(batches), len(parts)):
        start = time.perf_counter()
        entries = _part(parts[place], timer, batches)
        seconds = time.perf_counter() - start
        batches.append(Batch(tuple(entries), place + 1, stage.total, seconds, stage=stage.name))
        yield batches[-1]
    yield from _metrics(batches)


def _part(name: str, timer: _Timer, batches: Sequence[Batch]) -> list[Entry]:
    if name == "held":
        return _held(timer.context)
    if name == "summary":
        return [*_peaks(timer.context), _summary(timer.context, batches)]
    seconds = timer.time(name)
    tokens = timer.tokens(name)
    earlier = sum(
        entry.cells["pass"] == name
        for batch in batches
        for entry in batch.entries
        if entry.table == "speed"
    )
    cells = {
        "pass": name,
        "tokens_per_second": tokens / seconds,
        "repeat": earlier + 1,
        "tokens": tokens,
        "seconds": seconds,
    }
    return [Entry("speed", cells)]


class _Timer:
    """Runs the workload on prompts of ids drawn from the seed."""

    def __init__(self, context: Context, workload: TimedWork) -> None:
        self.context = context
        self._backend = context.backend
        self._load = workload
        self._warm: set[str] = set()
        generator = torch.Generator().manual_seed(context.spec.seed)
        scope = torch.tensor(context.scope(whole=True) or range(len(context.vocabulary)))
        shape = (workload.batch_size, workload.prompt_tokens)
        self._ids = scope[torch.randint(len(scope), shape, generator=generator)]

    def tokens(self, name: str) -> int:
        """Tokens that one repeat of a pass handles."""
        each = self._load.prompt_tokens if name == "forward" else self._load.new_tokens
        return self._load.batch_size * each

    def time(self, name: str) -> float:
        """Seconds of one repeat. A warm-up that is not counted precedes the first."""
        passing = {"forward": self._forward, "generation": self._generate}[name]
        if name not in self._warm:
            passing()
            self._warm.add(name)
        return passing()

    def _forward(self) -> float:
        start = self._now()
        self._prefill()
        return self._now() - start

    def _generate(self) -> float:
        """Seconds of generating the new tokens, without the pass over the prompts."""
        logits, cache = self._prefill()
        start = self._now()
        for _ in range(self._load.new_tokens):
            logits, cache = self._backend.step(logits.argmax(dim=-1, keepdim=True), cache)
        return self._now() - start

    def _prefill(self) -> tuple[Any, Any]:
        return self._backend.step(self._ids, self._backend.start((), len(self._ids)))

    def _now(self) -> float:
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)  # kernels run asynchronously
        return time.perf_counter()


def _held(context: Context) -> list[Entry]:
    found = bytes_by_device(context.backend.model.module)
    total = sum(found.values())
    return [
        Entry("bytes", {"dtype": kind, "bytes": held, "share": held / total, "device": device})
        for (device, kind), held in found.items()
    ]


def _peaks(context: Context) -> list[Entry]:
    """Peak memory on each device while the workload ran, and the plan's estimate."""
    model, plan = context.backend.model, context.estimate or {}
    rows = [
        ("weights", model.bytes, plan.get("weight_bytes")),
        (
            "beyond the weights while loading",
            max(0, model.peak_bytes - model.bytes),
            plan.get("loading_bytes"),
        ),
    ]
    for device, peak in peaks().items():
        own = plan.get("total_bytes") if device == str(model.device) else None
        what = "process" if device == "cpu" else "tensors"
        rows.append((f"{what} on {device} while the workload ran", peak, own))
    return [
        Entry(
            "memory",
            {
                "what": what,
                "measured": measured,
                "estimated": estimated,
                "deviation": (measured - estimated) / estimated if estimated else None,
            },
        )
        for what, measured, estimated in rows
    ]


def _summary(context: Context, batches: Sequence[Batch]) -> Entry:
    """The summary row; a comparison of quantizations has one such row per run."""
    model, plan = context.backend.model, context.estimate or {}
    found = peaks()
    cells = {
        "quantization": model.quantization,
        "weights": model.bytes,
        "weights_planned": plan.get("weight_bytes"),
        "peak": found.get(str(model.device), found["cpu"]),
        "peak_planned": plan.get("total_bytes"),
        "load": model.load_seconds,
        "forward": _speed(batches, "forward"),
        "generation": _speed(batches, "generation"),
        "dtype": model.dtype,
        "device": str(model.device),
    }
    return Entry("summary", cells)


def _speed(batches: Sequence[Batch], name: str) -> float:
    """Tokens per second: the median over the repeats of one pass."""
    rows = [entry.cells for batch in batches for entry in batch.entries if entry.table == "speed"]
    return median(row["tokens_per_second"] for row in rows if row["pass"] == name)


def _metrics(batches: Sequence[Batch]) -> Iterator[Measured]:
    entries = [entry for batch in batches for entry in batch.entries]
    row = next(entry.cells for entry in entries if entry.table == "summary")
    repeats = sum(entry.table == "speed" for entry in entries) // 2
    yield Measured("weight_bytes", row["weights"])
    yield Measured("peak_bytes", row["peak"])
    yield Measured("load_seconds", row["load"])
    yield Measured("forward_tokens_per_second", row["forward"], repeats)
    yield Measured("generation_tokens_per_second", row["generation"], repeats)
    planned = row["weights_planned"]
    yield Measured("estimate_deviation", row["weights"] / planned - 1 if planned else None)
