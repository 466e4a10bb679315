"""`glitchrun sync`: delivers runs to MLflow that it does not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from glitchrun.errors import ExitCode, GlitchrunError, require
from glitchrun.ledger import ROOT, find_runs, mark_killed, unreadable_lines
from glitchrun.runner.lookup import find_run
from glitchrun.terminal import say, visible

if TYPE_CHECKING:
    from glitchrun.tracking.sync import Synced


@click.command("sync")
@click.argument("run", required=False)
@click.option("--to", metavar="URI", help="Deliver to this store instead of the run's own.")
@click.option(
    "--again",
    is_flag=True,
    help="Also deliver runs that the store has, and restore runs that were deleted there.",
)
@click.pass_context
def command(context: click.Context, run: str | None, to: str | None, again: bool) -> None:
    """Delivers RUN, or every run, to its MLflow store.

    Runs that the store has completely are skipped, unless RUN or --again is given. Delivering a
    run again changes nothing that is correct. Runs that were deleted in MLflow stay deleted,
    unless --again is given.
    """
    require("mlflow", "filelock")
    from glitchrun.tracking.address import tracking_uri
    from glitchrun.tracking.sync import sync

    root = ROOT.resolve()
    mark_killed(root)
    unreadable: list[GlitchrunError] = []
    chosen = find_runs(root, unreadable.append) if run is None else [find_run(run, root)]
    damaged = [record.damage for record in chosen if record.damage]
    records = [record for record in chosen if not record.damage]
    store = tracking_uri(to, root) if to else None
    done = []
    for synced in sync(records, root, to=store, again=again or run is not None, restore=again):
        done.append(synced)
        say(_line(synced), err=synced.outcome == "failed")
    say(_totals(done))
    for damage in damaged:
        say(f"not delivered, damaged: {damage}", err=True)
    for line in unreadable_lines(unreadable):
        say(line, err=True)
    if any(synced.outcome == "failed" for synced in done):
        context.exit(ExitCode.PREFLIGHT)
    context.exit(ExitCode.ERROR if damaged or unreadable else ExitCode.DONE)


def _line(synced: Synced) -> str:
    identity = synced.record.identity
    name = f"{identity.experiment} · {identity.name} ({identity.key[:12]}#{identity.attempt})"
    return visible(f"{synced.outcome:<14}{name}{': ' if synced.detail else ''}{synced.detail}")


def _totals(done: Sequence[Synced]) -> str:
    counts = Counter(synced.outcome for synced in done)
    if not counts:
        return "there are no runs to deliver"
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
