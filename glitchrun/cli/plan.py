"""`glitchrun plan`: shows what `apply` would do, and whether it can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from glitchrun.errors import DoesNotFit, ExitCode
from glitchrun.ledger import ROOT, existing_status
from glitchrun.plan.build import Plan, PlannedRun, build
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.work import StepWork
from glitchrun.report.formatting import counted, size
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.loading import load_experiment
from glitchrun.terminal import emit_json, say, visible
from glitchrun.tracking.address import check_store, tracking_uri

_PARTS = ("embeddings", "head", "linear", "experts", "routers", "other", "scales")
_BUFFERS = (
    ("key/value cache", "kv_cache_bytes"),
    ("activations", "activation_bytes"),
    ("float32 rechecks and tables", "float32_bytes"),
    ("gradient", "gradient_bytes"),
)
_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))


@click.command("plan")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="K=V", help="Override a value of the spec.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("--exit-code", is_flag=True, help="Exit with 10 if a run would start or resume.")
@click.pass_context
def command(
    context: click.Context, spec: Path, sets: tuple[str, ...], output: str, exit_code: bool
) -> None:
    """Shows which runs of SPEC would start, resume or be skipped, and what they need.

    Reads the headers of the checkpoint and its tokenizer. Loads no weights, downloads nothing and
    writes nothing.
    """
    experiment = load_experiment(spec, sets, require_env=True)
    first = experiment.cells[0].spec
    name = first.experiment
    plan = build(
        experiment,
        lambda key: existing_status(ROOT, name, key),
        fetch=False,
        resolve=Resolver(),
    )
    if output == "json":
        emit_json(plan.to_json())
    else:
        say("\n".join(_plan_lines(plan)))
    _check_blocked(plan)
    check_store(tracking_uri(first.tracking.uri, ROOT))
    if exit_code and plan.pending:
        context.exit(int(ExitCode.CHANGES_PENDING))


def _check_blocked(plan: Plan) -> None:
    if plan.blocked:
        raise DoesNotFit("\n".join(f"{run.cell.name}: {run.reason}" for run in plan.blocked))


def _plan_lines(plan: Plan) -> list[str]:
    """The plan for a terminal: a block for each run, and the totals."""
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
        f"{counted(len(plan.runs), 'run')}: {total.replace('to blocked', 'blocked')}",
    ]


def rough_duration(seconds: float) -> str:
    """Seconds in a suitable unit with two digits: `4 min`."""
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
        most = rough_duration(run.seconds[1])
        yield f"  time    at most about {most} after loading on a slow machine; usually far less"


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
    yield f"        besides the weights, at most: {buffers}; process {size(memory.runtime_bytes)}"
    yield f"batch   {memory.batch} in step {memory.step}; up to {memory.largest_batch:,} would fit"


def _work(work: StepWork) -> str:
    if work.tokens is None:
        return "no upper bound known"
    parts = []
    for number, noun in (
        (work.tokens, "token"),
        (work.prompts, "prompt"),
        (work.gradients, "gradient"),
        (work.continuations, "continuation"),
        (work.new_tokens, "generated token"),
    ):
        if number:
            parts.append(counted(number, noun))
    return f"at most {', '.join(parts) or 'nothing'}"
