"""`glitchrun validate`: every problem of spec files, without loading a model."""

from __future__ import annotations

import click

from glitchrun.errors import ExitCode
from glitchrun.spec.formats import as_github, as_json, as_sarif, as_text
from glitchrun.spec.loading import check_files


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
        click.echo(as_json(problems, files))
    elif form == "sarif":
        click.echo(as_sarif(problems))
    elif problems:
        click.echo(as_github(problems) if form == "github" else as_text(problems))
        click.echo(f"{len(problems)} problem{'s' * (len(problems) != 1)} in {counted}", err=True)
    else:
        click.echo(f"{counted}: no problems", err=form == "github")
    context.exit(ExitCode.SPEC_INVALID if problems else ExitCode.DONE)
