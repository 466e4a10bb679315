"""`glitchrun report`: writes the report of a run from its ledger."""

from __future__ import annotations

import json
from pathlib import Path

import click

from glitchrun.errors import require
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.report.writing import write_document
from glitchrun.runner.lookup import find_run
from glitchrun.terminal import emit, say

FORMATS = ("html", "json", "junit", "md")


@click.command("report")
@click.argument("run")
@click.option("--format", "form", type=click.Choice(FORMATS), default="html", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Output file; `-` for standard output. Default: the run's artifacts for html, standard "
    "output for other formats.",
)
def command(run: str, form: str, output: Path | None) -> None:
    """Writes the report of RUN: a run's folder, the start of its key, its name, or `latest`.

    The report is made from the ledger, so RUN may also be running or stopped.
    """
    record = find_run(run, ROOT)
    text = _text(record, form)
    if form == "html" and output is None:
        output = record.artifacts / "report.html"
    if output is None or str(output) == "-":
        emit(text)
        return
    write_document(output, text, "-o")
    say(output, err=form == "json")


def _text(record: RunRecord, form: str) -> str:
    if form == "html":
        require("jinja2", "matplotlib", "scipy")
        from glitchrun.report.html import render

        return render(record)
    if form == "junit":
        from glitchrun.report.machine_readable import junit

        return junit(record)
    if form == "md":
        from glitchrun.report.markdown import markdown

        return markdown(record)
    from glitchrun.report.machine_readable import run_json

    return json.dumps(run_json(record), indent=2, allow_nan=False) + "\n"
