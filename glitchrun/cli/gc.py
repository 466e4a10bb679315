"""`glitchrun gc`: removes measured steps and pages of studies that no run refers to."""

from __future__ import annotations

import click

from glitchrun.errors import UsageError, require
from glitchrun.ledger import ROOT
from glitchrun.ledger.garbage import Garbage, find_garbage, remove_garbage
from glitchrun.report.formatting import counted, size
from glitchrun.terminal import say, visible


@click.command("gc")
@click.option("--yes", is_flag=True, help="Remove them without confirmation.")
def command(yes: bool) -> None:
    """Removes what steps have measured and no run refers to, and pages of studies without runs.

    These are mostly left by runs that `glitchrun rm` removed. If a run cannot be read, nothing is
    removed. Steps that a process works on stay.
    """
    require("filelock")
    root = ROOT.resolve()
    found = find_garbage(root)
    free = [one for one in found if not one.is_held]
    for one in found:
        say(_line(one))
    if not free:
        say("there is nothing to remove")
        return
    total = size(sum(one.size for one in free))
    say(f"{counted(len(free), 'folder')}, {total} in all")
    if not yes and not click.confirm("Remove them?", err=True):
        raise UsageError("nothing was removed; --yes removes without confirmation")
    removed = remove_garbage(root, free)
    say(f"removed {counted(len(removed), 'folder')}, {size(sum(one.size for one in removed))}")


def _line(one: Garbage) -> str:
    number = one.folder.name.removeprefix("attempt-")
    name = f"{one.folder.parent.name[:12]}#{number}" if number.isdecimal() else str(one.folder)
    stays = "  (a process works on it: it stays)" if one.is_held else ""
    return visible(f"{size(one.size):>8}  {name}  {one.what}{stays}")
