"""A plan as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.work import StepWork
from glitchrun.terminal import visible

_PARTS = ("embeddings", "head", "linear", "experts", "routers", "other", "scales")
_BUFFERS = (
    ("key/value cache", "kv_cache_bytes"),
    ("activations", "activation_bytes"),
    ("float32 rechecks and tables", "float32_bytes"),
    ("gradient", "gradient_bytes"),
)
_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))


def plan_lines(plan: Plan) -> list[str]:
    """The plan for a terminal: a block for each run, and what would happen in all."""
    lines = [visible(f"experiment {plan.experiment}")]
    for run in plan.runs:
        lines += ["", *_run_lines(run)]
    counts = dict.fromkeys(("start", "resume", "skip", "blocked"), 0)
    for run in plan.runs:
        counts[run.action] += 1
    total = ", ".join(f"{count} to {name}" for name, count in counts.items() if count)
    return [
        *lines,
        "",
        f"{_count(len(plan.runs), 'run')}: {total.replace('to blocked', 'blocked')}",
    ]


def size(count: float) -> str:
    """Bytes with a decimal unit: `98.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def span(seconds: float) -> str:
    """A duration in its natural unit, as rough as it is: `4 min`."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{max(1, round(seconds))} s"


def _run_lines(run: PlannedRun) -> Iterator[str]:
    key = f"  [{run.key}]" if run.key else ""
    yield visible(f"{run.action:<8}{run.cell.name}{key}")
    yield f"        {run.reason}"
    if run.action == "skip":
        return
    if run.estimate is not None:
        yield from (f"  {line}" for line in _memory_lines(run.estimate))
    for work in run.work:
        yield f"  step    {work.step} ({work.strategy}): {_work(work)}"
        if work.caveat:
            yield f"          {work.caveat}"
    if run.seconds is not None:
        most = span(run.seconds[1])
        yield f"  time    at most about {most} after loading, on a slow machine; usually far less"


def _memory_lines(memory: MemoryEstimate) -> Iterator[str]:
    model = f"{memory.parameters:,} parameters" if memory.parameters else "quantized on disk"
    parts = [f"{name} {size(memory.weights[name])}" for name in _PARTS if memory.weights.get(name)]
    yield f"model   {model}, {size(memory.weight_bytes)}: {', '.join(parts)}"
    found = [(label, getattr(memory, name)) for label, name in _BUFFERS]
    buffers = ", ".join(f"{label} {size(count)}" for label, count in found if count)
    yield (
        f"memory  {memory.verdict}: {size(memory.total_bytes)} of {size(memory.free_bytes)} free "
        f"on {memory.device} ({memory.memory_source})"
    )
    yield f"        beside the weights at most: {buffers}; process {size(memory.runtime_bytes)}"
    yield f"batch   {memory.batch} in step {memory.step}; up to {memory.largest_batch:,} would fit"


def _work(work: StepWork) -> str:
    if work.tokens is None:
        return "no bound known"
    parts = []
    for number, noun in (
        (work.tokens, "token"),
        (work.prompts, "prompt"),
        (work.gradients, "gradient"),
        (work.continuations, "continuation"),
        (work.new_tokens, "generated token"),
    ):
        if number:
            parts.append(_count(number, noun))
    return f"at most {', '.join(parts) or 'nothing'}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
