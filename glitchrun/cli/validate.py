"""`glitchrun validate`: every problem of spec files, without loading a model."""

from __future__ import annotations

import click

from glitchrun.errors import ExitCode
from glitchrun.spec.formats import as_github, as_json, as_sarif, as_text
from glitchrun.spec.loading import check_files
from glitchrun.terminal import emit, say


@click.command("validate")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github", "sarif"]),
    default="text",
    show_default=True,
    help="How the problems are written.",
)
@click.pass_context
def command(context: click.Context, paths: tuple[str, ...], form: str) -> None:
    """Checks spec files, and the .yaml and .yml files in folders and below them."""
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
    context.exit(ExitCode.SPEC_INVALID if problems else ExitCode.DONE)
