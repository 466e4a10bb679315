"""`glitchrun schema`: prints the JSON Schema, or compares it with the published file."""

from __future__ import annotations

from pathlib import Path

import click

from glitchrun.errors import ExitCode
from glitchrun.spec.schema import published
from glitchrun.terminal import emit, say

PUBLISHED_AT = Path("schemas/experiment.schema.json")


@click.command("schema")
@click.option(
    "--check",
    is_flag=True,
    help=f"Compare the schema of the built-in strategies with {PUBLISHED_AT} instead; exits 1 "
    "where they differ.",
)
@click.pass_context
def command(context: click.Context, check: bool) -> None:
    """Prints the JSON Schema (draft 2020-12) of a spec.

    It contains the strategies, searches and probes of other installed packages; `--check` compares
    without them.
    """
    if not check:
        emit(published())
        return
    text = published(built_in=True)
    if PUBLISHED_AT.is_file() and PUBLISHED_AT.read_text(encoding="utf-8") == text:
        say(f"{PUBLISHED_AT} is up to date")
        return
    say(
        f"{PUBLISHED_AT} is missing or out of date; write it with: "
        f"glitchrun schema > {PUBLISHED_AT}",
        err=True,
    )
    context.exit(ExitCode.ERROR)
