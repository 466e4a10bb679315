"""`glitchrun compare`: runs and imported results side by side."""

from __future__ import annotations

import os
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

import click

from glitchrun.errors import UsageError, require
from glitchrun.ledger import ROOT
from glitchrun.runner.lookup import find_cells, find_run
from glitchrun.terminal import emit_json, say

if TYPE_CHECKING:
    from glitchrun.ledger import RunRecord
    from glitchrun.report.comparison.sides import Side

_SHOWN = 20


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--by",
    type=click.Choice(["verdict", "glitch", "confirmed"]),
    default="verdict",
    show_default=True,
    help="Which verdict: of attempts where there were any, of the probes, or of attempts alone.",
)
@click.option(
    "--scope",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many tokens there are to look at; without, the vocabulary's size.",
)
@click.option("--all", "every", is_flag=True, help="List every token, not only the first few.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "md"]), default="text", show_default=True
)
def command(runs: tuple[str, ...], by: str, scope: int | None, every: bool, output: str) -> None:
    """Shows verdicts and metrics of two or more RUNs side by side, with their agreement.

    A RUN is a run as for `report`, or a file that `import` reads. The name of an experiment with a
    matrix selects all its cells.
    """
    require("scipy")
    from glitchrun.report.comparison.output import as_json, as_markdown, as_text
    from glitchrun.report.comparison.pairs import all_pairs
    from glitchrun.report.comparison.sections import sections

    found = [one for run in runs for one in _resolve_run(run)]
    if not 2 <= len(found) <= len(ascii_uppercase):
        raise UsageError(f"compare takes 2 to {len(ascii_uppercase)} runs, got {len(found)}")
    sides = [_side(label, one, by) for label, one in zip(ascii_uppercase, found, strict=False)]
    pairs = all_pairs(sides, scope)
    if output == "json":
        emit_json(as_json(sides, pairs, by))
        return
    shown = sections(sides, pairs, None if every else _SHOWN)
    say(as_markdown(shown) if output == "md" else as_text(shown), nl=False)


def _resolve_run(text: str) -> list[Path | RunRecord]:
    """The file, the run or the matrix cells that a command-line argument names."""
    if os.path.isfile(text):  # noqa: PTH113 - false for any text, where Path raises
        return [Path(text)]
    return [*(find_cells(text, ROOT) or [find_run(text, ROOT)])]


def _side(label: str, one: Path | RunRecord, by: str) -> Side:
    from glitchrun.imports import read
    from glitchrun.report.comparison.sides import side_of_file, side_of_run

    if isinstance(one, Path):
        return side_of_file(label, read(one), by)
    return side_of_run(label, one, by)
