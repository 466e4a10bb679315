"""`glitchrun sync`: delivers to MLflow what could not be delivered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from glitchrun.cli.apply import ROOT
from glitchrun.errors import ExitCode, GlitchrunError, require
from glitchrun.ledger import find_runs, mark_killed, unreadable_lines
from glitchrun.runner.lookup import find_run
from glitchrun.terminal import say, visible

if TYPE_CHECKING:
    from glitchrun.tracking.sync import Synced


@click.command("sync")
@click.argument("run", required=False)
@click.option("--to", metavar="URI", help="Deliver to this store, not the one a run belongs to.")
@click.option(
    "--again",
    is_flag=True,
    help="Also deliver what the store already has, and restore what was deleted there.",
)
@click.pass_context
def command(context: click.Context, run: str | None, to: str | None, again: bool) -> None:
    """Delivers RUN, or every run, to its MLflow store.

    What the store has whole already is left alone, unless RUN is named or --again is given: then
    it is delivered again, which changes nothing that is correct. A run that was deleted in MLflow
    stays so, unless --again is given.
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
    say(_sum(done))
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


def _sum(done: Sequence[Synced]) -> str:
    counts = Counter(synced.outcome for synced in done)
    if not counts:
        return "there are no runs to deliver"
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
