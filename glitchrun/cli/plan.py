"""`glitchrun plan`: what `apply` would do, and whether it can."""

from __future__ import annotations

from pathlib import Path

import click

from glitchrun.cli.apply import ROOT
from glitchrun.cli.render_plan import plan_lines
from glitchrun.errors import DoesNotFit, ExitCode
from glitchrun.ledger import existing_status
from glitchrun.plan.build import Plan, build
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.loading import load_experiment
from glitchrun.terminal import emit_json, say
from glitchrun.tracking.address import check_store, tracking_uri


@click.command("plan")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="K=V", help="Override a value of the spec.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("--exit-code", is_flag=True, help="Exit 10 when a run would start or resume.")
@click.pass_context
def command(
    context: click.Context, spec: Path, sets: tuple[str, ...], output: str, exit_code: bool
) -> None:
    """Shows which runs of SPEC would start, resume or be skipped, and what they need.

    Reads the checkpoint's headers and its tokenizer; no weights are loaded, and nothing is
    downloaded or written.
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
        say("\n".join(plan_lines(plan)))
    _refuse_what_is_blocked(plan)
    check_store(tracking_uri(first.tracking.uri, ROOT))
    if exit_code and plan.pending:
        context.exit(int(ExitCode.CHANGES_PENDING))


def _refuse_what_is_blocked(plan: Plan) -> None:
    if plan.blocked:
        raise DoesNotFit("\n".join(f"{run.cell.name}: {run.reason}" for run in plan.blocked))
