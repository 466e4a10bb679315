"""`glitchrun validate`: reports the problems of spec files, without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from glitchrun.errors import ExitCode
from glitchrun.spec.experiment_loading import check_files
from glitchrun.spec.problem_formats import as_github, as_json, as_sarif, as_text
from glitchrun.spec.spec_files import find_files
from glitchrun.terminal import emit, say, visible

_SHOWN = 5
"""Skipped folders that are named; further ones are counted."""


@click.command("validate")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github", "sarif"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@click.pass_context
def command(context: click.Context, paths: tuple[str, ...], form: str) -> None:
    """Checks spec files, and the .yaml and .yml files in folders and their subfolders.

    Skips subfolders that are hidden, contain third-party code (venv, node_modules, build, ...) or
    runs (mlruns). A path given on the command line is always read.
    """
    problems, files = check_files(paths)
    counted = f"{files} file{'s' * (files != 1)}"
    if form == "json":
        emit(as_json(problems, files) + "\n")
    elif form == "sarif":
        emit(as_sarif(problems) + "\n")
    elif problems:
        say(as_github(problems) if form == "github" else as_text(problems))
        say(f"{len(problems)} problem{'s' * (len(problems) != 1)} in {counted}", err=True)
    else:
        say(f"{counted}: no problems", err=form == "github")
    if form == "text" and (skipped := find_files(paths).skipped):
        say(_skipped_folders(skipped), err=True)
    context.exit(ExitCode.SPEC_INVALID if problems else ExitCode.DONE)


def _skipped_folders(folders: Sequence[Path]) -> str:
    """The message about folders that were not searched: `skipped 2 folders: .git, venv`."""
    shown = ", ".join(visible(str(folder)) for folder in folders[:_SHOWN])
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    counted = f"{len(folders)} folder{'s' * (len(folders) != 1)}"
    return f"skipped {counted}: {shown}{more}; name one to check it"
