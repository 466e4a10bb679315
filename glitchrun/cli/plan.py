"""`glitchrun plan`: shows what `apply` would do, and whether it can."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from glitchrun.errors import DoesNotFit, ExitCode
from glitchrun.ledger import ROOT
from glitchrun.plan.build import Plan, PlannedRun, PlannedStep
from glitchrun.plan.duration import Duration
from glitchrun.plan.gates import PlannedGate
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.work import StepWork
from glitchrun.plan.workers import Staff, shared_steps
from glitchrun.report.formatting import counted, percent, size, written
from glitchrun.runner.gates import with_baselines
from glitchrun.runner.options import Options, adjusted, make_plan, read_until
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.strategy import Work
from glitchrun.terminal import emit_json, say, styled, visible
from glitchrun.tracking.address import check_store, tracking_uri

_PARTS = ("embeddings", "head", "linear", "experts", "routers", "other", "scales")
_BUFFERS = (
    ("key/value cache", "kv_cache_bytes"),
    ("activations", "activation_bytes"),
    ("float32 rechecks and tables", "float32_bytes"),
    ("gradient", "gradient_bytes"),
)
_ROLES = {"start": "good", "resume": "warning", "skip": "dim", "blocked": "bad"}
_VERDICTS = {"fits": "good", "tight": "warning", "no": "bad"}
_WIDTH = 80
_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))


redo_option = click.option(
    "--redo",
    multiple=True,
    metavar="STEP",
    help="Measure this step again, and the steps that read from it.",
)


until_option = click.option(
    "--until",
    multiple=True,
    metavar="STEP=N",
    help="End the search of this step early, after N verifications.",
)


limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="A smoke run: every step examines N items at most.",
)


@click.command("plan")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="K=V", help="Override a value of the spec.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@redo_option
@until_option
@limit_option
@click.option("--exit-code", is_flag=True, help="Exit with 10 if a run would start or resume.")
@click.pass_context
def command(
    context: click.Context,
    spec: Path,
    sets: tuple[str, ...],
    output: str,
    redo: tuple[str, ...],
    until: tuple[str, ...],
    limit: int | None,
    exit_code: bool,
) -> None:
    """Shows which runs of SPEC would start, resume or be skipped, and what they need.

    Reads the headers of the checkpoint and its tokenizer. Loads no weights, downloads nothing, and
    writes only to the user's cache.
    """
    experiment = load_experiment(spec, sets, require_env=True)
    first = experiment.cells[0].spec
    options = Options(redo=frozenset(redo), until=read_until(until), limit=limit)
    experiment, notes = adjusted(experiment, options)
    for note in notes:
        say(note, err=True)
    plan = with_baselines(make_plan(experiment, ROOT, options, fetch=False), ROOT)
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
    """The plan for a terminal of 80 columns: a block for each run, and the totals."""
    lines = [f"experiment {styled(visible(plan.experiment), 'heading')}"]
    lines += _staff_lines(plan)
    for run in plan.runs:
        lines += ["", *_run_lines(run, plan.staff)]
    counts = dict.fromkeys(_ROLES, 0)
    for run in plan.runs:
        counts[run.action] += 1
    total = ", ".join(f"{count} to {name}" for name, count in counts.items() if count)
    total = f"{counted(len(plan.runs), 'run')}: {total.replace('to blocked', 'blocked')}"
    return [*lines, "", *_times(plan), total]


def _staff_lines(plan: Plan) -> Iterator[str]:
    """The workers, if the process of `apply` does not execute the runs itself."""
    staff = plan.staff
    if staff is None:
        return
    together = f"; {staff.side_by_side} runs at a time" if staff.side_by_side > 1 else ""
    yield from _wrapped("workers    ", f"{staff.text}{together}")
    if staff.workers > 1:
        text = "likely times are those of one worker; `at best` is a bound with all of them"
        yield from _wrapped("           ", text)
    if staff.reduced:
        yield from _wrapped("           ", staff.reduced)


def _times(plan: Plan) -> Iterator[str]:
    """The likely time of all runs that would start, if there are several."""
    found = [run.time.likely for run in plan.pending if run.time is not None]
    times = [likely for likely in found if likely is not None]
    if len(times) > 1 and len(times) == len(plan.pending):
        text, staff = f"likely {rough_duration(sum(times))}", plan.staff
        best = staff.at_best(plan.pending) if staff is not None else None
        if staff is not None and best is not None and staff.workers > 1:
            text += f" in one worker, {rough_duration(best)} at best in {staff.workers}"
        yield f"all runs together: {text}"


def rough_duration(seconds: float) -> str:
    """Seconds in a suitable unit with two digits: `4 min`."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{max(1, round(seconds))} s"


def _run_lines(run: PlannedRun, staff: Staff | None) -> Iterator[str]:
    name = styled(visible(run.cell.name), "heading")
    key = f"  [{run.key}]" if run.key else ""
    yield f"{styled(f'{run.action:<7}', _ROLES[run.action])} {name}{key}"
    yield from _wrapped("        ", run.reason)
    if run.action == "skip":
        return
    loads = not run.steps or any(step.action != "reuse" for step in run.steps)
    if run.estimate is not None and loads:
        yield from _memory_lines(run.estimate, run.cell.spec.model.quantization)
        yield from _residency_lines(run)
    planned = {step.key.id: step for step in run.steps}
    for work in run.work:
        yield from _step_lines(run, work, planned.get(work.step), staff)
    if run.time is not None and loads:
        yield from _time_lines(run, run.time, staff)
    for gate in run.gates:
        if gate.baseline is not None:
            yield from _wrapped("  gate    ", _gate_text(gate))


def _lost(passes: int) -> str:
    return "one pass" if passes == 1 else f"{passes} passes"


def _wrapped(label: str, text: str, role: str | None = None) -> list[str]:
    """Lines of at most 80 columns that begin with `label`, the others indented as far.

    Args:
        label: The beginning of the first line.
        text: Is wrapped between words.
        role: Style of the first word of the text, see `glitchrun.terminal.styled`.
    """
    blank = " " * len(label)
    lines = textwrap.wrap(
        visible(text), _WIDTH - len(label), break_long_words=False, break_on_hyphens=False
    ) or [""]
    if role is not None:
        word, space, rest = lines[0].partition(" ")
        lines[0] = styled(word, role) + space + rest
    return [f"{blank if number else label}{line}" for number, line in enumerate(lines)]


def _memory_lines(memory: MemoryEstimate, quantization: str) -> Iterator[str]:
    model = f"{memory.parameters:,} parameters"
    if memory.stored_format:
        model += f", on disk as {memory.stored_format}"
    if memory.becomes_floats:
        model += ", which becomes floats here"
    if memory.stored_format and quantization != "none":
        model += f" (model.quantization: {quantization} has no effect)"
    parts = [f"{name} {size(memory.weights[name])}" for name in _PARTS if memory.weights.get(name)]
    weights = f"{model}, {size(memory.weight_bytes)}: {', '.join(parts)}"
    yield from _wrapped("  model   ", weights)
    found = [(label, getattr(memory, name)) for label, name in _BUFFERS]
    buffers = [f"{label} {size(count)}" for label, count in found if count]
    buffers.append(f"process {size(memory.runtime_bytes)}")
    need = (
        f"{memory.verdict}: at most {size(memory.total_bytes)} of {size(memory.free_bytes)} free "
        f"on {memory.device} ({memory.memory_source})"
    )
    yield from _wrapped("  memory  ", need, _VERDICTS[memory.verdict])
    yield from _wrapped("          ", f"besides the weights: {', '.join(buffers)}")
    batch = f"{counted(memory.batch, 'row')} in step {memory.step}"
    yield from _wrapped("  batch   ", f"{batch}; up to {memory.largest_batch:,} would fit")


def _residency_lines(run: PlannedRun) -> Iterator[str]:
    """Where the weights are; what both residencies need, if one of them is not simply fine."""
    residency = run.residency
    if residency is None or (residency.chosen == "resident" and not _is_asked(run)):
        return
    label = "  weights "
    yield from _wrapped(label, f"{residency.chosen}: {residency.reason}")
    plan = residency.stream
    if residency.chosen == "streamed" and plan is not None:
        passes = sum(sum(count) for count in residency.passes.values())
        tokens = f"{plan.verify_tokens:,} tokens"
        text = (
            f"each pass reads {size(plan.pass_bytes)} for up to {tokens}; likely "
            f"{counted(passes, 'pass', 'passes')}, {size(residency.bytes_read())}"
        )
        if any(step.repeats for step in run.work):
            lost = _lost(plan.batch_passes)
            text += f", and a pass for each batch with near-ties. A kill loses {lost} at most"
        yield from _wrapped("          ", text)
    for name, found in (("resident", residency.resident), ("streamed", residency.streamed)):
        time = run.times.get(name)
        if found is not None and time is not None:
            seconds = "" if time.likely is None else f", likely {rough_duration(time.likely)}"
            need = f"{name}: {size(found.total_bytes)} of memory ({found.verdict}){seconds}"
            yield from _wrapped("          ", need)
    if residency.refusal:
        yield from _wrapped("          ", f"streamed: {residency.refusal}")


def _is_asked(run: PlannedRun) -> bool:
    """Whether the spec asks for a residency, or the resident model is a tight fit."""
    asked = run.cell.spec.model.residency != "auto"
    return asked or (run.estimate is not None and run.estimate.verdict != "fits")


def _step_lines(
    run: PlannedRun, work: StepWork, planned: PlannedStep | None, staff: Staff | None
) -> Iterator[str]:
    """A step, its action, and its work unless it is reused."""
    label, action = "  step    ", planned.action if planned else "start"
    origin = f" from {planned.origin}" if planned and planned.origin else ""
    name = f"{work.step} ({work.strategy}), {action}{origin}"
    if action == "reuse":
        yield from _wrapped(label, name)
        return
    name += ": "
    if work.tokens is None:
        yield from _wrapped(label, f"{name}no upper bound known")
        return
    seconds = run.time.steps.get(work.step) if run.time else None
    time = f"; likely {rough_duration(seconds)}" if seconds is not None else ""
    most = f"at most {_amounts(work)}"
    if work.likely is None or _amounts(work.likely) == _amounts(work):
        yield from _wrapped(label, f"{name}{most}{time}")
    else:
        yield from _wrapped(label, f"{name}likely {_amounts(work.likely)}{time}")
        yield from _wrapped("          ", most)
    if work.caveat:
        yield from _wrapped("          ", work.caveat)
    if staff is not None and run.cell.spec.execution.shares_steps:
        is_shared = staff.share > 1 and work.step in shared_steps(run.cell.spec)
        best = staff.step_at_best(run, work.step)
        bound = "" if best is None else f": {rough_duration(best)} at best"
        most = "up to " if staff.workers % staff.side_by_side else ""
        shared = f"shared by {most}{staff.share} workers{bound}"
        yield from _wrapped("          ", shared if is_shared else "in one worker")


def _gate_text(planned: PlannedGate) -> str:
    """A gate with its baseline and the limit that follows."""
    gate = planned.gate
    if planned.limit is None or planned.baseline_value is None:
        return f"{gate.metric} {gate.op} {planned.baseline}, which has no value of it"
    tolerance = f", tolerance {percent(gate.tolerance)}" if gate.tolerance else ""
    return (
        f"{gate.metric} {gate.op} {written(planned.limit)}: baseline {planned.baseline} has "
        f"{written(planned.baseline_value)}{tolerance}"
    )


def _time_lines(run: PlannedRun, time: Duration, staff: Staff | None) -> Iterator[str]:
    likely = "" if time.likely is None else f"likely {rough_duration(time.likely)}, "
    resumed = "; what is recorded is not repeated" if run.action == "resume" else ""
    text = f"{likely}at most about {rough_duration(time.most)}, loading included{resumed}"
    yield from _wrapped("  time    ", text)
    best = staff.run_at_best(run) if staff is not None and staff.share > 1 else None
    if staff is not None and best is not None:
        text = f"with {staff.share} workers {rough_duration(best)} at best"
        yield from _wrapped("          ", text)
    yield from _wrapped("          ", time.rate.source)


def _amounts(work: Work) -> str:
    """The amounts of a step's work: `6 tokens, 6 prompts, 2 gradients`."""
    amounts = (
        (work.tokens, work.unit),
        (work.prompts, "prompt"),
        (work.screens, "screen"),
        (work.gradients, "gradient"),
        (work.continuations, "continuation"),
        (work.new_tokens, "generated token"),
    )
    found = [counted(number, noun) for number, noun in amounts if number]
    if work.positions:
        found.append(f"about {counted(work.positions, 'position')} for each {work.unit}")
    return ", ".join(found) or "nothing"
